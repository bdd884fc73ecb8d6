// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// The keys and values of the maps of policy.bpf.c, twins of src/verdict.rs: a change of either is a change of both, and of LAYOUT there.
//
// Ports, types of ICMP and tables are in network order.
#pragma once
#include "packet.h"

// The node's pods, by the number that filters on their links bear.
struct seat {
	__u32 seal; // of the other fields; first, because the kernel writes it first
	__u32 life; // of this pod: no other one in the seat has it, before or after
	__u32 bank;
	__u32 sets[2]; // to the pod, from the pod
	__u32 flags;
	__u32 owner; // a digest of pod and addresses, for who comes next
};
_Static_assert(sizeof(struct seat) == 28, "seat");
_Static_assert(__builtin_offsetof(struct seat, sets) == 12, "seat.sets");

// Nobody says anything in this direction.
#define SEAT_FREE(direction) (1u << (direction))
#define SEAT_ALL_FREE 3u

#define TO_POD 0
#define FROM_POD 1

struct net {
	__u32 length; // in bits, of 32 + 128
	__u32 bank;   // NET_BANK
	struct addr addr;
};
_Static_assert(sizeof(struct net) == 24, "net");

// No prefix of IPv6 has addresses of IPv4 in it.
#define NET_BANK(bank, is_v6) ((bank) << 1 | (is_v6))

struct pair_key {
	__u32 bank;
	__u32 set;
	__u32 class;
};
_Static_assert(sizeof(struct pair_key) == 12, "pair_key");

// The class of a set's program for all classes that have no pair with it.
#define REST 0xffffffff

struct pair {
	__u32 seal; // of key and program
	__u32 program;
};
_Static_assert(sizeof(struct pair) == 8, "pair");

struct rule {
	__u32 length; // in bits: up to the program (what is said of all else), or 32 + 32 + 32 + those of the port
	__u32 bank;
	__u32 program;
	__u8 proto;
	__u8 pad;
	__u16 table;
	__u16 port;
	__u16 end; // 0
};
_Static_assert(sizeof(struct rule) == 20, "rule");
_Static_assert(__builtin_offsetof(struct rule, port) == 16, "rule.port");

#define RULE_BITS 112 // all of it, up to the port
#define BY_PORT 0
#define BY_FRAGMENT 0xffff

// An answer: flags, and the table where the source port decides.
#define ANSWER_ALLOW 1u
#define ANSWER_LOG 2u
#define ANSWER_BY_SOURCE 4u
#define ANSWER_TABLE(answer) ((__u16)((answer) >> 16)) // in network order

// A flow, seen from the pod.
struct track_key {
	struct addr other;
	__u32 life;
	__u16 own_port; // of an echo: its id with who asked, its type with who answers
	__u16 other_port;
	__u8 proto;
	__u8 is_v6;
	__u8 pad[2];
};
_Static_assert(sizeof(struct track_key) == 28, "track_key");
_Static_assert(__builtin_offsetof(struct track_key, own_port) == 20, "track_key.own_port");

struct track {
	__u32 tag; // of the key; first, because the kernel writes it first
	__u32 epoch;
	__u32 last; // when there was a packet, in units of 2^30 ns
	__u32 flags;
};
_Static_assert(sizeof(struct track) == 16, "track");

#define TRACK_FROM_POD 1u // who opened it
#define TRACK_DENIED 2u

// The elements of `state`: the first is written by who renders, the second by who listens.
struct state {
	__u32 epoch; // what was answered in another one is asked again
	__u32 listen;
	__u32 life; // the last that was given
	__u32 pad;
};
_Static_assert(sizeof(struct state) == 16, "state");

#define LISTEN_DROPS 1u // and to what is allowed and to be logged
#define LISTEN_VERDICTS 2u

// Why a packet is dropped (elements of `counts`, twice each: to the pod, from the pod), and what else is counted.
enum why {
	PASSED,
	DROP_RULES,   // a policy denies it
	DROP_FLOW,    // its flow was allowed and is not any more
	DROP_SEAT,    // nobody has told whose the link is
	DROP_TORN,    // rules are missing where there must be some
	DROP_SHORT,   // it ends within its headers
	DROP_HEADERS, // more IPv6 extension headers than are looked at
	DROP_OVERLAP, // a fragment that would overwrite the flags of TCP
	DROP_VLAN,    // a tag that hides what is in it
	COUNT_NEW,    // entries of `tracks` that were made
	COUNT_ASKED,  // that were asked for again in another epoch
	COUNT_FULL,   // that found no room
	COUNTS
};

// What is told to who listens.
struct event {
	__u16 seat;
	__u8 direction;
	__u8 why;
	__u8 proto;
	__u8 log;
	__u16 own_port; // of ICMP: 0, and type and code
	__u16 other_port;
	__u16 pad;
	__u32 class;
	__u32 program;
	struct addr own;
	struct addr other;
};
_Static_assert(sizeof(struct event) == 52, "event");
_Static_assert(__builtin_offsetof(struct event, class) == 12, "event.class");
