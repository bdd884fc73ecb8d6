// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// What a program may ask of the kernel: our own prototypes of the helpers and types that we use, each with the kernel that first
// had it. Numbers and types are the kernel's ABI (include/uapi/linux/bpf.h).
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define NULL ((void *)0)

#define be16(x) ((__u16)__builtin_bswap16(x))
#define be32(x) ((__u32)__builtin_bswap32(x))

// Reads a field just once, and in the order of the source.
#define ONCE(x) (*(volatile __typeof__(x) *)&(x))

// A map as the loader finds it in the section `maps`, without BTF.
struct bpf_map_def {
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
};

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERF_EVENT_ARRAY 4
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LPM_TRIE 11

#define BPF_ANY 0
#define BPF_F_NO_PREALLOC 1
#define BPF_F_CURRENT_CPU 0xffffffffull

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;                           // 3.18
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2; // 3.18
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;                            // 3.18
static __u64 (*bpf_ktime_get_ns)(void) = (void *)5;                                                    // 3.18
static __u32 (*bpf_get_prandom_u32)(void) = (void *)7;                                                 // 4.1
static long (*bpf_skb_store_bytes)(void *skb, __u32 offset, const void *from, __u32 len, __u64 flags) = (void *)9; // 4.1
static long (*bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;                                  // 4.4
static long (*bpf_perf_event_output)(void *ctx, void *map, __u64 flags, const void *data, __u64 size) = (void *)25; // 4.4
static long (*bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)26;    // 4.5
static __u64 (*bpf_get_socket_cookie)(void *ctx) = (void *)46;                                         // 4.19 for bpf_sock_addr

// Only in objects that are tried and have a fallback.
static __u64 (*bpf_get_netns_cookie)(void *ctx) = (void *)122; // 5.7
static int (*bpf_set_retval)(int retval) = (void *)187;        // 5.18
