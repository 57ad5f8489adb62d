#include "udp.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "session.h"
#include "worker.h"

static int watch(const struct rf_worker *worker, uint32_t target)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = RF_UDP_NUMBER | target};

    return epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->listener_fds[target], &event) < 0
               ? -errno
               : 0;
}

int rf_udp_init(struct rf_worker *worker, uint32_t capacity)
{
    const struct rf_settings *settings = worker->settings;
    struct rf_udp *udp;
    int r;

    if (settings->udp_targets_count == 0)
        return 0;
    udp = worker->udp = calloc(1, sizeof(*udp));
    if (!udp)
        return -ENOMEM;
    r = rf_sessions_init(&udp->sessions, capacity, settings->udp_idle_timeout_ms);
    if (r == 0)
        r = rf_datagrams_new(&udp->datagrams);
    for (uint32_t i = 0; r == 0 && i < settings->targets_count; i++)
        if (settings->targets[i].udp)
            r = watch(worker, i);
    return r;
}

/* No peer that can be answered: what connect would take for loopback, or for no port at all. */
static bool is_nobody(const union rf_address *peer, const union rf_address *dialled)
{
    return rf_address_port(peer) == 0 || rf_address_is_wildcard(peer) ||
           peer->any.sa_family != dialled->any.sa_family;
}

/* The session that datagram i belongs to, opened if need be; NULL: it is to be dropped. */
static struct rf_session *session_of(struct rf_worker *worker, uint32_t number, unsigned i)
{
    const struct rf_target *target = &worker->settings->targets[number];
    struct rf_datagrams *datagrams = worker->udp->datagrams;
    const union rf_address *sender = rf_datagrams_sender(datagrams, i);
    union rf_address peer = *sender;
    union rf_address dialled = target->address;
    struct rf_session_key key = {.target = number, .peer = sender, .dialled = &dialled};
    struct rf_session *session;

    if (target->wildcard && !rf_datagrams_dialled(datagrams, i, &dialled))
        return NULL;
    rf_address_unmap(&peer);
    key.hash = (uint32_t)(rf_admission_hash(worker->admission, &peer) >> 32) ^
               (uint32_t)rf_admission_hash(worker->admission, &dialled);
    key.hash += rf_address_port(&peer) * UINT32_C(0x9e3779b1); /* odd: no two ports are the same */
    session = rf_sessions_find(&worker->udp->sessions, &key);
    if (session || worker->closing || is_nobody(&peer, &dialled))
        return session;
    return rf_session_open(worker, &key, &peer, rf_datagrams_hops(datagrams, i));
}

/* Of one peer, and sent to the same address. */
static bool same_session(struct rf_worker *worker, const struct rf_session *session, unsigned i)
{
    struct rf_datagrams *datagrams = worker->udp->datagrams;
    const union rf_address *sender = rf_datagrams_sender(datagrams, i);
    union rf_address dialled;

    if (rf_address_port(sender) != rf_address_port(&session->peer) ||
        !rf_address_same_host(sender, &session->peer))
        return false;
    if (!worker->settings->targets[session->target].wildcard)
        return true;
    return rf_datagrams_dialled(datagrams, i, &dialled) &&
           rf_address_same_host(&dialled, &session->dialled);
}

static void to_service(struct rf_worker *worker, struct rf_session *session, unsigned first,
                       unsigned count)
{
    struct rf_sent sent;

    sent = rf_datagrams_send(worker->udp->datagrams, first, count, session->fd, NULL, NULL);
    rf_count(worker, RF_DATAGRAMS_TO_SERVICE, sent.datagrams);
    rf_count(worker, RF_DATAGRAMS_DROPPED, count - sent.datagrams);
    rf_count(worker, RF_BYTES_TO_SERVICE, sent.bytes);
    rf_count(worker, RF_BYTES_COPIED, sent.bytes);
    rf_sessions_touch(&worker->udp->sessions, session, worker->now_ms);
    /* A refusal came by ICMP and is in the error queue too: answers before it are read first. */
    if (sent.error != ECONNREFUSED)
        rf_session_note_error(worker, session, sent.error);
}

/* One batch; whatever is left is told again, after everybody else's turn. */
static void from_peers(struct rf_worker *worker, uint32_t number)
{
    unsigned count, end;
    int n;

    if (worker->udp->closed)
        return; /* told before */
    n = rf_datagrams_receive(worker->udp->datagrams, worker->listener_fds[number], true);
    count = n > 0 ? (unsigned)n : 0;
    for (unsigned i = 0; i < count; i = end) {
        struct rf_session *session = session_of(worker, number, i);

        end = i + 1;
        if (!session) {
            rf_count(worker, RF_DATAGRAMS_DROPPED, 1);
            continue;
        }
        while (end < count && same_session(worker, session, end))
            end++;
        to_service(worker, session, i, end - i);
    }
}

/* Whether datagram i is the service's; in the instant before connect anybody's could come in. */
static bool is_of_service(const struct rf_worker *worker, const struct rf_session *session,
                          unsigned i)
{
    const union rf_address *sender = rf_datagrams_sender(worker->udp->datagrams, i);
    union rf_address peer = session->peer;

    rf_address_unmap(&peer);
    return rf_address_port(sender) == worker->settings->targets[session->target].return_port &&
           rf_address_same_host(sender, &peer);
}

static void to_peer(struct rf_worker *worker, struct rf_session *session, unsigned first,
                    unsigned count)
{
    const struct rf_target *target = &worker->settings->targets[session->target];
    struct rf_sent sent;

    if (!session->answered)
        rf_count(worker, RF_LEGS_CONNECTED, 1);
    session->answered = true;
    sent = rf_datagrams_send(worker->udp->datagrams, first, count,
                             worker->listener_fds[session->target], &session->peer,
                             target->wildcard ? &session->dialled : NULL);
    rf_count(worker, RF_DATAGRAMS_TO_PEER, sent.datagrams);
    rf_count(worker, RF_DATAGRAMS_DROPPED, count - sent.datagrams);
    rf_count(worker, RF_BYTES_TO_PEER, sent.bytes);
    rf_count(worker, RF_BYTES_COPIED, sent.bytes);
    rf_sessions_touch(&worker->udp->sessions, session, worker->now_ms);
}

/* One batch, as above. Returns an error that the socket had to tell first, or 0. */
static int from_service(struct rf_worker *worker, struct rf_session *session)
{
    struct rf_datagrams *datagrams = worker->udp->datagrams;
    int n = rf_datagrams_receive(datagrams, session->fd, false);
    int error = n < 0 ? -n : 0;
    unsigned count, first = 0;

    if (error != 0 && error != EAGAIN) /* told once, in place of the datagrams before it */
        n = rf_datagrams_receive(datagrams, session->fd, false);
    count = n > 0 ? (unsigned)n : 0;

    for (unsigned i = 0; i <= count; i++) {
        if (i < count && is_of_service(worker, session, i))
            continue;
        if (i > first)
            to_peer(worker, session, first, i - first);
        if (i < count)
            rf_count(worker, RF_DATAGRAMS_DROPPED, 1);
        first = i + 1;
    }
    return error;
}

static void session_event(struct rf_worker *worker, uint32_t index, uint32_t events)
{
    struct rf_session *session = rf_sessions_at(&worker->udp->sessions, index);
    int error;

    if (session->fd < 0)
        return; /* told before it ended */
    /* The error first, or the next call would tell it in place of what it is for. */
    error = events & EPOLLERR ? rf_session_take_error(session->fd) : 0;
    if (events & EPOLLIN) {
        int r = from_service(worker, session);

        error = error ? error : r;
    }
    rf_session_note_error(worker, session, error);
}

void rf_udp_event(struct rf_worker *worker, uint32_t number, uint32_t events)
{
    if (number & RF_SESSION_NUMBER)
        session_event(worker, number & ~RF_SESSION_NUMBER, events);
    else
        from_peers(worker, number & ~RF_UDP_NUMBER);
}

void rf_udp_expire(struct rf_worker *worker)
{
    struct rf_session *session;

    while ((session = rf_sessions_expired(&worker->udp->sessions, worker->now_ms))) {
        if (!session->answered)
            rf_count(worker, RF_LEGS_TIMED_OUT, 1);
        rf_session_end(worker, session, RF_CLOSED_IDLE);
    }
}

uint32_t rf_udp_remaining(const struct rf_worker *worker, uint32_t limit_ms)
{
    return rf_sessions_remaining(&worker->udp->sessions, worker->now_ms, limit_ms);
}

static void close_listeners(struct rf_worker *worker)
{
    for (uint32_t i = 0; i < worker->settings->targets_count; i++) {
        if (!worker->settings->targets[i].udp || worker->listener_fds[i] < 0)
            continue;
        if (!worker->own_table) /* see rf_session_end */
            epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, worker->listener_fds[i], NULL);
        close(worker->listener_fds[i]);
        worker->listener_fds[i] = -1;
    }
    worker->udp->closed = true;
}

bool rf_udp_close(struct rf_worker *worker)
{
    if (!worker->udp)
        return true;
    if (!worker->udp->closed && !rf_admission_has_sessions(worker->admission))
        close_listeners(worker);
    return worker->udp->closed;
}

void rf_udp_fini(struct rf_worker *worker)
{
    struct rf_udp *udp = worker->udp;

    if (!udp)
        return;
    for (uint32_t i = 0; i < rf_sessions_end(&udp->sessions); i++) {
        struct rf_session *session = rf_sessions_at(&udp->sessions, i);

        if (session->fd < 0)
            continue;
        if (!session->answered)
            rf_count(worker, RF_LEGS_STOPPED, 1);
        rf_session_end(worker, session, RF_CLOSED_STOPPED);
    }
    rf_datagrams_free(udp->datagrams);
    rf_sessions_fini(&udp->sessions);
    free(udp);
    worker->udp = NULL;
}
