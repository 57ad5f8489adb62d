/*
 * icmp.h - turns ICMP errors about mirrored packets round, to the host that they are about.
 *
 * Whoever could not deliver what was sent on tells us, as the source. The
 * other end has to know: a refused datagram, a path too narrow. The quoted
 * packet is turned back into the one that the host had sent, or was sent.
 *
 * An error of a router goes to an address other than its own source. It is the
 * one such case, is limited in rate, and needs a quotation of a packet that
 * this host can have sent.
 */
#ifndef RF_MIRROR_ICMP_H
#define RF_MIRROR_ICMP_H

#include "limit.h"
#include "rewrite.h"
#include "route.h"

#define ICMP_HEADER_LENGTH 8
#define QUOTED_TRANSPORT_MIN 8 /* RFC 792: that much of it at least */

enum {
    ICMP_UNREACHABLE = 3,
    ICMP_CODE_PORT = 3,
    ICMP_CODE_TOO_BIG = 4,
    ICMPV6_UNREACHABLE = 1,
    ICMPV6_TOO_BIG = 2,
    ICMPV6_CODE_PORT = 4,
};

struct icmp_error {
    uint8_t type;
    uint8_t code;
    uint16_t checksum;
};

static __always_inline bool is_turned(const struct icmp_error *error, bool is_ipv4)
{
    if (is_ipv4)
        return error->type == ICMP_UNREACHABLE;
    return error->type == ICMPV6_UNREACHABLE || error->type == ICMPV6_TOO_BIG;
}

static __always_inline void count_error(const struct icmp_error *error, bool is_ipv4,
                                        bool is_request, uint32_t mapping)
{
    bool is_too_big = is_ipv4 ? error->code == ICMP_CODE_TOO_BIG : error->type == ICMPV6_TOO_BIG;
    bool is_port = error->code == (is_ipv4 ? ICMP_CODE_PORT : ICMPV6_CODE_PORT);

    count(mapping, RF_MIRROR_COUNTER_ICMP_TURNED, 1);
    if (is_request && !is_too_big)
        count(mapping, is_port ? RF_MIRROR_COUNTER_REFUSED : RF_MIRROR_COUNTER_UNREACHABLE, 1);
}

/* Reads the packet that an error quotes; not 0 when it is none that could be mirrored. */
static __always_inline int parse_quoted(struct __sk_buff *skb, const struct packet *packet,
                                        struct packet *quoted)
{
    uint32_t end = packet->l3 + packet->length;
    int r;

    quoted->link_length = packet->link_length;
    quoted->l3 = packet->l4 + ICMP_HEADER_LENGTH;
    r = packet->is_ipv4 ? parse_ipv4(skb, quoted, true) : parse_ipv6(skb, quoted, true);
    if (r < 0 || quoted->l4 + QUOTED_TRANSPORT_MIN > end)
        return -1;
    if (quoted->protocol != PROTOCOL_TCP && quoted->protocol != PROTOCOL_UDP)
        return -1;
    /* What was sent from this address is what its errors come back to. */
    if (quoted->source.halves[0] != packet->destination.halves[0] ||
        quoted->source.halves[1] != packet->destination.halves[1])
        return -1;
    return (int)bpf_skb_load_bytes(skb, quoted->l4, quoted->ports, sizeof(quoted->ports));
}

/*
 * Rewrites one port of the quoted packet, and its checksum where it is quoted.
 * Both together leave the ICMP checksum as it is; the port alone does not.
 */
static __always_inline int set_quoted_port(struct __sk_buff *skb, const struct packet *quoted,
                                           uint32_t end, bool is_source, uint16_t port,
                                           uint16_t *checksum)
{
    bool is_udp = quoted->protocol == PROTOCOL_UDP;
    uint32_t at = quoted->l4 + (is_udp ? UDP_CHECKSUM : TCP_CHECKSUM);
    uint16_t before = port_of(quoted, is_source);
    uint16_t inner = 0;

    if (at + sizeof(inner) <= end && bpf_skb_load_bytes(skb, at, &inner, sizeof(inner)) < 0)
        return -1;
    if (at + sizeof(inner) > end || (is_udp && inner == 0)) {
        *checksum = move_checksum(*checksum, before, port);
    } else {
        inner = move_checksum(inner, before, port);
        if (is_udp && inner == 0)
            inner = 0xffff; /* RFC 768: 0 would mean that there is none */
        if (bpf_skb_store_bytes(skb, at, &inner, sizeof(inner), 0) < 0)
            return -1;
    }
    return (int)bpf_skb_store_bytes(skb, quoted->l4 + (is_source ? 0 : 2), &port, sizeof(port), 0);
}

/* The outer header: from this host, to the one that the quoted packet was sent to. */
static __always_inline void readdress(struct packet *packet, const union rf_mirror_address *peer,
                                      uint16_t *checksum)
{
    const union rf_mirror_address source = packet->source;
    uint16_t *moved = packet->is_ipv4 ? &packet->header.v4.check : checksum;

    packet->source = *peer;
    swap_addresses(packet);
    /* Seen as a sum: the old source has become the peer. In ICMPv6 it covers the addresses too. */
    UNROLL
    for (int i = 0; i < 4; i++) {
        uint32_t from = source.words[i], to = peer->words[i];
        *moved = move_checksum(*moved, (uint16_t)from, (uint16_t)to);
        *moved = move_checksum(*moved, (uint16_t)(from >> 16), (uint16_t)(to >> 16));
    }
}

/* Rewrites an error about a mirrored packet and sends it on; anything that fails drops it. */
static __always_inline int rewrite_error(struct __sk_buff *skb, struct packet *packet,
                                         struct packet *quoted, bool is_source, uint16_t port,
                                         const struct icmp_error *error)
{
    uint16_t checksum = error->checksum;
    uint32_t end = packet->l3 + packet->length;

    if (set_quoted_port(skb, quoted, end, is_source, port, &checksum) < 0)
        return TC_ACT_SHOT;
    swap_addresses(quoted);
    readdress(packet, &quoted->destination, &checksum);
    age(packet);
    if (store_header(skb, quoted) < 0 || store_header(skb, packet) < 0 ||
        bpf_skb_store_bytes(skb, packet->l4 + 2, &checksum, sizeof(checksum), 0) < 0 ||
        swap_link(skb, packet) < 0)
        return TC_ACT_SHOT;
    return send_back(skb);
}

/* Why an error about a mirrored packet is not sent on: a counter, or ICMP_TURNED. */
static __always_inline uint32_t judge_error(struct __sk_buff *skb, const struct packet *packet,
                                            const struct packet *quoted,
                                            const struct rf_mirror_settings *settings)
{
    const union rf_mirror_address *peer = &quoted->destination;

    if (is_forbidden(&packet->source, packet->is_ipv4) || is_forbidden(peer, packet->is_ipv4) ||
        is_from_group(skb, packet))
        return RF_MIRROR_COUNTER_FORBIDDEN;
    if (packet->ttl <= 1)
        return RF_MIRROR_COUNTER_DROPPED_TTL;
    if (is_denied(peer, settings))
        return RF_MIRROR_COUNTER_DROPPED_DENIED;
    bool is_peer = packet->source.halves[0] == peer->halves[0] &&
                   packet->source.halves[1] == peer->halves[1];
    if (!is_peer && !take_router_token())
        return RF_MIRROR_COUNTER_DROPPED_ICMP;
    return RF_MIRROR_COUNTER_ICMP_TURNED;
}

/* Looks at an ICMP packet: one that is no error about a mirrored packet is for the stack. */
static __noinline int turn_error(struct __sk_buff *skb, struct packet *packet,
                                 const struct rf_mirror_settings *settings)
{
    struct icmp_error error;
    struct packet quoted = {};

    if (!settings || packet->fragmented ||
        bpf_skb_load_bytes(skb, packet->l4, &error, sizeof(error)) < 0 ||
        !is_turned(&error, packet->is_ipv4) || parse_quoted(skb, packet, &quoted) < 0)
        return TC_ACT_UNSPEC;
    /* Sent on as a request, to the return port; else as a reply, from the listening port. */
    struct rf_mirror_route_value route = {};
    bool is_to_service, is_from_listening =
        find_route(RF_MIRROR_REQUEST, quoted.protocol, quoted.ports[0], &quoted.source, &route);
    is_to_service =
        find_route(RF_MIRROR_REPLY, quoted.protocol, quoted.ports[1], &quoted.source, &route);
    if (!is_to_service && !is_from_listening)
        return TC_ACT_UNSPEC;
    /* A socket on the listening port of a UDP mapping is the splice engine's. */
    if (!(is_from_listening && quoted.protocol == PROTOCOL_UDP) &&
        has_socket(skb, packet->is_ipv4, quoted.protocol, &quoted.destination, quoted.ports[1],
                   &quoted.source, quoted.ports[0]))
        return TC_ACT_UNSPEC;

    uint32_t verdict = judge_error(skb, packet, &quoted, settings);
    if (verdict != RF_MIRROR_COUNTER_ICMP_TURNED) {
        count(route.mapping, verdict, 1);
        return TC_ACT_SHOT;
    }
    int action = rewrite_error(skb, packet, &quoted, !is_to_service, route.port, &error);
    if (action != TC_ACT_SHOT)
        count_error(&error, packet->is_ipv4, is_to_service, route.mapping);
    return action;
}

#endif
