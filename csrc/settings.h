/*
 * settings.h - options and mappings, checked and resolved: what all workers of
 * an engine read and none writes.
 */
#ifndef RF_SETTINGS_H
#define RF_SETTINGS_H

#include <stdbool.h>

#include "address.h"
#include "networks.h"
#include "reflector.h"

/* A mapping as the workers see it: where it listens and where it returns to. */
struct rf_target {
    union rf_address address;
    uint16_t return_port;
    bool wildcard; /* the address that a peer dialled must be asked of each socket */
    bool loops;    /* its return port leads, at once or by other mappings, back to itself */
};

struct rf_settings {
    uint32_t connect_timeout_ms;
    uint32_t idle_timeout_ms;
    uint32_t half_close_timeout_ms;
    bool share_ports;
    bool has_return_source[2]; /* IPv4, IPv6 */
    union rf_address return_source[2];
    struct rf_networks *networks; /* NULL: all peers are served */
    struct rf_target *targets; /* one a mapping */
    uint32_t targets_count;
};

/*
 * Checks the options. Binds to each return source once, so that an address that
 * is not ours is known at start. -EINVAL, -ENOMEM, or what the call returned
 * that *ret_syscall then names.
 */
int rf_settings_init(struct rf_settings *settings, const struct rf_options *options,
                     size_t mappings_count, const char **ret_syscall);
void rf_settings_fini(struct rf_settings *settings);

/*
 * Opens the listeners of all mappings, one for each worker, and resolves the
 * targets. ret_fds is a row for each worker with a column for each mapping; on
 * failure it holds those that are open already, to be closed by the caller.
 */
int rf_settings_listen(struct rf_settings *settings, const struct rf_mapping *mappings,
                       uint32_t workers, int *ret_fds, struct rf_failure *ret_failure);

#endif
