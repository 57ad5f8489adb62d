#include "settings.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "listener.h"

static int check_options(const struct rf_options *options, size_t mappings_count)
{
    const uint32_t timeouts_ms[] = {options->connect_timeout_ms, options->idle_timeout_ms,
                                    options->half_close_timeout_ms};

    if (options->size != sizeof(*options))
        return -EINVAL;
    if (mappings_count == 0 || mappings_count > RF_MAX_MAPPINGS)
        return -EINVAL;
    if (options->workers > RF_MAX_WORKERS || options->max_connections > RF_MAX_CONNECTIONS ||
        options->max_per_source == 0 || options->max_per_source > RF_MAX_CONNECTIONS - 1)
        return -EINVAL;
    for (size_t i = 0; i < sizeof(timeouts_ms) / sizeof(timeouts_ms[0]); i++)
        if (timeouts_ms[i] == 0 || timeouts_ms[i] > RF_MAX_TIMEOUT_MS)
            return -EINVAL;
    return 0;
}

/* Binds to a return source once, so that an address that is not ours is known at start. */
static int set_return_source(struct rf_settings *settings, const char *text, int family,
                             const char **ret_syscall)
{
    union rf_address *address = &settings->return_source[family == AF_INET6];
    int fd, r;

    if (!text)
        return 0;
    r = rf_address_parse(text, 0, address);
    if (r < 0)
        return r;
    if (address->any.sa_family != family || rf_address_is_wildcard(address))
        return -EINVAL;
    fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    r = fd < 0 || bind(fd, &address->any, rf_address_length(address)) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    if (r < 0)
        *ret_syscall = "bind";
    settings->has_return_source[family == AF_INET6] = r == 0;
    return r;
}

int rf_settings_init(struct rf_settings *settings, const struct rf_options *options,
                     size_t mappings_count, const char **ret_syscall)
{
    int r = check_options(options, mappings_count);

    if (r < 0)
        return r;
    *settings = (struct rf_settings){
        .connect_timeout_ms = options->connect_timeout_ms,
        .idle_timeout_ms = options->idle_timeout_ms,
        .half_close_timeout_ms = options->half_close_timeout_ms,
        .share_ports = options->share_ports,
    };
    r = set_return_source(settings, options->return_source4, AF_INET, ret_syscall);
    if (r == 0)
        r = set_return_source(settings, options->return_source6, AF_INET6, ret_syscall);
    if (r < 0)
        return r;
    r = rf_networks_new(options->networks, options->networks_count, &settings->networks);
    if (r < 0)
        return r;
    settings->targets = calloc(mappings_count, sizeof(*settings->targets));
    settings->targets_count = (uint32_t)mappings_count;
    return settings->targets ? 0 : -ENOMEM;
}

void rf_settings_fini(struct rf_settings *settings)
{
    rf_networks_free(settings->networks);
    settings->networks = NULL;
    free(settings->targets);
    settings->targets = NULL;
    settings->targets_count = 0;
}

/* Following the return ports from mapping to mapping never ends. */
static bool find_loop(const struct rf_settings *settings, uint32_t start)
{
    uint16_t port = settings->targets[start].return_port;

    for (uint32_t steps = 0; steps <= settings->targets_count; steps++) {
        uint32_t i = 0;

        while (i < settings->targets_count &&
               rf_address_port(&settings->targets[i].address) != port)
            i++;
        if (i == settings->targets_count)
            return false;
        port = settings->targets[i].return_port;
    }
    return true;
}

static int open_wildcard(struct rf_target *target, uint16_t port, bool share, uint32_t workers,
                         int *fds, const char **ret_syscall)
{
    int r;

    target->wildcard = true;
    target->address.v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
    r = rf_listener_open(&target->address, share, fds, workers, ret_syscall);
    if (r != -EAFNOSUPPORT && r != -EADDRNOTAVAIL)
        return r;
    *ret_syscall = NULL;
    target->address.v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    return rf_listener_open(&target->address, share, fds, workers, ret_syscall);
}

static int open_target(struct rf_target *target, const struct rf_mapping *mapping, bool share,
                       uint32_t workers, int *fds, const char **ret_syscall)
{
    int r;

    if (!mapping->address) {
        r = open_wildcard(target, mapping->port, share, workers, fds, ret_syscall);
    } else {
        r = rf_address_parse(mapping->address, mapping->port, &target->address);
        if (r < 0)
            return r;
        target->wildcard = rf_address_is_wildcard(&target->address);
        r = rf_listener_open(&target->address, share, fds, workers, ret_syscall);
    }
    if (r < 0)
        return r;
    target->return_port =
        mapping->return_port ? mapping->return_port : rf_address_port(&target->address);
    return 0;
}

int rf_settings_listen(struct rf_settings *settings, const struct rf_mapping *mappings,
                       uint32_t workers, int *ret_fds, struct rf_failure *ret_failure)
{
    uint32_t count = settings->targets_count;
    int fds[RF_MAX_WORKERS];

    for (uint32_t i = 0; i < count; i++) {
        int r = open_target(&settings->targets[i], &mappings[i], settings->share_ports, workers,
                            fds, &ret_failure->syscall);

        if (r < 0) {
            ret_failure->mapping = (int)i;
            return r;
        }
        for (uint32_t worker = 0; worker < workers; worker++)
            ret_fds[worker * count + i] = fds[worker];
    }
    for (uint32_t i = 0; i < count; i++)
        settings->targets[i].loops = find_loop(settings, i);
    return 0;
}
