/*
 * limit.h - who may open a connection: networks, and the rates of all and of a source.
 *
 * A token bucket is one number, the "theoretical arrival time" of the generic
 * cell rate algorithm (ITU-T I.371, annex A): each connection moves it on by
 * one interval, and one that would move it further than the tolerance ahead of
 * the clock is refused. It is read and written without a lock: when two CPUs
 * race, one token is not paid for, no more.
 *
 * The bucket of all is one for all CPUs and not a share for each: receive
 * queues do not deal evenly, so that a share would refuse connections while
 * another is not used up. Only new connections touch its cache line.
 */
#ifndef RF_MIRROR_LIMIT_H
#define RF_MIRROR_LIMIT_H

#include "maps.h"

#define ROUTERS_INTERVAL_NS 10000000ULL /* 100 a second */
#define ROUTERS_TOLERANCE_NS (99 * ROUTERS_INTERVAL_NS)

/* Where the bucket stands once it is brought up to now. */
static __always_inline uint64_t bucket_at(const uint64_t *bucket, uint64_t now_ns)
{
    uint64_t at_ns = *(const volatile uint64_t *)bucket;
    return at_ns < now_ns ? now_ns : at_ns;
}

static __always_inline bool is_bucket_empty(const uint64_t *bucket, uint64_t now_ns,
                                            uint64_t tolerance_ns)
{
    return bucket_at(bucket, now_ns) - now_ns > tolerance_ns;
}

static __always_inline void take_token(uint64_t *bucket, uint64_t now_ns, uint64_t interval_ns)
{
    *(volatile uint64_t *)bucket = bucket_at(bucket, now_ns) + interval_ns;
}

/* What a source is for its rate: an IPv4 address, or the /64 that one IPv6 host can pick from. */
static __always_inline void name_source(const struct packet *packet,
                                        union rf_mirror_address *ret_source)
{
    *ret_source = packet->source;
    if (!packet->is_ipv4)
        ret_source->halves[1] = 0;
}

/* Whether the source has a token left; takes it. */
static __always_inline bool take_source_token(const struct packet *packet,
                                              const struct rf_mirror_settings *settings,
                                              uint64_t now_ns)
{
    union rf_mirror_address source;

    name_source(packet, &source);
    uint64_t *bucket = bpf_map_lookup_elem(&sources_map, &source);
    if (!bucket) {
        uint64_t first_ns = now_ns + settings->source_interval_ns;
        /* Should this fail, then for want of a free entry: the source is new, so it may pass. */
        bpf_map_update_elem(&sources_map, &source, &first_ns, BPF_ANY);
        return true;
    }
    if (is_bucket_empty(bucket, now_ns, settings->source_tolerance_ns))
        return false;
    take_token(bucket, now_ns, settings->source_interval_ns);
    return true;
}

static __always_inline bool is_denied(const union rf_mirror_address *address,
                                      const struct rf_mirror_settings *settings)
{
    struct rf_mirror_network_key key = {.prefix_length = 128, .address = *address};

    const uint8_t *verdict = NULL;
    if (settings->networks)
        verdict = bpf_map_lookup_elem(&networks_map, &key);
    if (!verdict || *verdict == RF_MIRROR_DEFAULT)
        return !settings->default_allow;
    return *verdict == RF_MIRROR_DENY;
}

/*
 * Why a new connection is refused: a counter, or RF_MIRROR_COUNTER_ACCEPTED.
 * The token of all is taken last, so that a source past its own rate does not
 * eat what the others live on.
 */
static __always_inline uint32_t judge_connection(const struct packet *packet,
                                                 const struct rf_mirror_settings *settings)
{
    uint32_t index = RF_MIRROR_BUCKET_CONNECTIONS;
    uint64_t *bucket;
    uint64_t now_ns;

    if (is_denied(&packet->source, settings))
        return RF_MIRROR_COUNTER_LIMITED_DENIED;
    if (!settings->interval_ns && !settings->source_interval_ns)
        return RF_MIRROR_COUNTER_ACCEPTED;
    now_ns = bpf_ktime_get_ns();
    bucket = bpf_map_lookup_elem(&buckets_map, &index);
    if (!bucket)
        return RF_MIRROR_COUNTER_LIMITED_RATE;
    if (settings->interval_ns && is_bucket_empty(bucket, now_ns, settings->tolerance_ns))
        return RF_MIRROR_COUNTER_LIMITED_RATE;
    if (settings->source_interval_ns && !take_source_token(packet, settings, now_ns))
        return RF_MIRROR_COUNTER_LIMITED_SOURCE;
    if (settings->interval_ns)
        take_token(bucket, now_ns, settings->interval_ns);
    return RF_MIRROR_COUNTER_ACCEPTED;
}

/* Whether one more ICMP error of a router may be sent on. */
static __always_inline bool take_router_token(void)
{
    uint32_t index = RF_MIRROR_BUCKET_ROUTERS;
    uint64_t now_ns = bpf_ktime_get_ns();
    uint64_t *bucket = bpf_map_lookup_elem(&buckets_map, &index);

    if (!bucket || is_bucket_empty(bucket, now_ns, ROUTERS_TOLERANCE_NS))
        return false;
    take_token(bucket, now_ns, ROUTERS_INTERVAL_NS);
    return true;
}

#endif
