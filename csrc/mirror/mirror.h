/*
 * mirror.h - the loader of the BPF program: the public header of the mirror.
 *
 * A mirror is one loaded program with its maps, all owned by the process: the
 * kernel takes them away when the process ends, however it ends. (A filter of
 * clsact is the exception: see rf_mirror_keep_alive.) libbpf does the loading.
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

/* By what the program is attached to an interface. */
enum rf_mirror_how {
    RF_MIRROR_ANY = 0, /* to rf_mirror_attach: tcx where the kernel has it, else clsact */
    RF_MIRROR_TCX = 1,
    RF_MIRROR_CLSACT = 2,
};

/* Where a call failed, for a message that can name the mend. */
struct rf_mirror_failure {
    const char *syscall; /* "bpf" or "netlink": a string constant */
    const char *what;    /* "program", "tcx", ...: a string constant */
    char reason[256];    /* the last words of verifier, kernel or libbpf in one line, or empty */
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
 * Attaches to the ingress of an interface. `link_header_length` is 14
 * (Ethernet) or 0 (none). A tcx link (Linux 6.6) ends with this process. A
 * filter of clsact is removed by rf_mirror_detach, or by the next process that
 * attaches to the interface so; it and what ends it have to run in the network
 * namespace of the interface. -EOPNOTSUPP: `how` is TCX, which the kernel has
 * not. -EBUSY: too many processes mirror the interface by clsact.
 */
int rf_mirror_attach(struct rf_mirror *mirror, uint32_t ifindex, uint32_t link_header_length,
                     enum rf_mirror_how how, struct rf_mirror_failure *ret_failure);

/* By what: TCX or CLSACT; ANY when it is not attached there. */
enum rf_mirror_how rf_mirror_attached_by(const struct rf_mirror *mirror, uint32_t ifindex);

/* Detaches from it, for good even when it fails to clean up. -ENOENT: was not attached. */
int rf_mirror_detach(struct rf_mirror *mirror, uint32_t ifindex);

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
