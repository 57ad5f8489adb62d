/*
 * shared.h - what the BPF program and its loader both know: maps, keys, values.
 *
 * Addresses are 16 bytes, IPv4 ones v4-mapped (RFC 4291, 2.5.5.2). Ports are in
 * network byte order, as packets have them. No struct has padding: the kernel
 * compares keys byte by byte, and the verifier refuses to read bytes that were
 * never written.
 */
#ifndef RF_MIRROR_SHARED_H
#define RF_MIRROR_SHARED_H

#include <stdint.h>

#define RF_MIRROR_ROUTES_MAX 65536
#define RF_MIRROR_NEVER_MAX 65536
#define RF_MIRROR_NETWORKS_MAX 65536
#define RF_MIRROR_INTERFACES_MAX 1024
#define RF_MIRROR_HANDSHAKES_MAX 4096
#define RF_MIRROR_SIEVE_WORDS 3072 /* 64 bits each */
#define RF_MIRROR_HISTOGRAM_SLOTS 32

/* One connection in so many (a power of two) has its handshake timed. */
#define RF_MIRROR_HANDSHAKE_SAMPLE 64

union rf_mirror_address {
    uint8_t bytes[16];
    uint32_t words[4];
    uint64_t halves[2];
};

enum {
    RF_MIRROR_REQUEST = 0, /* keyed by the destination port: the listening port */
    RF_MIRROR_REPLY = 1,   /* keyed by the source port: the return port */
};

struct rf_mirror_route_key {
    uint8_t direction;
    uint8_t protocol;
    uint16_t port;
    union rf_mirror_address local;
} __attribute__((packed, aligned(4)));

/*
 * The sieve: bits that tell most packets, without a look at a hash that would
 * miss the cache, that a table does not know them. What the tables know has its
 * bit set. The first 65,536 bits are of listening ports, the next of return
 * ports (that is, by direction; ports as in a route's key), the last of never
 * addresses, by a hash.
 */
#define RF_MIRROR_SIEVE_ROUTE(direction, port) ((direction) << 16 | (uint32_t)(port))
#define RF_MIRROR_SIEVE_NEVER(hash) (2U << 16 | (uint32_t)(hash))

/* Multiplicative hashing (Knuth, The Art of Computer Programming, 6.4): use its upper bits. */
static inline uint32_t rf_mirror_hash(const union rf_mirror_address *address, uint16_t port)
{
    uint32_t mixed =
        address->words[0] ^ address->words[1] ^ address->words[2] ^ address->words[3] ^ port;

    return mixed * 2654435769U;
}

struct rf_mirror_route_value {
    uint16_t port;    /* what `port` of the key becomes */
    uint16_t mapping; /* index into the counters */
};

struct rf_mirror_network_key {
    uint32_t prefix_length;
    union rf_mirror_address address;
} __attribute__((packed, aligned(4)));

/* What a connection is told apart by while its handshake is timed. */
struct rf_mirror_handshake_key {
    union rf_mirror_address peer;
    uint32_t port;
} __attribute__((packed, aligned(4)));

/* What the table of networks says of one; DEFAULT: settings.default_allow. */
enum {
    RF_MIRROR_DENY = 0,
    RF_MIRROR_ALLOW = 1,
    RF_MIRROR_DEFAULT = 2,
};

/* Rates are in the form that limit.h wants; an interval of 0 is no limit. */
struct rf_mirror_settings {
    uint64_t deadline_ns; /* of CLOCK_MONOTONIC: after it all goes to the stack */
    uint64_t interval_ns;
    uint64_t tolerance_ns;
    uint64_t source_interval_ns;
    uint64_t source_tolerance_ns;
    uint32_t accepting;
    uint32_t default_allow;
    uint32_t networks;      /* 0: there are none, nothing to look up */
    uint32_t only_ethernet; /* all interfaces have link headers of 14 bytes: likewise */
};

enum {
    RF_MIRROR_BUCKET_CONNECTIONS = 0,
    RF_MIRROR_BUCKET_ROUTERS = 1, /* ICMP errors from others than the peer */
    RF_MIRROR_BUCKET_MAX = 2,
};

/* Every counter of a mapping: identifier, name, and what it counts. */
#define RF_MIRROR_COUNTERS(X)                                                                     \
    X(ACCEPTED, "accepted", "new connections (UDP: datagrams) sent on")                           \
    X(CONNECTED, "connected", "SYN|ACKs that came back")                                          \
    X(REFUSED, "refused", "connections that the service's host refused")                          \
    X(UNREACHABLE, "unreachable", "other unreachables turned round to the peer")                  \
    X(LIMITED_DENIED, "limited_denied", "new connections refused: network denied")                \
    X(LIMITED_RATE, "limited_rate", "new connections refused: rate of all")                       \
    X(LIMITED_SOURCE, "limited_source", "new connections refused: rate of the source")            \
    X(PACKETS_TO_SERVICE, "packets_to_service", "packets sent on as requests")                    \
    X(BYTES_TO_SERVICE, "bytes_to_service", "their IP lengths")                                   \
    X(PACKETS_TO_PEER, "packets_to_peer", "packets sent on as replies")                           \
    X(BYTES_TO_PEER, "bytes_to_peer", "their IP lengths")                                         \
    X(DROPPED_TTL, "dropped_ttl", "packets whose TTL or hop limit was used up")                   \
    X(DROPPED_FRAGMENT, "dropped_fragment", "first fragments of TCP")                             \
    X(DROPPED_DENIED, "dropped_denied", "packets of denied networks that open nothing")           \
    X(DROPPED_ICMP, "dropped_icmp", "ICMP errors of routers past their rate")                     \
    X(FORBIDDEN, "forbidden", "packets from addresses that are never answered")                   \
    X(ICMP_TURNED, "icmp_turned", "ICMP errors turned round, packet too big included")

enum {
#define RF_MIRROR_COUNTER_ENUM(id, name, what) RF_MIRROR_COUNTER_##id,
    RF_MIRROR_COUNTERS(RF_MIRROR_COUNTER_ENUM)
#undef RF_MIRROR_COUNTER_ENUM
        RF_MIRROR_COUNTER_MAX
};

/*
 * Every map: identifier, name, type, key, value, entries (0: given at load
 * time), flags. Tables that the control plane writes are not preallocated:
 * their bounds are far above what most hosts need. Those that packets write
 * are, so that a flood can neither grow nor exhaust anything.
 *
 * Counters lie flat, mapping by mapping, each an entry of its own: without
 * CAP_PERFMON the verifier takes no index that varies into a value.
 */
#define RF_MIRROR_MAPS(X)                                                                         \
    X(ROUTES, routes, HASH, struct rf_mirror_route_key, struct rf_mirror_route_value,             \
      RF_MIRROR_ROUTES_MAX, BPF_F_NO_PREALLOC)                                                    \
    X(NEVER, never, HASH, union rf_mirror_address, uint8_t, RF_MIRROR_NEVER_MAX,                  \
      BPF_F_NO_PREALLOC)                                                                          \
    X(NETWORKS, networks, LPM_TRIE, struct rf_mirror_network_key, uint8_t,                        \
      RF_MIRROR_NETWORKS_MAX, BPF_F_NO_PREALLOC)                                                  \
    X(INTERFACES, interfaces, HASH, uint32_t, uint32_t, RF_MIRROR_INTERFACES_MAX,                 \
      BPF_F_NO_PREALLOC)                                                                          \
    X(SIEVE, sieve, ARRAY, uint32_t, uint64_t, RF_MIRROR_SIEVE_WORDS, 0)                          \
    X(SETTINGS, settings, ARRAY, uint32_t, struct rf_mirror_settings, 1, 0)                       \
    X(BUCKETS, buckets, ARRAY, uint32_t, uint64_t, RF_MIRROR_BUCKET_MAX, 0)                       \
    X(SOURCES, sources, LRU_HASH, union rf_mirror_address, uint64_t, 0, 0)                        \
    X(COUNTERS, counters, PERCPU_ARRAY, uint32_t, uint64_t, 0, 0)                                 \
    X(HANDSHAKES, handshakes, LRU_HASH, struct rf_mirror_handshake_key, uint64_t,                 \
      RF_MIRROR_HANDSHAKES_MAX, 0)                                                                \
    X(HISTOGRAM, histogram, PERCPU_ARRAY, uint32_t, uint64_t, RF_MIRROR_HISTOGRAM_SLOTS, 0)

enum {
#define RF_MIRROR_MAP_ENUM(id, name, ...) RF_MIRROR_MAP_##id,
    RF_MIRROR_MAPS(RF_MIRROR_MAP_ENUM)
#undef RF_MIRROR_MAP_ENUM
        RF_MIRROR_MAP_MAX
};

#endif
