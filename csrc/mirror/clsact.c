#include "clsact.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <bpf/libbpf.h>

#include "filters.h"

#define LOCK "lock"
#define LOCK_TRIES 200
#define LOCK_PAUSE_NS 10000000L /* two seconds in all; it is held for milliseconds */

/* Takes a name of the network namespace: a descriptor, or -EADDRINUSE when it is taken. */
static int take_name(uint32_t ifindex, const char *what)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    /* Abstract, see unix(7): it begins with a zero, and is not in the file system. */
    int length = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1,
                          "reflector/mirror/%u/%s", ifindex, what);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    if (bind(fd, (const struct sockaddr *)&address, size) < 0) {
        int r = -errno;
        close(fd);
        return r;
    }
    return fd;
}

static int take_slot(uint32_t ifindex, unsigned slot)
{
    char name[16];

    snprintf(name, sizeof(name), "%u", slot);
    return take_name(ifindex, name);
}

/* So that nobody removes a queueing discipline that another is about to use. */
static int lock(uint32_t ifindex)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
    int r = -EBUSY;

    for (unsigned i = 0; i < LOCK_TRIES; i++) {
        r = take_name(ifindex, LOCK);
        if (r != -EADDRINUSE)
            return r;
        nanosleep(&pause, NULL);
    }
    return -EBUSY;
}

static struct bpf_tc_hook hook_of(uint32_t ifindex, enum bpf_tc_attach_point point)
{
    return (struct bpf_tc_hook){
        .sz = sizeof(struct bpf_tc_hook), .ifindex = (int)ifindex, .attach_point = point};
}

static struct bpf_tc_opts filter_of(uint32_t handle)
{
    return (struct bpf_tc_opts){
        .sz = sizeof(struct bpf_tc_opts), .handle = handle, .priority = RF_FILTER_PRIORITY};
}

static int remove_filter(uint32_t ifindex, uint32_t handle)
{
    const struct bpf_tc_hook hook = hook_of(ifindex, BPF_TC_INGRESS);
    const struct bpf_tc_opts filter = filter_of(handle);

    return bpf_tc_detach(&hook, &filter);
}

/* Removes the queueing discipline, if it is ours and nobody has a filter on it. */
static int remove_unused(uint32_t ifindex, bool owns_qdisc)
{
    struct bpf_tc_hook both =
        hook_of(ifindex, (enum bpf_tc_attach_point)(BPF_TC_INGRESS | BPF_TC_EGRESS));
    struct rf_filters filters;
    int r = rf_filters_list(ifindex, &filters);

    if (r < 0 || !owns_qdisc || filters.others)
        return r;
    for (unsigned i = 0; i < RF_FILTER_SLOTS; i++)
        if (filters.handles[i])
            return 0;
    r = bpf_tc_hook_destroy(&both);
    return r == -ENODEV || r == -ENOENT || r == -EINVAL ? 0 : r; /* gone by itself */
}

/* Removes the filters of those who have died. */
static int remove_stale(uint32_t ifindex, unsigned own_slot, const struct rf_filters *filters)
{
    int r = 0;

    for (unsigned i = 0; i < RF_FILTER_SLOTS && r == 0; i++) {
        int fd = -1;
        if (!filters->handles[i])
            continue;
        if (i != own_slot) {
            fd = take_slot(ifindex, i);
            if (fd < 0)
                continue;
        }
        r = remove_filter(ifindex, filters->handles[i]);
        if (fd >= 0)
            close(fd);
    }
    return r;
}

/* Attaches in a slot that is held. Removes what it has made when it fails. */
static int attach_at(int program_fd, uint32_t ifindex, unsigned slot, uint32_t *ret_handle)
{
    struct bpf_tc_hook hook = hook_of(ifindex, BPF_TC_INGRESS);
    struct rf_filters filters = {0};
    int r = bpf_tc_hook_create(&hook);
    bool owns_qdisc = r == 0;

    if (r < 0 && r != -EEXIST)
        return r;
    r = rf_filters_list(ifindex, &filters);
    owns_qdisc = owns_qdisc || filters.owns_qdisc;
    if (r == 0) {
        struct bpf_tc_opts filter = filter_of(rf_filter_handle(slot, owns_qdisc));
        filter.prog_fd = program_fd;
        r = remove_stale(ifindex, slot, &filters);
        if (r == 0)
            r = bpf_tc_attach(&hook, &filter);
        if (r == 0)
            *ret_handle = filter.handle;
    }
    if (r < 0)
        remove_unused(ifindex, owns_qdisc);
    return r;
}

int rf_clsact_attach(int program_fd, uint32_t ifindex, struct rf_clsact *ret_clsact)
{
    unsigned slot = 0;
    uint32_t handle;
    int lock_fd = lock(ifindex), claim_fd, r;

    if (lock_fd < 0)
        return lock_fd;
    do
        claim_fd = take_slot(ifindex, slot);
    while (claim_fd == -EADDRINUSE && ++slot < RF_FILTER_SLOTS);
    r = claim_fd == -EADDRINUSE ? -EBUSY : claim_fd;
    if (claim_fd >= 0)
        r = attach_at(program_fd, ifindex, slot, &handle);
    if (r == 0)
        *ret_clsact = (struct rf_clsact){.handle = handle, .claim_fd = claim_fd};
    else if (claim_fd >= 0)
        close(claim_fd);
    close(lock_fd);
    return r;
}

int rf_clsact_detach(struct rf_clsact *clsact, uint32_t ifindex)
{
    /* Should it not be had for two seconds: what is to be removed is ours all the same. */
    int lock_fd = lock(ifindex);
    int removed = remove_filter(ifindex, clsact->handle);
    struct rf_filters filters = {0};
    int r = rf_filters_list(ifindex, &filters);

    if (r == 0 && filters.handles[rf_filter_slot(clsact->handle)])
        r = removed;
    if (r == 0)
        r = remove_unused(ifindex, clsact->handle & RF_FILTER_OWNS_QDISC);
    close(clsact->claim_fd);
    clsact->claim_fd = -1;
    if (lock_fd >= 0)
        close(lock_fd);
    return r;
}
