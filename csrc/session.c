#include "session.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include <linux/errqueue.h> /* wants time.h, which it leaves to others */

#include "networks.h"
#include "route.h"
#include "sys.h"
#include "udp.h"
#include "worker.h"

/* Notes of one socket's errors read at a turn; the kernel tells of more again. */
#define ERRORS_MAX 64U

/* The usual one (ip(7), ip_default_ttl): who begins with more gains nothing by it. */
#define HOPS_MAX 64U

void rf_session_end(struct rf_worker *worker, struct rf_session *session,
                    enum rf_counter reason)
{
    bool draining = *worker->request >= RF_REQUEST_STOP_ACCEPTING;

    if (session->fd >= 0) {
        if (!worker->own_table) {
            /* A forked child may hold the socket too, and so keep it in epoll, and bound. */
            epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, session->fd, NULL);
            rf_sys_reset(session->fd);
        }
        close(session->fd);
    }
    rf_admission_leave_source(worker->admission, session->source);
    rf_sessions_put(&worker->udp->sessions, session);
    rf_count(worker, reason, 1);
    rf_count(worker, RF_ACTIVE, (uint64_t)-1);
    rf_admission_leave(worker->admission);
    rf_admission_end_session(worker->admission, draining);
}

/* The leg of a session that the service has not answered comes to nothing. */
static void fail_leg(struct rf_worker *worker, struct rf_session *session, int error)
{
    switch (error) {
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS:
    case ENOSPC: /* epoll_ctl: the user's watches are used up */
    case EADDRINUSE: /* no port left */
    case EAGAIN:
        rf_count(worker, RF_LEGS_LIMITED, 1);
        rf_count(worker, RF_LIMITED_RESOURCES, 1);
        break;
    case ECONNREFUSED:
        rf_count(worker, RF_LEGS_REFUSED, 1);
        break;
    default: /* EHOSTUNREACH, ENETUNREACH, EACCES and EPERM of a local firewall, ... */
        rf_count(worker, RF_LEGS_UNREACHABLE, 1);
        break;
    }
    rf_session_end(worker, session, RF_CLOSED_LEG_FAILED);
}

bool rf_session_note_error(struct rf_worker *worker, struct rf_session *session, int error)
{
    if (error == 0 || error == EMSGSIZE || error == EAGAIN || error == ENOBUFS || error == ENOMEM)
        return false; /* of one datagram, not of the session */
    if (!session->answered)
        fail_leg(worker, session, error);
    else if (error == ECONNREFUSED)
        rf_session_end(worker, session, RF_CLOSED_RESET_BY_SERVICE);
    else
        return false;
    return true;
}

/*
 * With both addresses the same, the kernel can pick the return port itself as
 * the socket's own port: it would be its own service.
 */
static bool connected_to_itself(int fd, const union rf_address *source,
                                const union rf_address *destination)
{
    union rf_address own;
    socklen_t length = sizeof(own);

    return rf_address_same_host(source, destination) && getsockname(fd, &own.any, &length) == 0 &&
           rf_address_port(&own) == rf_address_port(destination);
}

static int open_leg(struct rf_worker *worker, struct rf_session *session, int hops,
                    const union rf_address *source, const union rf_address *destination)
{
    static const int on = 1;
    bool v4 = destination->any.sa_family == AF_INET;
    int level = v4 ? IPPROTO_IP : IPPROTO_IPV6;
    union rf_address any_port = *source;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = RF_SESSION_NUMBER | session->index};
    int fd;

    fd = socket(destination->any.sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    session->fd = fd;
    /* Without it a host that is not there is not told: the kernel calls that transient (ip(7)). */
    setsockopt(fd, level, v4 ? IP_RECVERR : IPV6_RECVERR, &on, sizeof(on));
    setsockopt(fd, level, v4 ? IP_TTL : IPV6_UNICAST_HOPS, &hops, sizeof(hops));
    rf_address_set_port(&any_port, 0);
    if (bind(fd, &any_port.any, rf_address_length(source)) < 0)
        return errno == EADDRNOTAVAIL ? -ENETUNREACH : -errno; /* the address is no longer ours */
    if (connect(fd, &destination->any, rf_address_length(destination)) < 0)
        return -errno;
    if (connected_to_itself(fd, source, destination))
        return -ECONNREFUSED;
    return epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static const union rf_address *leg_source(const struct rf_worker *worker,
                                          const union rf_address *dialled)
{
    unsigned family = dialled->any.sa_family == AF_INET6;

    if (worker->settings->has_return_source[family])
        return &worker->settings->return_source[family];
    return dialled;
}

/* Counts a session that is not opened as TCP counts a connection that it resets. */
static void count_limited(struct rf_worker *worker, enum rf_counter why)
{
    rf_count(worker, RF_LEGS_LIMITED, 1);
    rf_count(worker, why, 1);
    rf_count(worker, RF_CLOSED_LEG_FAILED, 1);
}

static void turn_away(struct rf_worker *worker, uint32_t source, enum rf_counter why)
{
    count_limited(worker, why);
    rf_admission_leave_source(worker->admission, source);
    rf_admission_leave(worker->admission);
}

/*
 * True when the leg would come back to a reflector of this host, and from there
 * for ever; or when the peer is the service itself: no client has its port, but
 * with one forged datagram of that source an echo service would talk to itself,
 * through us, without end.
 */
static bool would_loop(const struct rf_target *target, const union rf_address *peer,
                       const union rf_address *dialled)
{
    return rf_address_port(peer) == target->return_port ||
           (target->loops && (rf_address_same_host(peer, dialled) || rf_route_is_local(peer)));
}

/* What a session's datagrams start with, where their peer's had `hops` left. */
static int hops_onward(unsigned hops)
{
    return hops == 0 || hops > HOPS_MAX ? (int)HOPS_MAX : (int)hops - 1;
}

struct rf_session *rf_session_open(struct rf_worker *worker, const struct rf_session_key *key,
                                   union rf_address *peer, unsigned hops)
{
    const struct rf_target *target = &worker->settings->targets[key->target];
    const struct rf_networks *networks = worker->settings->networks;
    struct rf_session *session;
    uint32_t source;
    int r;

    if (networks && !rf_networks_allow(networks, peer)) {
        rf_count(worker, RF_ACCEPTED, 1);
        count_limited(worker, RF_LIMITED_DENIED);
        return NULL;
    }
    if (!rf_admission_try_enter(worker->admission)) {
        rf_count(worker, RF_DATAGRAMS_LIMITED, 1);
        return NULL;
    }
    rf_count(worker, RF_ACCEPTED, 1);
    source = rf_admission_enter_source(worker->admission, peer);
    if (source == RF_NO_SOURCE) {
        turn_away(worker, source, RF_LIMITED_SOURCE);
        return NULL;
    }
    if (hops == 1 || would_loop(target, peer, key->dialled)) {
        turn_away(worker, source, RF_LIMITED_LOOP);
        return NULL;
    }
    session = rf_sessions_get(&worker->udp->sessions, key, worker->now_ms);
    if (!session) {
        turn_away(worker, source, RF_LIMITED_RESOURCES);
        return NULL;
    }
    session->source = source;
    rf_count(worker, RF_ACTIVE, 1);
    rf_admission_begin_session(worker->admission);
    rf_address_set_port(peer, target->return_port);
    r = open_leg(worker, session, hops_onward(hops), leg_source(worker, key->dialled), peer);
    if (r < 0) {
        fail_leg(worker, session, -r);
        return NULL;
    }
    return session;
}

/* The errno in a note of the error queue (ip(7), IP_RECVERR), or 0. */
static int noted_errno(struct msghdr *header)
{
    struct sock_extended_err note;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        bool v4 = c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR;
        bool v6 = c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR;

        if (!v4 && !v6)
            continue;
        memcpy(&note, CMSG_DATA(c), sizeof(note));
        return (int)note.ee_errno;
    }
    return 0;
}

int rf_session_take_error(int fd)
{
    union {
        struct cmsghdr header; /* aligns it */
        char bytes[512];
    } control;
    int found = 0;
    socklen_t length = sizeof(found);

    getsockopt(fd, SOL_SOCKET, SO_ERROR, &found, &length);
    for (unsigned i = 0; i < ERRORS_MAX; i++) {
        struct msghdr header = {.msg_control = &control, .msg_controllen = sizeof(control)};
        int noted;

        if (recvmsg(fd, &header, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            break;
        noted = noted_errno(&header);
        if (noted == ECONNREFUSED || found == 0 || found == EMSGSIZE)
            found = noted;
    }
    return found;
}
