/*
 * handshake.h - how long the service's host takes to answer a SYN, of one connection in 64.
 *
 * Which ones is a matter of address and port, so that SYN and SYN|ACK agree
 * without a look at a map. A SYN that is sent again starts its time anew.
 */
#ifndef RF_MIRROR_HANDSHAKE_H
#define RF_MIRROR_HANDSHAKE_H

#include "maps.h"

/* Multiplicative hashing: Knuth, The Art of Computer Programming, 6.4. */
static __always_inline bool is_sampled(const union rf_mirror_address *peer, uint16_t port)
{
    uint32_t mixed = peer->words[0] ^ peer->words[1] ^ peer->words[2] ^ peer->words[3];
    mixed = (mixed ^ port) * 2654435769U;
    return mixed < UINT32_MAX / RF_MIRROR_HANDSHAKE_SAMPLE;
}

/* Notes when the SYN of peer and port was sent on. */
static __always_inline void start_handshake(const union rf_mirror_address *peer, uint16_t port)
{
    struct rf_mirror_handshake_key key = {.peer = *peer, .port = port};

    if (!is_sampled(peer, port))
        return;
    uint64_t now_ns = bpf_ktime_get_ns();
    bpf_map_update_elem(&handshakes_map, &key, &now_ns, BPF_ANY);
}

/* The slot of a time: n for 2^n up to 2^(n+1) microseconds; below 1 it is 0. */
static __always_inline uint32_t slot_of(uint64_t elapsed_ns)
{
    uint64_t us = elapsed_ns / 1000;
    uint32_t slot = 0;

    UNROLL
    for (int step = 16; step > 0; step /= 2) {
        if (us >> step) {
            us >>= step;
            slot += (uint32_t)step;
        }
    }
    return slot;
}

/* Takes the time of the SYN out again, and counts what has passed since. */
static __always_inline void end_handshake(const union rf_mirror_address *peer, uint16_t port)
{
    struct rf_mirror_handshake_key key = {.peer = *peer, .port = port};

    if (!is_sampled(peer, port))
        return;
    const uint64_t *started_ns = bpf_map_lookup_elem(&handshakes_map, &key);
    if (!started_ns)
        return;
    uint32_t slot = slot_of(bpf_ktime_get_ns() - *started_ns);
    uint64_t *found = bpf_map_lookup_elem(&histogram_map, &slot); /* none: beyond an hour */
    if (found)
        *found += 1;
    bpf_map_delete_elem(&handshakes_map, &key);
}

#endif
