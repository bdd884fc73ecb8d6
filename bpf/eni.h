// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// The keys and values of the maps of eni.bpf.c, twins of src/near.rs: a change of either is a change of both, and of LAYOUT there.
//
// Ports are in network order.
#pragma once
#include "packet.h"

// Whose an address of `near` is: a pod's that is no slave, the node's, or else a slave's of the ENI whose link has this index and MAC.
struct place {
	__u32 eni;
	__u16 mac[3];
	__u16 pad;
};
_Static_assert(sizeof(struct place) == 12, "place");
_Static_assert(__builtin_offsetof(struct place, mac) == 4, "place.mac");

#define PLACE_POD 0
#define PLACE_NODE 0xffffffff

struct prefix {
	__u32 length; // in bits, of 128
	struct addr addr;
};
_Static_assert(sizeof(struct prefix) == 20, "prefix");

// Who spoke to a pod through the node.
struct visit {
	struct addr pod;
	struct addr peer;
	__u16 pod_port; // both 0: a part of a packet that bears none
	__u16 peer_port;
	__u8 proto;
	__u8 pad[3];
};
_Static_assert(sizeof(struct visit) == 40, "visit");
