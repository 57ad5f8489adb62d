#include "leg.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "sys.h"
#include "worker.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

void rf_leg_limited(struct rf_worker *worker, struct rf_conn *conn, enum rf_counter why)
{
    rf_count(worker, RF_LEGS_LIMITED, 1);
    rf_count(worker, why, 1);
    rf_conn_reset(worker, conn, RF_CLOSED_LEG_FAILED);
}

static void leg_failed(struct rf_worker *worker, struct rf_conn *conn, int error)
{
    switch (error) {
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS:
    case ENOSPC: /* epoll_ctl: the user's watches are used up */
        rf_worker_pause(worker);
        /* fall through */
    case EADDRNOTAVAIL: /* no port left towards this peer */
    case EADDRINUSE:
    case EAGAIN:
        rf_leg_limited(worker, conn, RF_LIMITED_RESOURCES);
        return;
    case ECONNREFUSED:
        rf_count(worker, RF_LEGS_REFUSED, 1);
        break;
    case ETIMEDOUT:
        rf_count(worker, RF_LEGS_TIMED_OUT, 1);
        break;
    default: /* EHOSTUNREACH, ENETUNREACH, EACCES and EPERM of a local firewall, ... */
        rf_count(worker, RF_LEGS_UNREACHABLE, 1);
        break;
    }
    rf_conn_reset(worker, conn, RF_CLOSED_LEG_FAILED);
}

static int open_leg(struct rf_conn *conn, const union rf_address *source,
                    const union rf_address *destination)
{
    static const int on = 1;
    union rf_address from = *source;
    int fd;

    fd = socket(destination->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    conn->fd[RF_SERVICE] = fd;
    /*
     * Without it bind picks a port at once, and one that nobody else uses
     * towards any peer: 28,000 legs in all instead of 28,000 to each (ip(7)).
     */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
    rf_address_set_port(&from, 0);
    if (bind(fd, &from.any, rf_address_length(&from)) < 0)
        return errno == EADDRNOTAVAIL ? -ENETUNREACH : -errno; /* the address is no longer ours */
    if (connect(fd, &destination->any, rf_address_length(destination)) < 0 &&
        errno != EINPROGRESS)
        return -errno;
    return 0;
}

void rf_leg_connect(struct rf_worker *worker, struct rf_conn *conn, const union rf_address *source,
                    const union rf_address *destination)
{
    int r;

    if (source->any.sa_family == destination->any.sa_family &&
        rf_address_same_host(source, destination))
        conn->flags |= RF_CONN_SAME_HOST;
    r = open_leg(conn, source, destination);
    if (r == 0)
        r = rf_sys_watch(worker->epoll_fd, conn->fd[RF_SERVICE], rf_conn_token(conn, RF_SERVICE));
    if (r < 0)
        leg_failed(worker, conn, -r);
    else
        rf_worker_arm(worker, conn, RF_TIMER_CONNECT);
}

/*
 * With both addresses the same, the kernel can pick the return port itself as
 * the leg's own port: a simultaneous open with nobody at the other end.
 */
static bool connected_to_itself(const struct rf_conn *conn)
{
    union rf_address own, remote;
    socklen_t own_length = sizeof(own), remote_length = sizeof(remote);

    if (!(conn->flags & RF_CONN_SAME_HOST))
        return false;
    if (getsockname(conn->fd[RF_SERVICE], &own.any, &own_length) < 0 ||
        getpeername(conn->fd[RF_SERVICE], &remote.any, &remote_length) < 0)
        return false; /* reset meanwhile */
    return rf_address_port(&own) == rf_address_port(&remote);
}

void rf_leg_event(struct rf_worker *worker, struct rf_conn *conn, uint32_t events)
{
    int error = 0;
    socklen_t length = sizeof(error);

    if (events & (EPOLLERR | EPOLLHUP)) {
        getsockopt(conn->fd[RF_SERVICE], SOL_SOCKET, SO_ERROR, &error, &length);
        /* A reset while connecting is ECONNREFUSED; these two are of a leg that was up. */
        if (error != 0 && error != ECONNRESET && error != EPIPE) {
            leg_failed(worker, conn, error);
            return;
        }
        if (error != 0)
            conn->flags |= (uint8_t)RF_CONN_LOST(RF_SERVICE);
    } else if (!(events & EPOLLOUT)) {
        return;
    }
    if (connected_to_itself(conn)) {
        leg_failed(worker, conn, ECONNREFUSED);
        return;
    }
    rf_conn_open(worker, conn);
    if (conn->state == RF_CONN_OPEN)
        rf_conn_event(worker, conn, RF_SERVICE, events);
}
