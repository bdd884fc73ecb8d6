// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// The keys and values of the Services' maps, twins of src/maps.rs: a change of either is a change of both, and of SCHEMA.
//
// Addresses are of 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; ports are in network order too.
#pragma once
#include "helpers.h"

#define SCHEMA 1

#define PROTO_TCP 6
#define PROTO_UDP 17

// What somebody connects to. A node port stands at 0.0.0.0 (every node's IPv4 addresses) or :: (IPv6).
struct frontend_key {
	__u32 addr[4];
	__u16 port;
	__u8 proto;
	__u8 scope; // 0
};
_Static_assert(sizeof(struct frontend_key) == 20, "frontend_key");
_Static_assert(__builtin_offsetof(struct frontend_key, port) == 16, "frontend_key.port");
_Static_assert(__builtin_offsetof(struct frontend_key, proto) == 18, "frontend_key.proto");

// Its backends are slots[base .. base + count], all of one set. One element is replaced at once: the unit of change.
struct frontend {
	__u32 tag; // of the key, see frontend_tag; first, because the kernel writes it first
	__u32 set;
	__u32 base;
	__u32 count;    // 0: refuse
	__u32 affinity; // seconds; 0: none
	__u32 flags;
};
_Static_assert(sizeof(struct frontend) == 24, "frontend");
_Static_assert(__builtin_offsetof(struct frontend, flags) == 20, "frontend.flags");

// Only for the node's own addresses; what goes to another node's is left alone, its own proxy answers.
#define FRONTEND_OWN_NODE 1

// Says whose an element is. The memory of one that was replaced may hold another key's value while somebody still reads it.
INLINE __u32 frontend_tag(const struct frontend_key *key)
{
	return key->addr[0] ^ key->addr[1] ^ key->addr[2] ^ key->addr[3] ^ ((__u32)key->port << 16 | key->proto);
}

// Written from the first byte to the last: whoever reads port, address and set in this order has a whole one, or sees that it is not.
struct backend {
	__u32 set; // 0: nobody's
	__u32 addr[4];
	__u16 port;
	__u8 proto;
	__u8 pad;
};
_Static_assert(sizeof(struct backend) == 24, "backend");
_Static_assert(__builtin_offsetof(struct backend, addr) == 4, "backend.addr");
_Static_assert(__builtin_offsetof(struct backend, port) == 20, "backend.port");

struct affinity_key {
	__u64 client; // cookie of the network namespace; 0 where the kernel does not tell
	__u32 set;
	__u32 pad;
};
_Static_assert(sizeof(struct affinity_key) == 16, "affinity_key");

struct affinity {
	__u32 backend;
	__u32 pad;
	__u64 last; // nanoseconds since boot
};
_Static_assert(sizeof(struct affinity) == 16, "affinity");

// What a socket has been led to, and back.
struct flow_key {
	__u64 cookie; // of the socket
	__u32 addr[4];
	__u16 port;
	__u8 proto;
	__u8 dir;
	__u32 pad;
};
_Static_assert(sizeof(struct flow_key) == 32, "flow_key");
_Static_assert(__builtin_offsetof(struct flow_key, port) == 24, "flow_key.port");

#define FLOW_TO_BACKEND 0 // key: the Service's address, value: the backend's; datagrams without a connection
#define FLOW_TO_SERVICE 1 // key: the backend's address, value: the Service's

struct flow {
	__u32 set;
	__u32 backend;
	__u32 addr[4];
	__u16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct flow) == 28, "flow");
_Static_assert(__builtin_offsetof(struct flow, port) == 24, "flow.port");

struct node_key {
	__u32 addr[4];
};

#define NODE_OWN 1

// The one element of `state`.
struct state {
	__u32 schema;
	__u32 flags;
	__u64 host; // cookie of the node's network namespace; 0 where nobody told
};
_Static_assert(sizeof(struct state) == 16, "state");

// Connected sockets are asked for their peer, too: note what TCP was led to.
#define STATE_PEERS 1

// Elements of `counts`.
enum count {
	COUNT_TRANSLATED,  // led to a backend
	COUNT_REFUSED,     // nobody behind it
	COUNT_AGAIN,       // changed while we read; looked once more
	COUNT_TORN,        // changed both times; refused
	COUNT_AFFINITY,    // of those translated: to the backend of last time
	COUNT_STICKY,      // of those translated: a datagram to the backend of the one before
	COUNT_NAMED,       // shown under the Service's address
	COUNT_FULL,        // a note that found no room in `flows` or `affinity`
	COUNTS
};
