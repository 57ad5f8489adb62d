/*
 * rewrite.h - turns a packet round and sends it back out of its interface.
 *
 * Checksums are never computed anew but moved by the difference, so that a
 * wrong one stays wrong for the receiver to see. Swapping the addresses leaves
 * all sums as they are. What is left is the port, which changes the
 * transport's sum (bpf_l4_csum_replace knows when that sum is still to be
 * computed by a device), and the TTL, which changes the one of IPv4. So the
 * sum over the whole packet, which skb->csum may hold, stays the same too.
 */
#ifndef RF_MIRROR_REWRITE_H
#define RF_MIRROR_REWRITE_H

#include "maps.h"

/* Offsets in the transport headers. */
enum {
    TCP_CHECKSUM = 16,
    UDP_CHECKSUM = 6,
};

/* A 16-bit checksum after a 16-bit word changed (RFC 1624, equation 3). */
static __always_inline uint16_t move_checksum(uint16_t checksum, uint16_t from, uint16_t to)
{
    uint32_t sum = (uint16_t)~checksum + (uint32_t)(uint16_t)~from + to;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static __always_inline int swap_link(struct __sk_buff *skb, const struct packet *packet)
{
    uint32_t to[3];

    if (packet->link_length == 0)
        return 0;
    if (load(skb, 0, 0, to, sizeof(to)) < 0)
        return -1;
    /* Each address is a word and a half. */
    uint32_t back[3] = {to[1] >> 16 | to[2] << 16, to[2] >> 16 | to[0] << 16,
                        to[0] >> 16 | to[1] << 16};
    return store(skb, 0, 0, back, sizeof(back));
}

/* Counts the TTL down in the header that was read; it is for the caller to store it. */
static __always_inline void age(struct packet *packet)
{
    if (packet->is_ipv4) {
        struct iphdr *header = &packet->header.v4;
        uint16_t before = (uint16_t)(header->ttl | header->protocol << 8); /* as in memory */
        header->ttl--;
        uint16_t after = (uint16_t)(header->ttl | header->protocol << 8);
        header->check = move_checksum(header->check, before, after);
    } else {
        packet->header.v6.hop_limit--;
    }
}

/* Swaps the addresses in the header that was read. */
static __always_inline void swap_addresses(struct packet *packet)
{
    if (packet->is_ipv4) {
        packet->header.v4.saddr = packet->destination.words[3];
        packet->header.v4.daddr = packet->source.words[3];
    } else {
        __builtin_memcpy(&packet->header.v6.saddr, &packet->destination, 16);
        __builtin_memcpy(&packet->header.v6.daddr, &packet->source, 16);
    }
}

static __always_inline int store_header(struct __sk_buff *skb, const struct packet *packet)
{
    if (packet->is_ipv4)
        return store(skb, packet->l3, LINK_HEADER_LENGTH, &packet->header.v4,
                     sizeof(packet->header.v4));
    return store(skb, packet->l3, LINK_HEADER_LENGTH, &packet->header.v6,
                 sizeof(packet->header.v6));
}

/* Replaces one port and moves the transport's checksum. */
static __always_inline int set_port(struct __sk_buff *skb, const struct packet *packet,
                                    bool is_source, uint16_t port)
{
    uint64_t flags = sizeof(port);
    uint32_t at = packet->l4 + TCP_CHECKSUM;
    uint16_t before = port_of(packet, is_source);

    if (port == before)
        return 0;
    if (packet->protocol == PROTOCOL_UDP) {
        at = packet->l4 + UDP_CHECKSUM;
        flags |= BPF_F_MARK_MANGLED_0; /* 0 means none, and stays */
    }
    if (bpf_l4_csum_replace(skb, at, before, port, flags) < 0)
        return -1;
    uint32_t ports = is_source ? port | (uint32_t)packet->ports[1] << 16
                               : packet->ports[0] | (uint32_t)port << 16; /* as in memory */
    if (packet->is_ipv4)
        return store(skb, packet->l4, TRANSPORT_IPV4, &ports, sizeof(ports));
    return store(skb, packet->l4, TRANSPORT_IPV6, &ports, sizeof(ports));
}

/* Sends the packet back; a part of it that could not be written drops it. */
static __always_inline int send_back(struct __sk_buff *skb)
{
    return (int)bpf_redirect(skb->ifindex, 0);
}

#endif
