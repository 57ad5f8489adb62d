/*
 * mirror.h - the loader of the BPF program: the public header of the mirror.
 *
 * A mirror is one loaded program with its maps, all owned by the process: the
 * kernel takes them away when the process ends, however it ends. (A filter of
 * clsact that names the program is the exception: see rf_mirror_keep_alive.)
 *
 * All functions return 0 or a negative errno value. Outputs are named ret_*
 * and are left alone on failure. A mirror is used by one thread at a time.
 * Nothing here knows of Python.
 */
#ifndef RF_MIRROR_MIRROR_H
#define RF_MIRROR_MIRROR_H

#include <stddef.h>
#include <stdint.h>

#include "shared.h"

#define RF_MIRROR_MAPPINGS_MAX 65536U
#define RF_MIRROR_SOURCES_MIN 1024U
#define RF_MIRROR_SOURCES_MAX (1U << 24)

struct rf_mirror_counters {
    uint64_t value[RF_MIRROR_COUNTER_MAX];
};

/* Handshakes timed: slot n is of 2^n up to 2^(n+1) microseconds, slot 0 also of less. */
struct rf_mirror_times {
    uint64_t slots[RF_MIRROR_HISTOGRAM_SLOTS];
};

/* Opaque: made by rf_mirror_new, ended by rf_mirror_free. */
struct rf_mirror;

/* Where rf_mirror_new failed, for a message that can name the mend. */
struct rf_mirror_failure {
    const char *syscall; /* "bpf", "open", ...: a string constant */
    const char *what;    /* the map, or "program": a string constant */
    char reason[256];    /* the last words of the verifier, or empty */
};

/* A mapping on one local address. Addresses are v4-mapped for IPv4. */
struct rf_mirror_route {
    uint8_t protocol; /* IPPROTO_TCP or IPPROTO_UDP */
    uint16_t port;    /* listening and return port, in host byte order, not 0 */
    uint16_t return_port;
    uint16_t mapping; /* index, below the number that rf_mirror_new was given */
    uint8_t address[16];
};

struct rf_mirror_network {
    uint8_t address[16];
    uint8_t prefix_length; /* of 128 */
    uint8_t allow;
};

struct rf_mirror_limits {
    uint32_t rate;            /* new connections a second; 0: no limit */
    uint32_t rate_per_source; /* likewise, of an IPv4 address or an IPv6 /64 */
    uint8_t default_allow;    /* for addresses in no network */
    uint8_t accepting;        /* 0: new connections are left to the stack */
};

/*
 * Loads the program. It refuses all connections until rf_mirror_set_limits,
 * and mirrors nothing until there are routes and an interface.
 */
int rf_mirror_new(uint32_t mappings, uint32_t max_sources, struct rf_mirror **ret_mirror,
                  struct rf_mirror_failure *ret_failure);

/*
 * Each replaces a whole table: what is new is added before what is gone is
 * deleted, so that an entry that stays is never absent. -EEXIST: two routes
 * have the same port, or the same return port, of an address: whose is a reply?
 * On a failure of the kernel (-ENOMEM) the table may hold entries of both; the
 * next call that succeeds mends it.
 */
int rf_mirror_set_routes(struct rf_mirror *mirror, const struct rf_mirror_route *routes,
                         size_t count);
int rf_mirror_set_never(struct rf_mirror *mirror, const uint8_t (*addresses)[16], size_t count);
int rf_mirror_set_networks(struct rf_mirror *mirror, const struct rf_mirror_network *networks,
                           size_t count);
int rf_mirror_set_limits(struct rf_mirror *mirror, const struct rf_mirror_limits *limits);

/*
 * Attaches to the interface by a tcx link, which ends with this process.
 * `link_header_length` is 14 (Ethernet) or 0 (none). -EOPNOTSUPP: the kernel
 * has no tcx (before 6.6). Then the interface is admitted all the same, so
 * that it is enough to attach rf_mirror_program_fd to its clsact.
 */
int rf_mirror_attach(struct rf_mirror *mirror, uint32_t ifindex, uint32_t link_header_length);

/* Detaches from it; what comes by clsact goes to the stack from now on. -ENOENT: was not. */
int rf_mirror_detach(struct rf_mirror *mirror, uint32_t ifindex);

/* The program's descriptor, which the mirror keeps. */
int rf_mirror_program_fd(const struct rf_mirror *mirror);

/*
 * After that time of CLOCK_MONOTONIC the program leaves all to the stack;
 * UINT64_MAX, which it starts with, is never. So a filter of clsact that
 * outlives its process does nothing.
 */
int rf_mirror_keep_alive(struct rf_mirror *mirror, uint64_t deadline_ns);

/* The counters of a mapping, and the times of handshakes, summed over the CPUs. */
const char *rf_mirror_counter_name(unsigned counter);
int rf_mirror_stats(const struct rf_mirror *mirror, uint32_t mapping,
                    struct rf_mirror_counters *ret_counters);
int rf_mirror_histogram(const struct rf_mirror *mirror, struct rf_mirror_times *ret_histogram);

/* Detaches from all, and gives all up. NULL is fine. */
void rf_mirror_free(struct rf_mirror *mirror);

#endif
