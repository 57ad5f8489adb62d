/*
 * refuse.h - refuses a connection as its service's host would: RST|ACK, made of the SYN itself.
 *
 * RFC 9293, 3.10.7.1: sequence number 0, acknowledged is the SYN. Options and
 * data are cut off, so that it is never longer than what came in.
 */
#ifndef RF_MIRROR_REFUSE_H
#define RF_MIRROR_REFUSE_H

#include "rewrite.h"

#define RESET_LENGTH 20

static __always_inline uint16_t fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/*
 * Whether the transport's checksum is still to be computed by a device
 * (CHECKSUM_PARTIAL), which no field tells: the helper leaves it alone then.
 * Ends with the checksum changed, for the caller writes it anyway.
 */
static __always_inline int is_checksum_partial(struct __sk_buff *skb, uint32_t at)
{
    uint16_t before, after;

    if (bpf_skb_load_bytes(skb, at, &before, sizeof(before)) < 0 ||
        bpf_l4_csum_replace(skb, at, 0, 1, sizeof(before)) < 0 ||
        bpf_skb_load_bytes(skb, at, &after, sizeof(after)) < 0)
        return -1;
    return before == after;
}

/* The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1) of a reset. */
static __always_inline uint32_t sum_pseudo_header(const struct packet *packet)
{
    uint32_t sum = bpf_htons(RESET_LENGTH) + bpf_htons(PROTOCOL_TCP);
    int first = packet->is_ipv4 ? 6 : 0; /* the rest of a v4-mapped address is no part of it */

    UNROLL
    for (int i = 0; i < 8; i++) {
        if (i < first)
            continue;
        sum += packet->source.words[i / 2] >> (16 * (i % 2)) & 0xffff;
        sum += packet->destination.words[i / 2] >> (16 * (i % 2)) & 0xffff;
    }
    return sum;
}

/* The IP header of what comes back: shorter, older, addresses swapped. */
static __always_inline void shorten_header(struct packet *packet)
{
    uint32_t length = packet->l4 - packet->l3 + RESET_LENGTH;

    swap_addresses(packet);
    age(packet);
    if (packet->is_ipv4) {
        struct iphdr *header = &packet->header.v4;
        uint16_t total = bpf_htons((uint16_t)length);
        header->check = move_checksum(header->check, header->tot_len, total);
        header->tot_len = total;
    } else {
        packet->header.v6.payload_len =
            bpf_htons((uint16_t)(length - (uint32_t)sizeof(packet->header.v6)));
    }
}

/* Sends the reset for a SYN; anything that fails drops it. */
static __noinline int refuse_connection(struct __sk_buff *skb, struct packet *packet)
{
    if (packet->tcp_flags & TCP_RST) /* a reset is never answered by one */
        return TC_ACT_SHOT;
    if (bpf_skb_change_tail(skb, packet->l4 + RESET_LENGTH, 0) < 0)
        return TC_ACT_SHOT;
    int partial = is_checksum_partial(skb, packet->l4 + TCP_CHECKSUM);
    if (partial < 0)
        return TC_ACT_SHOT;

    uint32_t words[RESET_LENGTH / 4] = {
        (uint32_t)packet->ports[1] | (uint32_t)packet->ports[0] << 16, /* as in memory */
        0,
        bpf_htonl(bpf_ntohl(packet->sequence) + 1),
        bpf_htonl(0x50000000U | (uint32_t)(TCP_RST | TCP_ACK) << 16),
        0,
    };
    uint32_t sum = sum_pseudo_header(packet);
    if (partial) {
        words[4] = fold(sum);
    } else {
        UNROLL
        for (int i = 0; i < RESET_LENGTH / 4; i++)
            sum += (words[i] & 0xffff) + (words[i] >> 16);
        words[4] = (uint16_t)~fold(sum);
    }
    shorten_header(packet);
    if (bpf_skb_store_bytes(skb, packet->l4, words, sizeof(words), 0) < 0 ||
        store_header(skb, packet) < 0 || swap_link(skb, packet) < 0)
        return TC_ACT_SHOT;
    return send_back(skb);
}

#endif
