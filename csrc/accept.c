#include "accept.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "leg.h"
#include "route.h"
#include "sys.h"

/*
 * A turn empties the queue, up to this many. The accept that finds nothing is
 * cheaper than leaving some for the next turn: docs/BENCHMARKS.md, tuning.
 */
#define BATCH_MAX 64U

/* On closing; the kernel's backlog is no longer than somaxconn, usually 4,096. */
#define CLOSING_BATCH 65536U

void rf_accept_resume(struct rf_worker *worker)
{
    if (worker->accepting || worker->closing || worker->paused || worker->awaiting_slot)
        return;
    for (uint32_t i = 0; i < worker->settings->targets_count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = i};

        if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->listener_fds[i], &event) < 0 &&
            errno != EEXIST) {
            rf_worker_pause(worker);
            return;
        }
    }
    worker->accepting = true;
}

void rf_accept_suspend(struct rf_worker *worker)
{
    for (uint32_t i = 0; i < worker->settings->targets_count; i++)
        if (worker->listener_fds[i] >= 0)
            epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, worker->listener_fds[i], NULL);
    worker->accepting = false;
}

/* Takes one of the connections, or stops accepting until there is one. */
static bool enter(struct rf_worker *worker)
{
    if (worker->conns.used >= worker->conns.capacity)
        worker->awaiting_slot = true;
    else if (rf_admission_enter(worker->admission, worker->number))
        return true;
    rf_count(worker, RF_PAUSES_CONNECTIONS, 1);
    rf_accept_suspend(worker);
    return false;
}

/* True when the leg would come back to a reflector of this host, and from there for ever. */
static bool would_loop(const struct rf_target *target, const union rf_address *peer,
                       const union rf_address *dialled)
{
    return target->loops && (rf_address_same_host(peer, dialled) || rf_route_is_local(peer));
}

static void find_dialled(const struct rf_target *target, int fd, union rf_address *ret_dialled)
{
    socklen_t length = sizeof(*ret_dialled);

    *ret_dialled = target->address;
    if (!target->wildcard)
        return;
    (void)getsockname(fd, &ret_dialled->any, &length); /* of an accepted socket it does not fail */
    rf_address_unmap(ret_dialled);
}

static const union rf_address *leg_source(const struct rf_worker *worker,
                                          const union rf_address *dialled)
{
    unsigned family = dialled->any.sa_family == AF_INET6;

    if (worker->settings->has_return_source[family])
        return &worker->settings->return_source[family];
    return dialled;
}

/* Resets a client before it takes a slot, which would cost the slot its spare leg. */
static void drop(struct rf_worker *worker, int fd, enum rf_counter why)
{
    rf_count(worker, RF_LEGS_LIMITED, 1);
    rf_count(worker, why, 1);
    rf_count(worker, RF_CLOSED_LEG_FAILED, 1);
    rf_sys_reset(fd);
    close(fd);
    rf_admission_leave(worker->admission);
}

/* Resets a client whose leg is not even tried; a spare that came with the slot has no use then. */
static void turn_away(struct rf_worker *worker, struct rf_conn *conn, enum rf_counter why)
{
    rf_leg_drop_spare(worker, conn);
    rf_leg_limited(worker, conn, why);
}

static void admit(struct rf_worker *worker, const struct rf_target *target, int fd,
                  union rf_address *peer)
{
    const struct rf_networks *networks = worker->settings->networks;
    struct rf_conn *conn;
    union rf_address dialled;

    rf_count(worker, RF_ACCEPTED, 1);
    if (networks && !rf_networks_allow(networks, peer)) {
        drop(worker, fd, RF_LIMITED_DENIED);
        return;
    }
    conn = rf_slab_get(&worker->conns);
    if (!conn) {
        rf_worker_pause(worker);
        drop(worker, fd, RF_LIMITED_RESOURCES);
        return;
    }
    rf_count(worker, RF_ACTIVE, 1);
    conn->fd[RF_PEER] = fd;
    conn->timer_class = RF_TIMER_NONE;
    rf_conn_set_state(conn, RF_CONN_CONNECTING);

    conn->source = rf_admission_enter_source(worker->admission, peer);
    if (conn->source == RF_NO_SOURCE) {
        turn_away(worker, conn, RF_LIMITED_SOURCE);
        return;
    }
    find_dialled(target, fd, &dialled);
    if (would_loop(target, peer, &dialled)) {
        turn_away(worker, conn, RF_LIMITED_LOOP);
        return;
    }
    rf_address_set_port(peer, target->return_port);
    rf_leg_connect(worker, conn, leg_source(worker, &dialled), peer);
}

/* True when there may be more to accept. */
static bool accept_one(struct rf_worker *worker, uint32_t target)
{
    union rf_address peer;
    socklen_t length = sizeof(peer);
    int fd;

    if (!enter(worker))
        return false;
    fd = accept4(worker->listener_fds[target], &peer.any, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        rf_address_unmap(&peer);
        admit(worker, &worker->settings->targets[target], fd, &peer);
        return true;
    }
    rf_admission_leave(worker->admission);
    switch (errno) {
    case EAGAIN:
        return false;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
        /* Level-triggered, it would be told again at once, and spin. */
        rf_worker_pause(worker);
        return false;
    default: /* ECONNABORTED, or an error of the network that accept hands on (accept(2)) */
        return true;
    }
}

void rf_accept_some(struct rf_worker *worker, uint32_t target)
{
    for (uint32_t i = 0; i < BATCH_MAX; i++)
        if (!worker->accepting || !accept_one(worker, target))
            return;
}

void rf_accept_close(struct rf_worker *worker)
{
    for (uint32_t i = 0; i < worker->settings->targets_count; i++) {
        for (uint32_t n = 0; worker->accepting && n < CLOSING_BATCH; n++) {
            if (n % BATCH_MAX == 0) /* for the connect timeouts: this can take its time */
                worker->now_ms = rf_sys_now_ms();
            if (!accept_one(worker, i))
                break;
        }
    }
    rf_accept_suspend(worker);
    for (uint32_t i = 0; i < worker->settings->targets_count; i++) {
        if (worker->listener_fds[i] >= 0)
            close(worker->listener_fds[i]);
        worker->listener_fds[i] = -1;
    }
    worker->closing = true;
}
