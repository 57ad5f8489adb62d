/*
 * reflector.h - the one public header of the core.
 *
 * An engine listens on the ports of its mappings and connects every accepted
 * connection back to the address that it came from, at the return port. All
 * functions return 0 or a negative errno value. Outputs are named ret_* and
 * are left alone on failure. Nothing here knows of Python.
 */
#ifndef REFLECTOR_H
#define REFLECTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RF_MAX_WORKERS 256
#define RF_MAX_MAPPINGS 1024
#define RF_MAX_NETWORKS (1U << 20)
#define RF_MAX_CONNECTIONS (1U << 24)
#define RF_MAX_TIMEOUT_MS (7U * 24 * 3600 * 1000)

/* Opaque: made by rf_engine_new, ended by rf_engine_free. */
struct rf_engine;

/* One port that is listened on, and the port of the peer that it returns to. */
struct rf_mapping {
    const char *address;  /* numeric, "%scope" allowed; NULL: all of IPv4 and IPv6 */
    uint16_t port;        /* 0: the kernel picks a free one */
    uint16_t return_port; /* 0: the same number as the port */
};

/* A network of peers, for example 192.0.2.0 and 24. IPv4 is written as IPv4, never v4-mapped. */
struct rf_network {
    const char *address; /* numeric, the first one of the network */
    uint8_t length;      /* of the prefix, in bits */
    bool allow;          /* whether its peers are served */
};

struct rf_options {
    size_t size;                       /* sizeof(struct rf_options) */
    uint32_t workers;                  /* 0: one per usable CPU */
    uint32_t max_connections;          /* over all workers; 0: what the descriptors carry */
    uint32_t max_per_source;           /* per peer address, over all workers */
    uint32_t connect_timeout_ms;       /* of the return leg */
    uint32_t idle_timeout_ms;          /* no byte moved, both directions open */
    uint32_t half_close_timeout_ms;    /* no byte moved, one direction ended */
    bool share_ports;                  /* with other reflectors of this user that do so too */
    const char *return_source4;        /* address that IPv4 return legs leave from; */
    const char *return_source6;        /* NULL: the one that the peer dialled */
    const struct rf_network *networks; /* the longest prefix decides; a peer in none is served, */
    size_t networks_count;             /* unless any network is allowed */
};

/* Where a call failed, for a message that can name the mend. */
struct rf_failure {
    const char *syscall; /* "bind", ...: a string constant */
    int mapping;         /* index of the mapping at fault, or -1 */
};

/*
 * Every counter: identifier, name, and what it counts. The gauges, which can
 * fall, stand at the end and begin with ACTIVE.
 *
 * Each accepted connection gets one LEGS_* and, at its end, one CLOSED_*.
 */
#define RF_COUNTERS(X)                                                                            \
    X(ACCEPTED, "accepted", "connections accepted")                                               \
    X(LEGS_CONNECTED, "legs_connected", "return legs that connected")                             \
    X(LEGS_REFUSED, "legs_refused", "return legs that the peer refused")                          \
    X(LEGS_TIMED_OUT, "legs_timed_out", "return legs that got no answer in time")                 \
    X(LEGS_UNREACHABLE, "legs_unreachable", "return legs without a way to the peer")              \
    X(LEGS_LIMITED, "legs_limited", "return legs not tried: a limit of ours")                     \
    X(LEGS_STOPPED, "legs_stopped", "return legs cut short: the engine was stopped")              \
    X(LIMITED_SOURCE, "limited_source", "... because the peer had too many connections")          \
    X(LIMITED_DENIED, "limited_denied", "... because the peer's network is denied")               \
    X(LIMITED_LOOP, "limited_loop", "... because the leg would come back to a reflector port")    \
    X(LIMITED_RESOURCES, "limited_resources", "... because descriptors, ports or memory ran out") \
    X(BYTES_TO_SERVICE, "bytes_to_service", "bytes passed from the peer to its service")          \
    X(BYTES_TO_PEER, "bytes_to_peer", "bytes passed from the service to the peer")                \
    X(BYTES_SPLICED, "bytes_spliced", "bytes moved by splice(2)")                                 \
    X(BYTES_COPIED, "bytes_copied", "bytes moved through a buffer")                               \
    X(URGENT_BYTES, "urgent_bytes", "urgent (out-of-band) bytes passed on")                       \
    X(CLOSED_FINISHED, "closed_finished", "ended by a FIN from both sides")                       \
    X(CLOSED_RESET_BY_PEER, "closed_reset_by_peer", "ended by a RST from the peer")               \
    X(CLOSED_RESET_BY_SERVICE, "closed_reset_by_service", "ended by a RST from the service")      \
    X(CLOSED_IDLE, "closed_idle", "reset: no byte for the idle timeout")                          \
    X(CLOSED_HALF_CLOSE, "closed_half_close", "reset: half-closed and no byte for its timeout")   \
    X(CLOSED_LEG_FAILED, "closed_leg_failed", "reset: the return leg did not connect")            \
    X(CLOSED_RESOURCES, "closed_resources", "reset: descriptors or memory ran out")               \
    X(CLOSED_STOPPED, "closed_stopped", "reset: the engine was stopped")                          \
    X(PAUSES_CONNECTIONS, "pauses_connections", "times accepting paused at a connection limit")   \
    X(PAUSES_RESOURCES, "pauses_resources", "times accepting paused for want of descriptors "     \
                                            "or memory")                                          \
    X(ACTIVE, "active", "connections running")                                                    \
    X(SPARE_LEGS, "spare_legs", "idle sockets kept for the return legs to come")                  \
    X(PIPES_IN_USE, "pipes_in_use", "pipes that hold bytes in flight")                            \
    X(PIPES_IDLE, "pipes_idle", "pipes kept for reuse")                                           \
    X(BUFFERS_IN_USE, "buffers_in_use", "buffers that hold bytes in flight")

enum rf_counter {
#define RF_COUNTER_ID(id, name, help) RF_##id,
    RF_COUNTERS(RF_COUNTER_ID)
#undef RF_COUNTER_ID
        RF_COUNTER_MAX
};

struct rf_stats {
    uint64_t value[RF_COUNTER_MAX];
};

/* Name of a counter, or NULL past the last one. */
const char *rf_counter_name(unsigned counter);

/*
 * Binds and listens on every mapping; nothing is accepted yet. On failure
 * nothing stays bound and *ret_failure says where it failed.
 * Errors: -EINVAL (an option out of range, an address or a network that is none,
 * a network both allowed and denied), -ENOMEM,
 * and whatever socket, setsockopt, bind and listen return.
 */
int rf_engine_new(const struct rf_options *options, const struct rf_mapping *mappings,
                  size_t mappings_count, struct rf_engine **ret_engine,
                  struct rf_failure *ret_failure);

/* Starts the workers. Once only: -EALREADY afterwards. */
int rf_engine_start(struct rf_engine *engine, struct rf_failure *ret_failure);

/* The port that a mapping is bound to; 0 for an index out of range. */
uint16_t rf_engine_port(const struct rf_engine *engine, size_t mapping);
uint32_t rf_engine_workers(const struct rf_engine *engine);
uint32_t rf_engine_max_connections(const struct rf_engine *engine);

/*
 * Closes the listeners; a worker ends when its last connection has. Connections
 * that the kernel had already taken into the backlog are still served, as far
 * as the limits have room at that instant; the others are reset.
 */
void rf_engine_stop_accepting(struct rf_engine *engine);

/* Waits until all workers have ended: 0, or -ETIMEDOUT. */
int rf_engine_wait(struct rf_engine *engine, uint32_t timeout_ms);

/* Resets what still runs and joins the workers. Safe to repeat. */
void rf_engine_stop(struct rf_engine *engine);

/* Sums the counters of all workers; safe from any thread until rf_engine_free. */
void rf_engine_stats(const struct rf_engine *engine, struct rf_stats *ret_stats);

/* Stops and frees; NULL is fine. In a forked child, which has no workers, it does neither. */
void rf_engine_free(struct rf_engine *engine);

#endif
