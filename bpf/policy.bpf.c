// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// What a pod may exchange with others, on every link of the pod, as its policies say.
//
// terway_to_pod    what goes to a pod: out of the host's end of its veth, or into its own link
// terway_from_pod  what comes from it: into the host's end of its veth, or out of its own link
//
// Whose link it is the filter says: its class is the pod's seat. What is allowed goes on to the next filter.
//
// Variants of the object (build.rs):
//   SEAT_IN_MARK  the seat is the packet's mark: for tests, whose packets pass no filter. It is not in the binary.
#include "policy.h"

#define MAP(name, kind, key, value, entries, flags) \
	struct bpf_map_def SEC("maps") name = {BPF_MAP_TYPE_##kind, sizeof(key), sizeof(value), entries, flags}

// The loader gives them their real sizes.
MAP(seats, HASH, __u32, struct seat, 4096, BPF_F_NO_PREALLOC);
MAP(classes, LPM_TRIE, struct net, __u32, 262144, BPF_F_NO_PREALLOC);
MAP(pairs, HASH, struct pair_key, struct pair, 262144, BPF_F_NO_PREALLOC);
MAP(programs, LPM_TRIE, struct rule, __u32, 524288, BPF_F_NO_PREALLOC);
MAP(tracks, LRU_HASH, struct track_key, struct track, 65536, 0);
MAP(state, ARRAY, __u32, struct state, 2, 0);
MAP(counts, PERCPU_ARRAY, __u32, __u64, 2 * COUNTS, 0);
MAP(events, PERF_EVENT_ARRAY, __u32, __u32, 0, 0);

// Bits of a TCP header's byte 13.
#define SYN 2
#define ACK 16
#define SYN_OR_ACK 18

// How long a flow without an end of its own is remembered after its last packet, in units of 2^30 ns.
#define UDP_IDLE 128
#define ECHO_IDLE 32
#define OTHER_IDLE 512

#define EXTENSIONS 6

// Leaves a number as it is, and has the verifier forget what it knows of it. That of 4.19 takes ways through the program for one only where
// it knows the same of them, and gives up when there are too many.
#define BLUR(x, skb)                                \
	do {                                        \
		__u32 n_ = (x), by_ = (skb)->len;   \
		n_ ^= by_;                          \
		__asm__ volatile("" : "+r"(n_));    \
		n_ ^= by_;                          \
		(x) = n_;                           \
	} while (0)

// What a packet is, beside its addresses and ports.
enum kind {
	PLAIN,
	OPENS,     // a TCP connection
	ANSWERS,   // of those who open one, or an echo
	LATER,     // a fragment that bears no ports
	ABOUT,     // an ICMP error: it is about another packet
	LOOSE,     // ICMP that belongs to no flow
	DISCOVERY, // without it, nobody is reached
};

// Where a packet comes from and goes to; of an echo the ports are those of its track_key.
struct way {
	struct addr src, dst;
	__u16 sport, dport;
	__u16 icmp; // type and code
	__u8 proto;
	__u8 kind;
	__u8 is_v6;
};

INLINE void count(__u32 what, __u32 direction)
{
	__u32 at = 2 * what + direction;
	__u64 *n = bpf_map_lookup_elem(&counts, &at);
	if (n)
		*n += 1;
}

INLINE __u32 mix(__u32 seal, __u32 word)
{
	return (seal ^ word) * 0x9e3779b1u + (seal >> 15);
}

INLINE __u32 seat_seal(__u32 seat, const struct seat *s)
{
	return mix(mix(mix(mix(mix(mix(mix(1, seat), s->life), s->bank), s->sets[0]), s->sets[1]), s->flags), s->owner);
}

INLINE __u32 pair_seal(const struct pair_key *k, __u32 program)
{
	return mix(mix(mix(mix(2, k->bank), k->set), k->class), program);
}

INLINE __u32 track_tag(const struct track_key *k)
{
	__u32 addr = mix(mix(mix(mix(3, k->other.word[0]), k->other.word[1]), k->other.word[2]), k->other.word[3]);
	return mix(mix(mix(addr, k->life), (__u32)k->own_port << 16 | k->other_port), k->proto);
}

// Memory of an element that was replaced may hold another one's value while we read it; then we look once more.
INLINE int read_seat(__u32 seat, struct seat *s)
{
	const struct seat *there = bpf_map_lookup_elem(&seats, &seat);
	if (!there)
		return 0;
	s->life = ONCE(there->life);
	s->bank = ONCE(there->bank);
	s->sets[0] = ONCE(there->sets[0]);
	s->sets[1] = ONCE(there->sets[1]);
	s->flags = ONCE(there->flags);
	s->owner = ONCE(there->owner);
	return ONCE(there->seal) == seat_seal(seat, s);
}

// What a packet says of itself

INLINE int is_error(__u8 proto, __u8 type)
{
	// Unreachable, source quench, time exceeded, parameter problem; of IPv6 all below 128.
	return proto == ICMP ? type == 3 || type == 4 || type == 11 || type == 12 : type < 128;
}

INLINE void read_icmp(struct way *way, const __u16 *head)
{
	__u8 type = be16(head[0]) >> 8, code = be16(head[0]);
	__u8 request = way->proto == ICMP ? 8 : 128, reply = way->proto == ICMP ? 0 : 129;
	way->icmp = head[0];
	way->kind = LOOSE;
	if (is_error(way->proto, type)) {
		way->kind = ABOUT;
	} else if (way->is_v6 && way->proto == ICMPV6 && type >= 133 && type <= 137) {
		way->kind = DISCOVERY;
	} else if (type == request && !code) {
		way->kind = PLAIN;
		way->sport = head[2];
		way->dport = be16((__u16)request);
	} else if (type == reply && !code) {
		way->kind = ANSWERS;
		way->sport = be16((__u16)request);
		way->dport = head[2];
	}
}

// What stands at `end`, behind the headers of IP.
INLINE int read_ports(const struct packet *skb, __u32 end, struct way *way)
{
	__u16 head[4];
	__u8 flags;
	if (way->proto == ICMP || way->proto == ICMPV6) {
		if (bpf_skb_load_bytes(skb, end, head, 8))
			return DROP_SHORT;
		read_icmp(way, head);
		return PASSED;
	}
	if (way->proto != TCP && way->proto != UDP && way->proto != SCTP)
		return PASSED;
	if (bpf_skb_load_bytes(skb, end, head, 4))
		return DROP_SHORT;
	way->sport = head[0];
	way->dport = head[1];
	if (way->proto == TCP) {
		if (bpf_skb_load_bytes(skb, end + 13, &flags, 1))
			return DROP_SHORT;
		flags &= SYN_OR_ACK;
		way->kind = flags == SYN ? OPENS : flags == SYN_OR_ACK ? ANSWERS : PLAIN;
	}
	return PASSED;
}

// Reads the header of IPv4 at `at`; where it ends, or 0 where no ports follow.
INLINE int read_v4(const struct packet *skb, __u32 at, struct way *way, __u32 *end)
{
	__u32 head[5];
	if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
		return DROP_SHORT;
	map_v4(&way->src, head[3]);
	map_v4(&way->dst, head[4]);
	way->proto = be32(head[2]) >> 16;
	__u32 part = be32(head[1]) & 0x1fff;
	*end = at + (be32(head[0]) >> 24 & 15) * 4;
	if (part)
		way->kind = LATER;
	return part == 1 && way->proto == TCP ? DROP_OVERLAP : PASSED;
}

INLINE int read_v6(const struct packet *skb, __u32 at, struct way *way)
{
	__u32 head[10];
	if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
		return DROP_SHORT;
	__builtin_memcpy(&way->src, head + 2, 16);
	__builtin_memcpy(&way->dst, head + 6, 16);
	way->proto = be32(head[1]) >> 8;
	return PASSED;
}

INLINE int is_extension(__u8 proto)
{
	return proto == HOP_BY_HOP || proto == ROUTING || proto == DESTINATION || proto == FRAGMENT || proto == AUTHENTICATION;
}

// Goes from one extension header to the next, and ends behind the last.
INLINE int read_extensions(const struct packet *skb, struct way *way, __u32 *end)
{
	__u8 head[4];
	__u32 at = *end;
#pragma unroll
	for (int i = 0; i < EXTENSIONS; i++) {
		if (!is_extension(way->proto) || way->kind == LATER)
			break;
		if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
			return DROP_SHORT;
		if (way->proto == FRAGMENT) {
			__u32 part = (__u32)head[2] << 8 | (head[3] & 0xf8);
			if (part)
				way->kind = LATER;
			if (part == 8 && head[0] == TCP)
				return DROP_OVERLAP;
			at += 8;
		} else {
			at += way->proto == AUTHENTICATION ? head[1] * 4 + 8 : head[1] * 8 + 8;
		}
		way->proto = head[0];
		BLUR(way->proto, skb);
		BLUR(way->kind, skb);
		BLUR(at, skb);
	}
	*end = at;
	return is_extension(way->proto) && way->kind != LATER ? DROP_HEADERS : PASSED;
}

INLINE int read(const struct packet *skb, struct way *way, __u32 *end)
{
	int why;
	if (skb->protocol == ETH_IP) {
		why = read_v4(skb, ETHERNET, way, end);
	} else {
		*end = ETHERNET + 40;
		why = read_v6(skb, ETHERNET, way);
		if (!why)
			why = read_extensions(skb, way, end);
	}
	return why || way->kind == LATER ? why : read_ports(skb, *end, way);
}

// The packet that an ICMP error is about, which was on its way back; its ports, where they stand behind the first header.
INLINE int read_inner(const struct packet *skb, __u32 at, struct way *in)
{
	__u32 end = at + 40;
	__u16 head[4];
	if (skb->protocol == ETH_IP ? read_v4(skb, at, in, &end) : read_v6(skb, at, in))
		return 0;
	if (in->kind == LATER || bpf_skb_load_bytes(skb, end, head, 8))
		return 0;
	if (in->proto == ICMP || in->proto == ICMPV6) {
		read_icmp(in, head);
		return in->kind == PLAIN || in->kind == ANSWERS;
	}
	in->sport = head[0];
	in->dport = head[1];
	return in->proto == TCP || in->proto == UDP || in->proto == SCTP;
}

// What the rules say

// A packet in the words of the rules, of one direction.
struct query {
	struct addr other;
	__u32 direction;
	__u16 table, from, to;
	__u8 proto;
	__u8 is_v6;
};

struct said {
	__u32 answer;
	__u32 class;
	__u32 program;
};

// 1: there is one; 0: there is none; -1: changed under our eyes.
INLINE int find(const struct pair_key *key, __u32 *program)
{
	struct pair *p = bpf_map_lookup_elem(&pairs, key);
	if (!p)
		return 0;
	*program = ONCE(p->program);
	return ONCE(p->seal) == pair_seal(key, *program) ? 1 : -1;
}

INLINE int ask(const struct seat *s, const struct query *q, struct said *said)
{
	struct net net = {.length = 160, .bank = NET_BANK(s->bank, (q->is_v6)), .addr = q->other};
	struct pair_key pair = {.bank = s->bank, .set = q->direction ? s->sets[FROM_POD] : s->sets[TO_POD]};
	struct rule rule = {.length = RULE_BITS, .bank = s->bank, .proto = q->proto, .table = q->table, .port = q->to};
	int found;

	said->answer = ANSWER_ALLOW;
	if (s->flags & SEAT_FREE(q->direction & 1))
		return PASSED;
	__u32 *class = bpf_map_lookup_elem(&classes, &net);
	pair.class = said->class = class ? *class : 0;
	found = find(&pair, &rule.program);
	if (found < 0)
		found = find(&pair, &rule.program);
	if (!found) {
		pair.class = REST;
		found = find(&pair, &rule.program);
		if (found < 0)
			found = find(&pair, &rule.program);
	}
	said->answer = 0;
	if (found <= 0)
		return DROP_TORN;
	said->program = rule.program;
	__u32 *there = bpf_map_lookup_elem(&programs, &rule);
	if (!there)
		return DROP_TORN;
	__u32 answer = *there;
	if (answer & ANSWER_BY_SOURCE) {
		rule.table = ANSWER_TABLE(answer);
		rule.port = q->from;
		there = bpf_map_lookup_elem(&programs, &rule);
		if (!there)
			return DROP_TORN;
		answer = *there;
	}
	said->answer = answer;
	return answer & ANSWER_ALLOW ? PASSED : DROP_RULES;
}

// The flow

INLINE int is_tracked(const struct way *way)
{
	return way->kind == PLAIN || way->kind == OPENS || way->kind == ANSWERS;
}

INLINE void orient(struct track_key *key, const struct way *way, int from_pod)
{
	key->other = from_pod ? way->dst : way->src;
	key->own_port = from_pod ? way->sport : way->dport;
	key->other_port = from_pod ? way->dport : way->sport;
	key->proto = way->proto;
}

INLINE __u32 idle(__u8 proto)
{
	return proto == UDP ? UDP_IDLE : proto == ICMP || proto == ICMPV6 ? ECHO_IDLE : OTHER_IDLE;
}

INLINE int is_over(const struct track_key *key, const struct track *t, __u32 now)
{
	// Another CPU may have noted a later moment than ours.
	return key->proto != TCP && (__s32)(now - t->last) > (__s32)idle(key->proto);
}

// What was asked when the flow began, by who opened it.
INLINE void query_of_flow(struct query *q, const struct track_key *key, int from_pod)
{
	q->other = key->other;
	q->is_v6 = key->is_v6;
	q->direction = from_pod;
	q->proto = key->proto;
	q->table = BY_PORT;
	q->from = from_pod ? key->own_port : key->other_port;
	q->to = from_pod ? key->other_port : key->own_port;
	if (q->proto == ICMP || q->proto == ICMPV6) {
		q->from = 0;
		q->to = q->proto == ICMP ? be16(8 << 8) : be16(128 << 8);
	}
}

// What is asked of the packet itself, whatever else there was; `as_answer` of the rules for who would have opened the flow then.
INLINE void query_of_packet(struct query *q, const struct way *way, int from_pod, int as_answer)
{
	q->other = from_pod ? way->dst : way->src;
	q->is_v6 = way->is_v6;
	q->direction = as_answer ? !from_pod : from_pod;
	q->proto = way->proto;
	q->table = way->kind == LATER ? BY_FRAGMENT : BY_PORT;
	q->from = as_answer ? way->dport : way->sport;
	q->to = as_answer ? way->sport : way->dport;
	if (q->proto == ICMP || q->proto == ICMPV6) {
		q->from = 0;
		q->to = way->icmp;
	}
	if (way->kind == LATER)
		q->from = q->to = 0;
}

INLINE int write_track(const struct track_key *key, __u32 epoch, __u32 now, __u32 flags)
{
	struct track t = {.tag = track_tag(key), .epoch = epoch, .last = now, .flags = flags};
	return bpf_map_update_elem(&tracks, key, &t, BPF_ANY) != 0;
}

// One flow, one look; the rules are asked for the first packet, and again in another epoch.
INLINE int judge_flow(const struct seat *s, __u32 epoch, const struct way *way, struct track_key *key, int about, int dir,
		      struct said *said)
{
	struct query q;
	__u32 now = bpf_ktime_get_ns() >> 30, last = now, flags = 0, known = 0, stale = 0, opener = dir;
	struct track *t = bpf_map_lookup_elem(&tracks, key);
	if (t) {
		flags = ONCE(t->flags);
		last = ONCE(t->last);
		stale = ONCE(t->epoch) != epoch;
		known = ONCE(t->tag) == track_tag(key) && !is_over(key, t, now);
		opener = flags & TRACK_FROM_POD;
	}
	if (known && way->kind != OPENS && !stale) {
		int denied = flags & TRACK_DENIED;
		// Who goes on with what he may not keeps it from being forgotten; who answers him does not.
		if (!about && t->last != now && (!denied || opener == (__u32)dir))
			t->last = now;
		return denied ? DROP_FLOW : PASSED;
	}
	int renew = known && way->kind != OPENS;
	// No flow begins with it.
	int alone = !renew && (about || (way->kind == ANSWERS && key->proto != TCP));
	if (alone) {
		query_of_packet(&q, way, dir, 0);
	} else if (renew) {
		query_of_flow(&q, key, opener);
	} else {
		opener = way->kind == ANSWERS ? !dir : dir;
		query_of_packet(&q, way, dir, opener != (__u32)dir);
	}
	int why = ask(s, &q, said);
	if (alone)
		return why;
	// Half a connection that nobody has seen begin: ours to go on with where either side may have begun it.
	if (why == DROP_RULES && !renew && key->proto == TCP && way->kind == PLAIN) {
		opener = !dir;
		query_of_packet(&q, way, dir, 1);
		why = ask(s, &q, said);
	}
	if (renew)
		count(COUNT_ASKED, dir);
	if (!why) {
		if (write_track(key, epoch, now, opener ? TRACK_FROM_POD : 0))
			count(COUNT_FULL, dir);
		else if (!known)
			count(COUNT_NEW, dir);
	} else if (renew || (known && (flags & TRACK_FROM_POD) == (__u32)dir)) {
		// A flow that was allowed stays, denied: its answers shall not open it anew from the other side, nor keep it.
		if (opener == (__u32)dir)
			last = now;
		write_track(key, epoch, last, (flags & TRACK_FROM_POD) | TRACK_DENIED);
		why = DROP_FLOW;
	}
	return why;
}

// Parts of a packet that bear no ports pass where anything of their protocol may, be it an answer: without the first nobody can use them.
INLINE int judge_part(const struct seat *s, const struct way *way, int dir, struct said *said)
{
	struct query q;
	query_of_packet(&q, way, dir, 0);
	int why = ask(s, &q, said);
	if (why != DROP_RULES)
		return why;
	q.direction = !dir;
	return ask(s, &q, said);
}

INLINE int judge(struct packet *skb, const struct seat *s, __u32 epoch, int dir, struct way *way, struct said *said)
{
	struct track_key key = {};
	struct way in = {};
	__u32 end = 0;
	int why = read(skb, way, &end);
	if (why)
		return why;
	BLUR(way->kind, skb);
	BLUR(way->proto, skb);
	BLUR(way->sport, skb);
	BLUR(way->dport, skb);
	BLUR(way->icmp, skb);
	BLUR(end, skb);
	if (way->kind == DISCOVERY)
		return PASSED;
	if (s->flags == SEAT_ALL_FREE) {
		// To be told apart later, a flow must have been seen to begin; of TCP this is enough.
		if ((way->proto == TCP && way->kind != OPENS) || !is_tracked(way))
			return PASSED;
	}
	if (way->kind == LATER)
		return judge_part(s, way, dir, said);
	int about = way->kind == ABOUT && read_inner(skb, end + 8, &in);
	key.life = s->life;
	key.is_v6 = way->is_v6;
	if (about) {
		// It went the other way.
		orient(&key, &in, !dir);
	} else if (is_tracked(way)) {
		orient(&key, way, dir);
	} else {
		struct query q;
		query_of_packet(&q, way, dir, 0);
		return ask(s, &q, said);
	}
	return judge_flow(s, epoch, way, &key, about, dir, said);
}

INLINE void tell(struct packet *skb, __u32 seat, const struct way *way, const struct said *said, int why, int dir)
{
	struct event e = {
		.seat = seat, .direction = dir, .why = why, .proto = way->proto, .log = (said->answer & ANSWER_LOG) != 0,
		.own_port = dir ? way->sport : way->dport, .other_port = dir ? way->dport : way->sport,
		.class = said->class, .program = said->program,
		.own = dir ? way->src : way->dst, .other = dir ? way->dst : way->src,
	};
	if (way->proto == ICMP || way->proto == ICMPV6) {
		e.own_port = 0;
		e.other_port = way->icmp;
	}
	bpf_perf_event_output(skb, &events, BPF_F_CURRENT_CPU, &e, sizeof(e));
}

INLINE int verdict(struct packet *skb, int dir)
{
	struct seat s;
	struct way way = {.is_v6 = skb->protocol == ETH_IPV6};
	struct said said = {.answer = 0, .class = 0, .program = 0};
	__u32 zero = 0, one = 1, listen = 0, epoch = 0;
	int why;

#ifdef SEAT_IN_MARK
	__u32 seat = skb->mark;
#else
	__u32 seat = skb->tc_classid;
#endif
	if (skb->protocol == ETH_VLAN || skb->protocol == ETH_QINQ) {
		count(DROP_VLAN, dir);
		return TC_ACT_SHOT;
	}
	if (skb->protocol != ETH_IP && skb->protocol != ETH_IPV6)
		return TC_ACT_UNSPEC;
	struct state *renderer = bpf_map_lookup_elem(&state, &zero), *listener = bpf_map_lookup_elem(&state, &one);
	if (renderer && listener) {
		epoch = ONCE(renderer->epoch);
		listen = ONCE(listener->listen);
	}
	if (read_seat(seat, &s) || read_seat(seat, &s))
		why = judge(skb, &s, epoch, dir, &way, &said);
	else
		why = DROP_SEAT;
	if (why)
		count(why, dir);
	if (listen && (((why || (said.answer & ANSWER_LOG)) && (listen & LISTEN_DROPS)) ||
		       (said.answer && (listen & LISTEN_VERDICTS))))
		tell(skb, seat, &way, &said, why, dir);
	return why ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("classifier/to_pod") int terway_to_pod(struct packet *skb)
{
	return verdict(skb, TO_POD);
}

SEC("classifier/from_pod") int terway_from_pod(struct packet *skb)
{
	return verdict(skb, FROM_POD);
}

char _license[] SEC("license") = "Dual MIT/GPL";
