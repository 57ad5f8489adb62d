/*
 * mirror.bpf.c - the mirror: sends packets back to where they came from, at the return port.
 *
 * With R this host, C its peer, L the listening and T the return port:
 *
 *     request  C:p -> R:L   becomes   R:p -> C:T
 *     reply    C:T -> R:p   becomes   R:L -> C:p
 *
 * It runs at tc ingress and keeps no state of connections: both ends are on C,
 * whose TCP does all the rest, and a refusal is C's own. A packet that is not
 * to be mirrored goes on to the stack as it is; one that is, is rewritten, or
 * dropped and counted. Nothing is sent to an address other than the packet's
 * own source (but for icmp.h), and never more bytes than came in.
 *
 * The rules in the order in which they are asked are in mirror_packet. All
 * helpers that it calls may be called from programs of any licence and with
 * CAP_BPF and CAP_NET_ADMIN alone.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

#include "handshake.h"
#include "icmp.h"
#include "limit.h"
#include "maps.h"
#include "packet.h"
#include "refuse.h"
#include "rewrite.h"
#include "route.h"
#include "shared.h"

#define PACKET_HOST 0 /* linux/if_packet.h: to this host's own MAC address */

/* What find_direction found. */
struct finding {
    struct rf_mirror_route_value route;
    bool is_reply;
};

/* Whether the packet is a request or a reply of a mapping; if not it is for the stack. */
static __always_inline bool find_direction(struct __sk_buff *skb, const struct packet *packet,
                                           struct finding *ret_finding)
{
    struct rf_mirror_route_value *route = &ret_finding->route;
    bool is_request = find_route(RF_MIRROR_REQUEST, packet->protocol, packet->ports[1],
                                 &packet->destination, route);

    /* What opens a connection is never a reply; anything else that can be one, is. */
    ret_finding->is_reply = !is_syn(packet) &&
                            find_route(RF_MIRROR_REPLY, packet->protocol, packet->ports[0],
                                       &packet->destination, route);
    if (!ret_finding->is_reply) {
        /* What the splice engine accepted before this address was mirrored is its to end. */
        return is_request &&
               (packet->protocol != PROTOCOL_TCP || is_syn(packet) ||
                !has_socket(skb, packet->is_ipv4, PROTOCOL_TCP, &packet->source, packet->ports[0],
                            &packet->destination, packet->ports[1]));
    }
    /* A socket on the listening port of a UDP mapping is the splice engine's. */
    if (is_request && packet->protocol == PROTOCOL_UDP)
        return true;
    return !has_socket(skb, packet->is_ipv4, packet->protocol, &packet->source, packet->ports[0],
                       &packet->destination, packet->ports[1]);
}

/* Why a packet that has a route is dropped: a counter, or RF_MIRROR_COUNTER_MAX. */
static __always_inline uint32_t find_fault(struct __sk_buff *skb, const struct packet *packet)
{
    if (is_forbidden(&packet->source, packet->is_ipv4) || is_from_group(skb, packet))
        return RF_MIRROR_COUNTER_FORBIDDEN;
    if (packet->fragmented) /* TCP does not fragment, and the stack would reset the connection */
        return RF_MIRROR_COUNTER_DROPPED_FRAGMENT;
    if (packet->ttl <= 1)
        return RF_MIRROR_COUNTER_DROPPED_TTL;
    return RF_MIRROR_COUNTER_MAX;
}

static __always_inline void count_request(const struct packet *packet, uint32_t mapping,
                                          bool is_new)
{
    if (is_new) {
        count(mapping, RF_MIRROR_COUNTER_ACCEPTED, 1);
        if (packet->protocol == PROTOCOL_TCP)
            start_handshake(&packet->source, packet->ports[0]);
    }
    count(mapping, RF_MIRROR_COUNTER_PACKETS_TO_SERVICE, 1);
    count(mapping, RF_MIRROR_COUNTER_BYTES_TO_SERVICE, packet->length);
}

static __always_inline void count_reply(const struct packet *packet, uint32_t mapping)
{
    if (packet->protocol == PROTOCOL_TCP) {
        if ((packet->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)) {
            count(mapping, RF_MIRROR_COUNTER_CONNECTED, 1);
            end_handshake(&packet->source, packet->ports[1]);
        }
        /* A reset that answers a SYN has no sequence of its own. */
        if ((packet->tcp_flags & (TCP_RST | TCP_ACK)) == (TCP_RST | TCP_ACK) &&
            packet->sequence == 0)
            count(mapping, RF_MIRROR_COUNTER_REFUSED, 1);
    }
    count(mapping, RF_MIRROR_COUNTER_PACKETS_TO_PEER, 1);
    count(mapping, RF_MIRROR_COUNTER_BYTES_TO_PEER, packet->length);
}

/* Rewrites one port and all that depends on it, and sends the packet back. */
static __always_inline int reflect(struct __sk_buff *skb, struct packet *packet,
                                   const struct finding *finding)
{
    if (set_port(skb, packet, finding->is_reply, finding->route.port) < 0)
        return TC_ACT_SHOT;
    swap_addresses(packet);
    age(packet);
    if (store_header(skb, packet) < 0 || swap_link(skb, packet) < 0)
        return TC_ACT_SHOT;
    return send_back(skb);
}

/* A packet of TCP or UDP. */
static __always_inline int mirror_packet(struct __sk_buff *skb, struct packet *packet,
                                         const struct rf_mirror_settings *settings)
{
    struct finding finding = {};

    if (parse_transport(skb, packet) < 0 || !find_direction(skb, packet, &finding))
        return TC_ACT_UNSPEC;
    /* The stack puts the fragments together and hands them to the splice engine. */
    if (packet->fragmented && packet->protocol == PROTOCOL_UDP)
        return TC_ACT_UNSPEC;
    uint32_t mapping = finding.route.mapping;
    uint32_t fault = find_fault(skb, packet);
    if (fault != RF_MIRROR_COUNTER_MAX) {
        count(mapping, fault, 1);
        return TC_ACT_SHOT;
    }

    bool is_new = !finding.is_reply && (packet->protocol == PROTOCOL_UDP || is_syn(packet));
    /* Whoever is next may take it: another mirror of these ports, or the stack, which refuses. */
    if (is_new && !settings->accepting)
        return TC_ACT_UNSPEC;
    if (is_new) {
        uint32_t verdict = judge_connection(packet, settings);
        if (verdict != RF_MIRROR_COUNTER_ACCEPTED) {
            count(mapping, verdict, 1);
            return packet->protocol == PROTOCOL_TCP ? refuse_connection(skb, packet)
                                                    : TC_ACT_SHOT;
        }
    } else if (is_denied(&packet->source, settings)) {
        count(mapping, RF_MIRROR_COUNTER_DROPPED_DENIED, 1);
        return TC_ACT_SHOT;
    }

    int action = reflect(skb, packet, &finding);
    if (action == TC_ACT_SHOT)
        return action;
    if (finding.is_reply)
        count_reply(packet, mapping);
    else
        count_request(packet, mapping, is_new);
    return action;
}

static __always_inline bool has_link_header(uint32_t interface)
{
    const uint32_t *length = bpf_map_lookup_elem(&interfaces_map, &interface);

    return !length || *length != 0;
}

/* It calls no helper that only programs under the GPL may call. */
char program_license[] SEC("license") = "Apache-2.0";

SEC("tc")
int rf_mirror(struct __sk_buff *skb)
{
    uint32_t index = 0;
    struct packet packet = {}; /* all of it: the verifier follows the longest path */

    if (skb->pkt_type != PACKET_HOST)
        return TC_ACT_UNSPEC;
    const struct rf_mirror_settings *settings = bpf_map_lookup_elem(&settings_map, &index);
    if (!settings)
        return TC_ACT_UNSPEC;
    if (settings->deadline_ns != UINT64_MAX && settings->deadline_ns < bpf_ktime_get_ns())
        return TC_ACT_UNSPEC;
    packet.link_length = LINK_HEADER_LENGTH;
    if (!settings->only_ethernet && !has_link_header(skb->ifindex))
        packet.link_length = 0;
    if (parse_packet(skb, &packet) < 0)
        return TC_ACT_UNSPEC;
    if (packet.protocol == PROTOCOL_TCP || packet.protocol == PROTOCOL_UDP)
        return mirror_packet(skb, &packet, settings);
    if (packet.protocol == (packet.is_ipv4 ? PROTOCOL_ICMP : PROTOCOL_ICMPV6))
        return turn_error(skb, &packet, settings);
    return TC_ACT_UNSPEC;
}
