/*
 * route.h - is this packet ours to mirror, and may its source have an answer?
 */
#ifndef RF_MIRROR_ROUTE_H
#define RF_MIRROR_ROUTE_H

#include "maps.h"

/* Whether a port (network byte order) of a local address has a route; sets it only then. */
static __always_inline bool find_route(uint8_t direction, uint8_t protocol, uint16_t port,
                                       const union rf_mirror_address *local,
                                       struct rf_mirror_route_value *ret_route)
{
    struct rf_mirror_route_key key = {
        .direction = direction, .protocol = protocol, .port = port, .local = *local};

    if (!is_in_sieve(RF_MIRROR_SIEVE_ROUTE(direction, port)))
        return false;
    const struct rf_mirror_route_value *found = bpf_map_lookup_elem(&routes_map, &key);

    if (!found)
        return false;
    *ret_route = *found;
    return true;
}

/*
 * Whether this host has a socket for packets from `peer` to `local`. A TCP
 * listener is not one: what comes back on a mirrored connection is no SYN, and
 * a client may have picked any number for its port. Neither is a connection
 * that is over and waits: the same ports may be a new, mirrored one's by now.
 */
static __always_inline bool has_socket(struct __sk_buff *skb, bool is_ipv4, uint8_t protocol,
                                       const union rf_mirror_address *peer, uint16_t peer_port,
                                       const union rf_mirror_address *local, uint16_t local_port)
{
    struct bpf_sock_tuple tuple = {};
    uint32_t size = sizeof(tuple.ipv6);
    struct bpf_sock *found;

    if (is_ipv4) {
        tuple.ipv4.saddr = peer->words[3];
        tuple.ipv4.daddr = local->words[3];
        tuple.ipv4.sport = peer_port;
        tuple.ipv4.dport = local_port;
        size = sizeof(tuple.ipv4);
    } else {
        __builtin_memcpy(tuple.ipv6.saddr, peer, sizeof(*peer));
        __builtin_memcpy(tuple.ipv6.daddr, local, sizeof(*local));
        tuple.ipv6.sport = peer_port;
        tuple.ipv6.dport = local_port;
    }
    if (protocol == PROTOCOL_TCP)
        found = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
    else
        found = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
    if (!found)
        return false;
    bool counts = protocol != PROTOCOL_TCP ||
                  (found->state != BPF_TCP_LISTEN && found->state != BPF_TCP_TIME_WAIT);
    bpf_sk_release(found);
    return counts;
}

/* Addresses that no host has, or that would reach more than one: RFC 1122, 3.2.1.3; RFC 4291. */
static __always_inline bool is_forbidden_form(const union rf_mirror_address *address, bool is_ipv4)
{
    if (is_ipv4) {
        uint8_t first = address->bytes[12];
        return first == 0 || first == 127 || first >= 224; /* multicast, 240/4, broadcast */
    }
    if (address->bytes[0] == 0xff || is_v4_mapped(address))
        return true;
    return address->halves[0] == 0 && address->words[2] == 0 &&
           (address->words[3] == 0 || address->words[3] == bpf_htonl(1));
}

/* Whether nothing may ever be sent to this address. */
static __always_inline bool is_forbidden(const union rf_mirror_address *address, bool is_ipv4)
{
    if (is_forbidden_form(address, is_ipv4))
        return true;
    return is_in_sieve(RF_MIRROR_SIEVE_NEVER(rf_mirror_hash(address, 0) >> 16)) &&
           bpf_map_lookup_elem(&never_map, address);
}

/* Whether the sender's MAC address is a group's: an answer to it would multiply. */
static __always_inline bool is_from_group(struct __sk_buff *skb, const struct packet *packet)
{
    uint8_t first;

    if (packet->link_length == 0 || load(skb, 6, 6, &first, sizeof(first)) < 0)
        return false;
    return first & 1;
}

#endif
