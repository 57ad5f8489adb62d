#include "leg.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <unistd.h>

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

/* More would seldom be used at once; each holds some 8 kB in the kernel. */
#define SPARE_LEGS_MAX 256U

/* The beginning of struct tcp_info, which C libraries know only in part. */
struct tcp_info_head {
    uint8_t state;
    uint8_t unused[127];
    uint64_t bytes_received; /* counts the FIN as one */
};

bool rf_leg_over(const struct rf_conn *conn)
{
    struct tcp_info_head info = {0};
    socklen_t length = sizeof(info);

    return getsockopt(conn->fd[RF_SERVICE], IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
           length == sizeof(info) && info.state == TCP_CLOSE &&
           info.bytes_received == (uint64_t)conn->leg_bytes + 1;
}

bool rf_leg_keep_spare(struct rf_worker *worker, struct rf_conn *conn)
{
    /* Only after a short connection, keepalive not yet set, and from an address on the list. */
    if (!(conn->flags & RF_CONN_LEG_OVER) || !(conn->flags & RF_CONN_KEEPALIVE_DUE) ||
        conn->leg_source == RF_LEG_SOURCES_MAX || worker->spare_legs >= SPARE_LEGS_MAX)
        return false;
    worker->spare_legs++;
    return true;
}

void rf_leg_drop_spare(struct rf_worker *worker, struct rf_conn *conn)
{
    if (conn->fd[RF_SERVICE] < 0)
        return;
    close(conn->fd[RF_SERVICE]);
    conn->fd[RF_SERVICE] = -1;
    worker->spare_legs--;
}

/*
 * The number of a local address in the worker's list, which it joins if there is
 * room. One that was bound to towards a link-local peer is not for the list:
 * that leaves the socket bound to the interface too.
 */
static uint16_t number_source(struct rf_worker *worker, const union rf_address *source)
{
    uint16_t number = 0;

    while (number < worker->leg_sources_count &&
           !rf_address_same_host(&worker->leg_sources[number], source))
        number++;
    if (number == worker->leg_sources_count && number < RF_LEG_SOURCES_MAX)
        worker->leg_sources[worker->leg_sources_count++] = *source;
    return number;
}

/* Connects the spare leg that came with the slot, if it fits; else there is none afterwards. */
static bool connect_spare(struct rf_worker *worker, struct rf_conn *conn,
                          const union rf_address *source, const union rf_address *destination)
{
    if (conn->fd[RF_SERVICE] < 0)
        return false;
    /*
     * Disconnected only now: it makes epoll look at the socket, and so it looks
     * once for both. The address stays bound; the port went back when it closed.
     */
    if (rf_address_same_host(&worker->leg_sources[conn->leg_source], source) &&
        rf_sys_reset(conn->fd[RF_SERVICE]) == 0 &&
        connect(conn->fd[RF_SERVICE], &destination->any, rf_address_length(destination)) < 0 &&
        errno == EINPROGRESS) {
        worker->spare_legs--;
        return true;
    }
    rf_leg_drop_spare(worker, conn);
    return false;
}

static int open_leg(struct rf_worker *worker, struct rf_conn *conn,
                    const union rf_address *source, const union rf_address *destination)
{
    static const int on = 1;
    union rf_address any_port = *source;
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
    setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on)); /* relay.c, carry_urgent */
    rf_address_set_port(&any_port, 0);
    if (bind(fd, &any_port.any, rf_address_length(source)) < 0)
        return errno == EADDRNOTAVAIL ? -ENETUNREACH : -errno; /* the address is no longer ours */
    conn->leg_source =
        conn->flags & RF_CONN_SCOPED ? RF_LEG_SOURCES_MAX : number_source(worker, source);
    if (connect(fd, &destination->any, rf_address_length(destination)) < 0 &&
        errno != EINPROGRESS)
        return -errno;
    rf_conn_renew(conn, RF_SERVICE);
    return rf_sys_watch(worker->epoll_fd, fd, EPOLLOUT, rf_conn_token(conn, RF_SERVICE));
}

void rf_leg_connect(struct rf_worker *worker, struct rf_conn *conn, const union rf_address *source,
                    const union rf_address *destination)
{
    int r = 0;

    if (rf_address_same_host(source, destination))
        conn->flags |= RF_CONN_SAME_HOST;
    if (destination->any.sa_family == AF_INET6 && destination->v6.sin6_scope_id != 0)
        conn->flags |= RF_CONN_SCOPED;
    if (!connect_spare(worker, conn, source, destination))
        r = open_leg(worker, conn, source, destination);
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

    if (events & EPOLLERR) {
        getsockopt(conn->fd[RF_SERVICE], SOL_SOCKET, SO_ERROR, &error, &length);
        /* A reset while connecting is ECONNREFUSED; these two are of a leg that was up. */
        if (error != 0 && error != ECONNRESET && error != EPIPE) {
            leg_failed(worker, conn, error);
            return;
        }
        if (error != 0)
            conn->flags |= (uint8_t)RF_CONN_LOST(RF_SERVICE);
    } else if (events & EPOLLHUP || !(events & EPOLLOUT)) {
        /* A leg that fails has an error. A hang-up alone is of the spare, when it was idle. */
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
