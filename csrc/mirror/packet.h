/*
 * packet.h - what a packet is: headers found, lengths checked, ports known.
 *
 * Packet bytes are read by bpf_skb_load_bytes alone. Pointers into the packet
 * at offsets that vary would be quicker by some nanoseconds, but the verifier
 * refuses them to a process without CAP_PERFMON.
 *
 * What parse_packet refuses is for the stack, which knows what to do with it.
 */
#ifndef RF_MIRROR_PACKET_H
#define RF_MIRROR_PACKET_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"

#define LINK_HEADER_LENGTH 14 /* Ethernet; tags are in the metadata, or told apart below */
#define EXTENSION_HEADERS_MAX 8
#define OPTIONS_MAX 8

/*
 * Before a loop: without CAP_PERFMON the verifier also follows what a processor
 * may do when it guesses wrong, and in a loop it might guess so for ever.
 */
#define UNROLL _Pragma("clang loop unroll(full)")

enum {
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_IPV6 = 0x86dd,
    ETHERTYPE_VLAN = 0x8100, /* IEEE 802.1Q */
    ETHERTYPE_QINQ = 0x88a8, /* IEEE 802.1ad */
};

enum {
    PROTOCOL_HOP_BY_HOP = 0,
    PROTOCOL_ICMP = 1,
    PROTOCOL_TCP = 6,
    PROTOCOL_UDP = 17,
    PROTOCOL_FRAGMENT = 44,
    PROTOCOL_ICMPV6 = 58,
    PROTOCOL_DESTINATION_OPTIONS = 60,
};

enum {
    FRAGMENT_OFFSET_IPV4 = 0x1fff,
    FRAGMENT_MORE_IPV4 = 0x2000,
    FRAGMENT_OFFSET_IPV6 = 0xfff8,
    FRAGMENT_MORE_IPV6 = 0x0001,
};

enum {
    OPTION_END = 0,
    OPTION_NOP = 1,
    OPTION_LSRR = 131, /* RFC 791: loose and strict source and record route */
    OPTION_SSRR = 137,
};

enum {
    TCP_SYN = 0x02,
    TCP_RST = 0x04,
    TCP_ACK = 0x10,
};

struct packet {
    union rf_mirror_address source;
    union rf_mirror_address destination;
    union {
        struct iphdr v4;
        struct ipv6hdr v6;
    } header;
    uint32_t link_length; /* of the link header without tags: 14 or 0 */
    uint32_t l3;          /* offsets from skb->data */
    uint32_t l4;
    uint32_t length;    /* from l3 to the end, as IP says */
    uint32_t sequence;  /* TCP, network byte order */
    uint16_t ports[2];  /* source, destination; network byte order */
    uint8_t is_ipv4;    /* else IPv6 */
    uint8_t protocol;   /* the transport's */
    uint8_t fragmented; /* this is a first fragment */
    uint8_t tcp_flags;
    uint8_t ttl; /* IPv6: hop limit */
};

/* A SYN that opens a connection. Odd company (FIN, RST) does not make it another. */
static __always_inline bool is_syn(const struct packet *packet)
{
    return packet->protocol == PROTOCOL_TCP &&
           (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/*
 * The port that a rewrite is about. Both are read before one is picked: the
 * verifier takes no address on the stack that is computed.
 */
static __always_inline uint16_t port_of(const struct packet *packet, bool is_source)
{
    uint16_t source = *(const volatile uint16_t *)&packet->ports[0];
    uint16_t destination = *(const volatile uint16_t *)&packet->ports[1];

    return is_source ? source : destination;
}

static __always_inline bool is_v4_mapped(const union rf_mirror_address *address)
{
    return address->halves[0] == 0 && address->words[2] == bpf_htonl(0xffff);
}

static __always_inline void map_v4(union rf_mirror_address *ret_address, uint32_t v4)
{
    ret_address->halves[0] = 0;
    ret_address->words[2] = bpf_htonl(0xffff);
    ret_address->words[3] = v4;
}

/*
 * Whether IPv4 options say where to route, for then the answer's way is not
 * ours to choose. More of them than anyone sends may hide such a one: they are
 * not looked through to the end, for the verifier walks every way there is.
 */
static __always_inline bool is_source_routed(struct __sk_buff *skb, uint32_t at, uint32_t end)
{
    UNROLL
    for (int i = 0; i < OPTIONS_MAX; i++) {
        uint8_t option[2];
        if (at + 2 > end || bpf_skb_load_bytes(skb, at, option, sizeof(option)) < 0)
            return false;
        if (option[0] == OPTION_LSRR || option[0] == OPTION_SSRR)
            return true;
        if (option[0] == OPTION_END)
            return false;
        if (option[0] != OPTION_NOP && option[1] < 2)
            return true; /* malformed: for the stack as well */
        at += option[0] == OPTION_NOP ? 1 : option[1];
    }
    return true;
}

/* Finds the transport header of an IPv4 packet at packet->l3. */
static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *packet, bool quoted)
{
    struct iphdr *header = &packet->header.v4;
    uint32_t left = skb->len - packet->l3;

    if (bpf_skb_load_bytes(skb, packet->l3, header, sizeof(*header)) < 0)
        return -1;
    uint32_t header_length = header->ihl * 4U;
    if (header->version != 4 || header_length < sizeof(*header))
        return -1;
    uint16_t fragment = bpf_ntohs(header->frag_off);
    if (fragment & FRAGMENT_OFFSET_IPV4)
        return -1;
    packet->fragmented = (fragment & FRAGMENT_MORE_IPV4) != 0;
    packet->length = bpf_ntohs(header->tot_len);
    /* Segments of more than 64 kB between offloading hosts ("BIG TCP") have a length of 0. */
    if (packet->length == 0 && skb->gso_size != 0)
        packet->length = left;
    if (!quoted && (packet->length > left || packet->length < header_length))
        return -1;
    packet->l4 = packet->l3 + header_length;
    if (header_length > sizeof(*header) &&
        is_source_routed(skb, packet->l3 + sizeof(*header), packet->l4))
        return -1;
    packet->is_ipv4 = 1;
    packet->protocol = header->protocol;
    packet->ttl = header->ttl;
    map_v4(&packet->source, header->saddr);
    map_v4(&packet->destination, header->daddr);
    return 0;
}

/* Walks over the extension headers from packet->l4, whose type is `next`. */
static __always_inline int skip_extensions(struct __sk_buff *skb, struct packet *packet,
                                           uint8_t next)
{
    UNROLL
    for (int i = 0; i <= EXTENSION_HEADERS_MAX; i++) {
        uint8_t head[4]; /* next header, length, then the fragment's offset */
        if (next == PROTOCOL_TCP || next == PROTOCOL_UDP || next == PROTOCOL_ICMPV6) {
            packet->protocol = next;
            return 0;
        }
        if (bpf_skb_load_bytes(skb, packet->l4, head, sizeof(head)) < 0)
            return -1;
        if (next == PROTOCOL_FRAGMENT) {
            uint16_t fragment = (uint16_t)(head[2] << 8 | head[3]);
            if ((fragment & FRAGMENT_OFFSET_IPV6) || !(fragment & FRAGMENT_MORE_IPV6))
                return -1;
            packet->fragmented = 1;
            packet->l4 += 8;
        } else if (next == PROTOCOL_DESTINATION_OPTIONS ||
                   (next == PROTOCOL_HOP_BY_HOP && i == 0)) {
            packet->l4 += (head[1] + 1U) * 8;
        } else {
            return -1;
        }
        next = head[0];
    }
    return -1;
}

/* Finds the transport header of an IPv6 packet at packet->l3. */
static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *packet, bool quoted)
{
    struct ipv6hdr *header = &packet->header.v6;
    uint32_t left = skb->len - packet->l3;

    if (bpf_skb_load_bytes(skb, packet->l3, header, sizeof(*header)) < 0)
        return -1;
    if (header->version != 6)
        return -1;
    packet->length = bpf_ntohs(header->payload_len) + (uint32_t)sizeof(*header);
    if (header->payload_len == 0 && skb->gso_size != 0)
        packet->length = left;
    if (!quoted && packet->length > left)
        return -1;
    packet->is_ipv4 = 0;
    packet->ttl = header->hop_limit;
    packet->fragmented = 0;
    packet->l4 = packet->l3 + (uint32_t)sizeof(*header);
    __builtin_memcpy(&packet->source, &header->saddr, sizeof(packet->source));
    __builtin_memcpy(&packet->destination, &header->daddr, sizeof(packet->destination));
    /* Such addresses are never on the wire; in the tables they mean IPv4. */
    if (is_v4_mapped(&packet->destination))
        return -1;
    return skip_extensions(skb, packet, header->nexthdr);
}

/* Reads ports and flags, and checks the lengths that TCP and UDP know. */
static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *packet)
{
    uint32_t left = packet->length - (packet->l4 - packet->l3);

    packet->tcp_flags = 0;
    packet->sequence = 0;
    if (packet->length < packet->l4 - packet->l3)
        return -1;
    if (packet->fragmented) /* a first fragment may end within the header */
        return left < 8 ? -1 : bpf_skb_load_bytes(skb, packet->l4, packet->ports, 4);
    if (packet->protocol == PROTOCOL_TCP) {
        uint32_t words[5];
        if (left < sizeof(words) || bpf_skb_load_bytes(skb, packet->l4, words, sizeof(words)) < 0)
            return -1;
        __builtin_memcpy(packet->ports, &words[0], 4);
        packet->sequence = words[1];
        uint32_t offset_flags = bpf_ntohl(words[3]);
        uint32_t header_length = (offset_flags >> 28) * 4;
        packet->tcp_flags = (uint8_t)(offset_flags >> 16);
        return header_length < sizeof(words) || header_length > left ? -1 : 0;
    }
    uint16_t words[4];
    if (left < sizeof(words) || bpf_skb_load_bytes(skb, packet->l4, words, sizeof(words)) < 0)
        return -1;
    __builtin_memcpy(packet->ports, words, 4);
    uint32_t length = bpf_ntohs(words[2]);
    if (length == 0 && skb->gso_size != 0)
        return 0;
    return length < sizeof(words) || length > left ? -1 : 0;
}

/* Finds the IP header behind a tag that the device left in the frame, then all the rest. */
static __always_inline int parse_packet(struct __sk_buff *skb, struct packet *packet)
{
    uint16_t type = (uint16_t)skb->protocol;

    packet->l3 = packet->link_length;
    if (type == bpf_htons(ETHERTYPE_VLAN) || type == bpf_htons(ETHERTYPE_QINQ)) {
        uint16_t tag[2];
        if (packet->link_length == 0 || bpf_skb_load_bytes(skb, packet->l3, tag, sizeof(tag)) < 0)
            return -1;
        type = tag[1];
        packet->l3 += sizeof(tag);
    }
    if (type == bpf_htons(ETHERTYPE_IPV4))
        return parse_ipv4(skb, packet, false);
    if (type == bpf_htons(ETHERTYPE_IPV6))
        return parse_ipv6(skb, packet, false);
    return -1;
}

#endif
