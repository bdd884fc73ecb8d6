// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// Packets as a classifier of tc sees them: always from the Ethernet header on.
#pragma once
#include "helpers.h"

// As the kernel shows a packet to a classifier (struct __sk_buff); its first fields.
struct packet {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority, ingress_ifindex, ifindex;
	__u32 tc_index, cb[5], hash, tc_classid;
};

#define TC_ACT_UNSPEC (-1) // go on with the next filter
#define TC_ACT_SHOT 2

#define ETHERNET 14
#define ETH_IP be16(0x0800)
#define ETH_ARP be16(0x0806)
#define ETH_VLAN be16(0x8100)
#define ETH_QINQ be16(0x88a8)
#define ETH_IPV6 be16(0x86dd)

#define HOP_BY_HOP 0
#define ICMP 1
#define TCP 6
#define UDP 17
#define ROUTING 43
#define FRAGMENT 44
#define AUTHENTICATION 51
#define ICMPV6 58
#define DESTINATION 60
#define SCTP 132
#define SOLICITATION 135

// 16 bytes in network order, IPv4 as ::ffff:a.b.c.d.
struct addr {
	__u32 word[4];
};
_Static_assert(sizeof(struct addr) == 16, "addr");

INLINE void map_v4(struct addr *addr, __u32 v4)
{
	addr->word[0] = addr->word[1] = 0;
	addr->word[2] = be32(0xffff);
	addr->word[3] = v4;
}
