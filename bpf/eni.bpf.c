// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// What slaves of an ENI send by it and only the node can deal with is led to the node, as if the node's own slave had received it.
//
// terway_leaving   on the ENI, what leaves
// terway_arriving  on the node's slave, what arrives: from there, or from a pod that speaks to its node
// terway_entering  on the node's slave, what leaves: from the node to a pod
#include "eni.h"

// By the index of either, the other: an ENI's link and the node's slave of it.
struct bpf_map_def SEC("maps") twins = {
	.type = BPF_MAP_TYPE_HASH, .key_size = 4, .value_size = 4, .max_entries = 256,
};
// All addresses of this node's pods, and its own.
struct bpf_map_def SEC("maps") near = {
	.type = BPF_MAP_TYPE_HASH, .key_size = sizeof(struct addr), .value_size = sizeof(struct place), .max_entries = 4096,
};
// Services, and what else the operator leaves to the node.
struct bpf_map_def SEC("maps") inward = {
	.type = BPF_MAP_TYPE_LPM_TRIE, .key_size = sizeof(struct prefix), .value_size = 4, .max_entries = 1024,
	.map_flags = BPF_F_NO_PREALLOC,
};
struct bpf_map_def SEC("maps") visits = {
	.type = BPF_MAP_TYPE_LRU_HASH, .key_size = sizeof(struct visit), .value_size = 4, .max_entries = 65536,
};

#define BPF_F_INGRESS 1

#define MARK_MASK 0x7e0
#define NODE_MARK 0x7e0

#define ARP_REPLY 2

struct way {
	struct addr src, dst;
	__u16 ports[2];
	__u8 proto;
	__u8 more; // parts of the packet follow that bear no ports
};

INLINE int read_v4(const struct packet *skb, struct way *way, __u32 *end)
{
	__u32 head[5];
	if (bpf_skb_load_bytes(skb, ETHERNET, head, sizeof(head)))
		return 0;
	map_v4(&way->src, head[3]);
	map_v4(&way->dst, head[4]);
	way->proto = be32(head[2]) >> 16;
	__u32 part = be32(head[1]);
	way->more = (part & 0x2000) != 0;
	*end = (part & 0x1fff) ? 0 : ETHERNET + (be32(head[0]) >> 24 & 15) * 4;
	return 1;
}

INLINE int read_v6(const struct packet *skb, struct way *way, __u32 *end)
{
	__u32 head[10];
	if (bpf_skb_load_bytes(skb, ETHERNET, head, sizeof(head)))
		return 0;
	__builtin_memcpy(&way->src, head + 2, 16);
	__builtin_memcpy(&way->dst, head + 6, 16);
	way->proto = be32(head[1]) >> 8;
	*end = ETHERNET + sizeof(head);
	if (way->proto == FRAGMENT) {
		__u32 part[2];
		if (bpf_skb_load_bytes(skb, *end, part, sizeof(part)))
			return 0;
		__u32 word = be32(part[0]);
		way->proto = word >> 24;
		way->more = word & 1;
		*end = (word & 0xfff8) ? 0 : *end + sizeof(part);
	}
	return 1;
}

// Where the packet comes from and goes to; 0 for what is no IP.
INLINE int read(const struct packet *skb, struct way *way)
{
	__u32 end = 0;
	way->ports[0] = way->ports[1] = 0;
	way->more = 0;
	if (skb->protocol == ETH_IP ? !read_v4(skb, way, &end) : skb->protocol != ETH_IPV6 || !read_v6(skb, way, &end))
		return 0;
	if (end && (way->proto == TCP || way->proto == UDP || way->proto == SCTP))
		bpf_skb_load_bytes(skb, end, way->ports, sizeof(way->ports));
	return 1;
}

INLINE void visit(struct visit *visit, const struct addr *pod, const struct addr *peer, const struct way *way)
{
	visit->pod = *pod;
	visit->peer = *peer;
	visit->proto = way->proto;
	visit->pad[0] = visit->pad[1] = visit->pad[2] = 0;
}

// Whether this answers somebody who came through the node.
INLINE int is_answer(const struct way *way)
{
	struct visit key;
	__u32 there = 1;
	visit(&key, &way->src, &way->dst, way);
	key.pod_port = way->ports[0];
	key.peer_port = way->ports[1];
	if (!bpf_map_lookup_elem(&visits, &key))
		return 0;
	if (way->more) {
		key.pod_port = key.peer_port = 0;
		bpf_map_update_elem(&visits, &key, &there, BPF_ANY);
	}
	return 1;
}

// A slave of this ENI is asked for its MAC. It hears the question by itself; out there, everybody would answer too.
INLINE int asks_for_slave(const struct packet *skb)
{
	struct addr asked;
	if (skb->protocol == ETH_ARP) {
		__u32 target;
		if (bpf_skb_load_bytes(skb, ETHERNET + 24, &target, sizeof(target)))
			return 0;
		map_v4(&asked, target);
	} else {
		__u8 type;
		if (bpf_skb_load_bytes(skb, ETHERNET + 40, &type, sizeof(type)) || type != SOLICITATION)
			return 0;
		if (bpf_skb_load_bytes(skb, ETHERNET + 48, &asked, sizeof(asked)))
			return 0;
	}
	struct place *at = bpf_map_lookup_elem(&near, &asked);
	return at && at->eni == skb->ifindex;
}

SEC("classifier") int terway_leaving(struct packet *skb)
{
	struct way way;
	struct prefix to;
	__u32 ifindex = skb->ifindex, mac[2];
	if (skb->protocol == ETH_ARP)
		return asks_for_slave(skb) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	if (!read(skb, &way))
		return TC_ACT_UNSPEC;
	if (way.proto == ICMPV6 && asks_for_slave(skb))
		return TC_ACT_SHOT;
	struct place *at = bpf_map_lookup_elem(&near, &way.dst);
	if (at && at->eni != PLACE_POD && at->eni != PLACE_NODE) {
		// To a slave of this ENI or another, as if the VPC had brought it there.
		if (bpf_skb_store_bytes(skb, 0, at->mac, 6, 0))
			return TC_ACT_UNSPEC;
		skb->mark = 0;
		return bpf_redirect(at->eni, BPF_F_INGRESS);
	}
	to.length = 128;
	to.addr = way.dst;
	if (!at && !bpf_map_lookup_elem(&inward, &to) && !is_answer(&way))
		return TC_ACT_UNSPEC;
	__u32 *slave = bpf_map_lookup_elem(&twins, &ifindex);
	if (!slave)
		return TC_ACT_UNSPEC;
	// The node's slave has the MAC that all slaves have, the sender of this among them.
	if (bpf_skb_load_bytes(skb, 6, mac, 6) || bpf_skb_store_bytes(skb, 0, mac, 6, 0))
		return TC_ACT_UNSPEC;
	skb->mark = 0;
	return bpf_redirect(*slave, BPF_F_INGRESS);
}

// The node asks for its gateway by the ENI, in its own name, and the driver brings the answer here, where nobody waits for it. With nobody's
// name on it, it stays with the ENI, which takes it all the same.
INLINE int hand_back(struct packet *skb)
{
	__u16 what;
	__u32 nobody = 0, ifindex = skb->ifindex;
	__u32 *parent = bpf_map_lookup_elem(&twins, &ifindex);
	if (!parent || bpf_skb_load_bytes(skb, ETHERNET + 6, &what, sizeof(what)) || what != be16(ARP_REPLY))
		return TC_ACT_UNSPEC;
	if (bpf_skb_store_bytes(skb, ETHERNET + 24, &nobody, sizeof(nobody), 0))
		return TC_ACT_UNSPEC;
	return bpf_redirect(*parent, BPF_F_INGRESS);
}

// What goes to a pod keeps the sender's address; the rest takes the node's own way, and may be made the node's.
SEC("classifier") int terway_arriving(struct packet *skb)
{
	struct way way;
	if (skb->protocol == ETH_ARP)
		return hand_back(skb);
	if (!read(skb, &way))
		return TC_ACT_UNSPEC;
	struct place *at = bpf_map_lookup_elem(&near, &way.dst);
	if (!at || at->eni == PLACE_NODE)
		skb->mark = (skb->mark & ~MARK_MASK) | NODE_MARK;
	return TC_ACT_UNSPEC;
}

SEC("classifier") int terway_entering(struct packet *skb)
{
	struct way way;
	struct visit key;
	__u32 ifindex = skb->ifindex, there = 1;
	// The ENI has brought it, or the driver, back from here: there is no slave with this address (any more).
	__u32 *parent = bpf_map_lookup_elem(&twins, &ifindex);
	if (parent && *parent == skb->ingress_ifindex)
		return TC_ACT_SHOT;
	if (!read(skb, &way) || bpf_map_lookup_elem(&near, &way.src))
		return TC_ACT_UNSPEC;
	visit(&key, &way.dst, &way.src, &way);
	key.pod_port = way.ports[1];
	key.peer_port = way.ports[0];
	if (!bpf_map_lookup_elem(&visits, &key))
		bpf_map_update_elem(&visits, &key, &there, BPF_ANY);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual MIT/GPL";
