// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// Services at the socket: who connects or sends to a Service's address is led to one of its backends, before there is a packet; who
// asks from whom a datagram came, or who the peer is, hears the Service's address.
//
// A socket that speaks to no Service pays one look into `frontends`, and one into `nodes`.
//
// Variants of the object (build.rs):
//   WITH_COOKIE  the client is a network namespace, and the node's own is known (5.7); without it session affinity is the node's, not
//                the pod's, and node ports on loopback addresses are left to others
//   WITH_RETVAL  who is refused gets ECONNREFUSED from the call itself (6.1); without it a connection is led to port 0 of the loopback
//                address, which refuses as fast, and a datagram without connection gets EPERM
#include "maps.h"

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_MPTCP 262
#define ECONNREFUSED 111

// The context of these hooks, as 4.18 has it. Every field is read and written by itself and whole (ONCE): 4.19 takes nothing else.
struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;
	__u32 user_ip6[4];
	__u32 user_port; // in network order
	__u32 family;
	__u32 type;
	__u32 protocol;
};

#define MAP(name, kind, key, value, entries, flags) \
	struct bpf_map_def SEC("maps") name = {BPF_MAP_TYPE_##kind, sizeof(key), sizeof(value), entries, flags}

// The loader gives them their real sizes. All memory is taken at once: elements that are made when they are written can be refused for
// want of it (seen on 6.1: the kernel refills its store with a delay).
MAP(frontends, HASH, struct frontend_key, struct frontend, 65536, 0);
MAP(slots, ARRAY, __u32, __u32, 262144, 0);
MAP(backends, ARRAY, __u32, struct backend, 131072, 0);
MAP(affinity, LRU_HASH, struct affinity_key, struct affinity, 65536, 0);
MAP(flows, LRU_HASH, struct flow_key, struct flow, 65536, 0);
MAP(nodes, HASH, struct node_key, __u32, 16384, 0);
MAP(state, ARRAY, __u32, struct state, 1, 0);
MAP(counts, PERCPU_ARRAY, __u32, __u64, COUNTS, 0);

// Where a socket is led to.
struct target {
	__u32 addr[4];
	__u32 set;
	__u32 backend;
	__u16 port;
};

enum verdict {
	PASS,   // no Service: as it is
	LED,
	REFUSE,
	AGAIN,  // changed under our eyes
};

INLINE void count(__u32 what)
{
	__u64 *n = bpf_map_lookup_elem(&counts, &what);
	if (n)
		*n += 1;
}

INLINE void copy(__u32 *to, const __u32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

INLINE __u64 client(void *ctx)
{
#ifdef WITH_COOKIE
	return bpf_get_netns_cookie(ctx);
#else
	return 0;
#endif
}

// 127.0.0.0/8 and ::1; and the unspecified addresses, by which the kernel means these.
INLINE int is_loopback(const __u32 *addr)
{
	if (addr[0] || addr[1])
		return 0;
	if (addr[2] == be32(0xffff))
		return !addr[3] || (addr[3] & be32(0xff000000)) == be32(0x7f000000);
	return !addr[2] && (!addr[3] || addr[3] == be32(1));
}

// Whether the socket is the node's own, and not a pod's, whose loopback is its own affair.
INLINE int is_of_the_node(void *ctx)
{
#ifdef WITH_COOKIE
	__u32 zero = 0;
	struct state *s = bpf_map_lookup_elem(&state, &zero);
	if (!s)
		return 0;
	// Where nobody could tell us (before 5.14), the node is the first namespace.
	__u64 host = s->host ? s->host : bpf_get_netns_cookie(NULL);
	return bpf_get_netns_cookie(ctx) == host;
#else
	return 0;
#endif
}

// The Service that this is an address of; `key` is the one that it stands under.
INLINE struct frontend *find(void *ctx, struct frontend_key *key)
{
	struct frontend *f;
	int own = 1;

	if (!is_loopback(key->addr)) {
		f = bpf_map_lookup_elem(&frontends, key);
		if (f)
			return f;
		__u32 *node = bpf_map_lookup_elem(&nodes, key->addr);
		if (!node)
			return NULL;
		own = *node & NODE_OWN;
	} else if (!is_of_the_node(ctx)) {
		return NULL;
	}
	// Every node's addresses of its family.
	int is_v4 = !key->addr[0] && !key->addr[1] && key->addr[2] == be32(0xffff);
	key->addr[0] = key->addr[1] = key->addr[3] = 0;
	key->addr[2] = is_v4 ? be32(0xffff) : 0;
	f = bpf_map_lookup_elem(&frontends, key);
	// Flags that are another key's by now leave nothing alone.
	if (f && !own && (ONCE(f->flags) & FRONTEND_OWN_NODE) && ONCE(f->tag) == frontend_tag(key))
		return NULL;
	return f;
}

// Whether the backend is one of this set, by now; the order of reading is that of maps.h.
INLINE int is_backend(__u32 id, __u32 set, struct target *to)
{
	struct backend *b = bpf_map_lookup_elem(&backends, &id);
	if (!id || !b)
		return 0;
	to->port = ONCE(b->port);
	to->addr[0] = ONCE(b->addr[0]);
	to->addr[1] = ONCE(b->addr[1]);
	to->addr[2] = ONCE(b->addr[2]);
	to->addr[3] = ONCE(b->addr[3]);
	to->set = set;
	to->backend = id;
	return ONCE(b->set) == set && to->port;
}

INLINE int of_last_time(const struct affinity_key *key, __u32 seconds, __u64 now, struct target *to)
{
	struct affinity *a = bpf_map_lookup_elem(&affinity, key);
	// Another CPU may have noted a later moment than ours.
	if (!a || a->last + seconds * 1000000000ull <= now || !is_backend(a->backend, key->set, to))
		return 0;
	a->last = now;
	count(COUNT_AFFINITY);
	return 1;
}

INLINE void remember(const struct affinity_key *key, __u64 now, const struct target *to)
{
	struct affinity a = {.backend = to->backend, .last = now};
	if (bpf_map_update_elem(&affinity, key, &a, BPF_ANY))
		count(COUNT_FULL);
}

INLINE int any(__u32 base, __u32 len, __u32 set, struct target *to)
{
	__u32 at = base + bpf_get_prandom_u32() % len;
	__u32 *slot = bpf_map_lookup_elem(&slots, &at);
	return slot && is_backend(ONCE(*slot), set, to);
}

// Reads the Service once. `flow` is given for a datagram: it goes where the one before went.
INLINE int attempt(void *ctx, struct frontend_key key, struct flow_key *flow, struct target *to)
{
	struct frontend *f = find(ctx, &key);
	if (!f)
		return PASS;
	__u32 set = ONCE(f->set), base = ONCE(f->base), len = ONCE(f->count), seconds = ONCE(f->affinity);
	if (ONCE(f->tag) != frontend_tag(&key))
		return AGAIN;
	if (!len)
		return REFUSE;
	if (flow) {
		flow->cookie = bpf_get_socket_cookie(ctx);
		struct flow *before = bpf_map_lookup_elem(&flows, flow);
		if (before && before->set == set && is_backend(before->backend, set, to)) {
			count(COUNT_STICKY);
			return LED;
		}
	}
	if (!seconds)
		return any(base, len, set, to) ? LED : AGAIN;
	struct affinity_key who = {.client = client(ctx), .set = set};
	__u64 now = bpf_ktime_get_ns();
	if (of_last_time(&who, seconds, now, to))
		return LED;
	if (!any(base, len, set, to))
		return AGAIN;
	remember(&who, now, to);
	return LED;
}

INLINE int choose(void *ctx, const struct frontend_key *key, struct flow_key *flow, struct target *to)
{
	int verdict = attempt(ctx, *key, flow, to);
	if (verdict == AGAIN) {
		count(COUNT_AGAIN);
		verdict = attempt(ctx, *key, flow, to);
	}
	if (verdict == PASS)
		return PASS;
	if (verdict == AGAIN)
		count(COUNT_TORN);
	count(verdict == LED ? COUNT_TRANSLATED : COUNT_REFUSED);
	return verdict == LED ? LED : REFUSE;
}

INLINE void note(const struct flow_key *key, const struct target *to, const __u32 *addr, __u16 port)
{
	struct flow f = {.set = to->set, .backend = to->backend, .port = port};
	copy(f.addr, addr);
	// One that is there already is only touched, so that it is not the oldest.
	struct flow *old = bpf_map_lookup_elem(&flows, key);
	if (old && old->set == f.set && old->backend == f.backend && old->port == port && old->addr[0] == addr[0] &&
	    old->addr[1] == addr[1] && old->addr[2] == addr[2] && old->addr[3] == addr[3])
		return;
	if (bpf_map_update_elem(&flows, key, &f, BPF_ANY))
		count(COUNT_FULL);
}

// What the way back needs: from this backend to the address that was asked for.
INLINE void note_service(__u64 cookie, const struct frontend_key *asked, const struct target *to)
{
	struct flow_key key = {.cookie = cookie, .port = to->port, .proto = asked->proto, .dir = FLOW_TO_SERVICE};
	copy(key.addr, to->addr);
	note(&key, to, asked->addr, asked->port);
}

INLINE int is_asked_for_peers(void)
{
	__u32 zero = 0;
	struct state *s = bpf_map_lookup_elem(&state, &zero);
	return s && (s->flags & STATE_PEERS);
}

INLINE __u8 proto(const struct bpf_sock_addr *ctx)
{
	__u32 p = ONCE(ctx->protocol);
	return p == IPPROTO_MPTCP ? PROTO_TCP : p == PROTO_TCP || p == PROTO_UDP ? p : 0;
}

INLINE void read_addr(const struct bpf_sock_addr *ctx, int family, __u32 *addr)
{
	if (family == AF_INET) {
		addr[0] = addr[1] = 0;
		addr[2] = be32(0xffff);
		addr[3] = ONCE(ctx->user_ip4);
	} else {
		addr[0] = ONCE(ctx->user_ip6[0]);
		addr[1] = ONCE(ctx->user_ip6[1]);
		addr[2] = ONCE(ctx->user_ip6[2]);
		addr[3] = ONCE(ctx->user_ip6[3]);
	}
}

INLINE void write_addr(struct bpf_sock_addr *ctx, int family, const __u32 *addr, __u16 port)
{
	if (family == AF_INET) {
		ONCE(ctx->user_ip4) = addr[3];
	} else {
		ONCE(ctx->user_ip6[0]) = addr[0];
		ONCE(ctx->user_ip6[1]) = addr[1];
		ONCE(ctx->user_ip6[2]) = addr[2];
		ONCE(ctx->user_ip6[3]) = addr[3];
	}
	ONCE(ctx->user_port) = port;
}

INLINE int refuse_connect(struct bpf_sock_addr *ctx, int family, const __u32 *asked)
{
#ifdef WITH_RETVAL
	bpf_set_retval(-ECONNREFUSED);
	return 0;
#else
	__u32 nobody[4] = {0, 0, 0, be32(1)};
	if (asked[2] == be32(0xffff) && !asked[0] && !asked[1]) {
		nobody[2] = be32(0xffff);
		nobody[3] = be32(0x7f000001);
	}
	write_addr(ctx, family, nobody, 0);
	return 1;
#endif
}

INLINE int refuse_datagram(void)
{
#ifdef WITH_RETVAL
	bpf_set_retval(-ECONNREFUSED);
#endif
	return 0;
}

INLINE int connect(struct bpf_sock_addr *ctx, int family)
{
	struct frontend_key key = {.port = (__u16)ONCE(ctx->user_port), .proto = proto(ctx)};
	struct target to = {};

	if (!key.proto)
		return 1;
	read_addr(ctx, family, key.addr);
	switch (choose(ctx, &key, NULL, &to)) {
	case PASS:
		return 1;
	case REFUSE:
		return refuse_connect(ctx, family, key.addr);
	}
	if (key.proto == PROTO_UDP || is_asked_for_peers())
		note_service(bpf_get_socket_cookie(ctx), &key, &to);
	write_addr(ctx, family, to.addr, to.port);
	return 1;
}

INLINE int sendmsg(struct bpf_sock_addr *ctx, int family)
{
	struct frontend_key key = {.port = (__u16)ONCE(ctx->user_port), .proto = PROTO_UDP};
	struct flow_key flow = {.port = key.port, .proto = PROTO_UDP, .dir = FLOW_TO_BACKEND};
	struct target to = {};

	if (ONCE(ctx->protocol) != PROTO_UDP)
		return 1;
	read_addr(ctx, family, key.addr);
	copy(flow.addr, key.addr);
	switch (choose(ctx, &key, &flow, &to)) {
	case PASS:
		return 1;
	case REFUSE:
		return refuse_datagram();
	}
	note(&flow, &to, to.addr, to.port);
	note_service(flow.cookie, &key, &to);
	write_addr(ctx, family, to.addr, to.port);
	return 1;
}

// Shows whom the socket spoke to under the address that it asked for.
INLINE int name(struct bpf_sock_addr *ctx, int family)
{
	struct flow_key key = {.port = (__u16)ONCE(ctx->user_port), .proto = proto(ctx), .dir = FLOW_TO_SERVICE};

	if (!key.proto)
		return 1;
	key.cookie = bpf_get_socket_cookie(ctx);
	read_addr(ctx, family, key.addr);
	struct flow *f = bpf_map_lookup_elem(&flows, &key);
	if (!f)
		return 1;
	count(COUNT_NAMED);
	write_addr(ctx, family, f->addr, f->port);
	return 1;
}

#define HOOK(name, place, body)                      \
	SEC("cgroup/" place)                         \
	int terway_##name(struct bpf_sock_addr *ctx) \
	{                                            \
		return body;                         \
	}

HOOK(connect4, "connect4", connect(ctx, AF_INET))
HOOK(connect6, "connect6", connect(ctx, AF_INET6))
HOOK(sendmsg4, "sendmsg4", sendmsg(ctx, AF_INET))
HOOK(sendmsg6, "sendmsg6", sendmsg(ctx, AF_INET6))
// Optional: 5.2 (4.19.57).
HOOK(recvmsg4, "recvmsg4", name(ctx, AF_INET))
HOOK(recvmsg6, "recvmsg6", name(ctx, AF_INET6))
// Optional: 5.8.
HOOK(peer4, "getpeername4", name(ctx, AF_INET))
HOOK(peer6, "getpeername6", name(ctx, AF_INET6))

char _license[] SEC("license") = "Dual MIT/GPL";
