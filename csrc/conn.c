#include "conn.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "leg.h"
#include "relay.h"
#include "sys.h"
#include "worker.h"

/* While RESETTING: how long to look every few milliseconds; a reader that stalls can wait. */
#define LOOK_OFTEN_MS 200U

/* The drawing of conn.h as a table: the states that each state may move to. */
static const uint8_t transitions[RF_CONN_STATES] = {
    [RF_CONN_FREE] = 1U << RF_CONN_CONNECTING,
    [RF_CONN_CONNECTING] = 1U << RF_CONN_OPEN | 1U << RF_CONN_CLOSED,
    [RF_CONN_OPEN] = 1U << RF_CONN_HALF_CLOSED | 1U << RF_CONN_RESETTING | 1U << RF_CONN_CLOSED,
    [RF_CONN_HALF_CLOSED] = 1U << RF_CONN_RESETTING | 1U << RF_CONN_CLOSED,
    [RF_CONN_RESETTING] = 1U << RF_CONN_CLOSED,
    [RF_CONN_CLOSED] = 0, /* the slab makes it FREE */
};

void rf_conn_set_state(struct rf_conn *conn, enum rf_conn_state state)
{
    RF_ASSERT(transitions[conn->state] & (1U << state));
    conn->state = (uint8_t)state;
}

void rf_conn_open(struct rf_worker *worker, struct rf_conn *conn)
{
    rf_count(worker, RF_LEGS_CONNECTED, 1);
    rf_conn_set_state(conn, RF_CONN_OPEN);
    rf_conn_renew(conn, RF_PEER);
    /* Without EPOLLOUT, which would be told at once; relay.c adds it if it is ever full. */
    if (rf_sys_watch(worker->epoll_fd, conn->fd[RF_PEER], 0, rf_conn_token(conn, RF_PEER)) < 0) {
        rf_worker_pause(worker);
        rf_conn_reset(worker, conn, RF_CLOSED_RESOURCES);
        return;
    }
    conn->halves[RF_PEER].flags = RF_HALF_WRITABLE | RF_HALF_WATCHED;
    conn->halves[RF_SERVICE].flags = RF_HALF_WRITABLE;
    rf_worker_arm(worker, conn, RF_TIMER_IDLE);
    rf_fifo_arm(&worker->timers[RF_TIMER_KEEPALIVE], &worker->conns, conn->index,
                worker->now_ms);
    conn->flags |= RF_CONN_KEEPALIVE_DUE;
}

/*
 * The usual end of a check: the client's FIN has gone to the service, and now
 * the service's has come. Asking once replaces the read that would say so, and
 * also tells whether the leg can be kept as a spare.
 */
static void note_leg_over(struct rf_conn *conn)
{
    struct rf_half *half = &conn->halves[RF_SERVICE];

    if (!(conn->halves[RF_PEER].flags & RF_HALF_ENDED) || half->buffer ||
        (half->flags & RF_HALF_ENDED) || (conn->flags & RF_CONN_LOST(RF_SERVICE)) ||
        !rf_leg_over(conn))
        return;
    conn->flags |= RF_CONN_LEG_OVER;
    half->flags |= RF_HALF_EOF;
}

void rf_conn_event(struct rf_worker *worker, struct rf_conn *conn, enum rf_side side,
                   uint32_t events)
{
    struct rf_half *from = &conn->halves[side];
    struct rf_half *towards = &conn->halves[rf_other(side)];

    if (events & EPOLLERR)
        conn->flags |= (uint8_t)RF_CONN_LOST(side);
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI))
        from->flags |= RF_HALF_READABLE;
    if (events & (EPOLLRDHUP | EPOLLHUP))
        from->flags |= RF_HALF_FIN_SEEN;
    if (events & EPOLLPRI)
        from->flags |= RF_HALF_URGENT | RF_HALF_COPY;
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        towards->flags |= RF_HALF_WRITABLE;
    if (side == RF_SERVICE && (events & (EPOLLHUP | EPOLLERR | EPOLLPRI)) == EPOLLHUP)
        note_leg_over(conn);
    rf_conn_service(worker, conn);
}

/* Nothing more goes to this half's sink: what it holds is dropped, what comes is not read. */
static void abandon(struct rf_worker *worker, struct rf_half *half)
{
    rf_relay_drop(worker, half);
    half->flags |= RF_HALF_EOF | RF_HALF_ENDED;
}

static void relay_side(struct rf_worker *worker, struct rf_conn *conn, enum rf_side side)
{
    struct rf_half *half = &conn->halves[side];
    enum rf_side sink = rf_other(side);

    if (half->flags & RF_HALF_ENDED)
        return;
    if (conn->flags & RF_CONN_LOST(sink)) {
        abandon(worker, half);
        return;
    }
    switch (rf_relay_run(worker, conn, side)) {
    case RF_RELAY_AGAIN:
        rf_worker_run_later(worker, conn);
        break;
    case RF_RELAY_SINK_LOST:
        /* The error is used up by the write; bytes that came before it still want reading. */
        conn->flags |= (uint8_t)RF_CONN_LOST(sink);
        abandon(worker, half);
        conn->halves[sink].flags |= RF_HALF_READABLE | RF_HALF_FIN_SEEN;
        rf_worker_run_later(worker, conn);
        break;
    case RF_RELAY_WAIT:
        break;
    }
}

/* Bytes that the other end has not acknowledged (tcp(7), SIOCOUTQ). */
static uint32_t unacknowledged(int fd)
{
    int bytes = 0;

    return ioctl(fd, SIOCOUTQ, &bytes) < 0 ? 0 : (uint32_t)bytes;
}

static bool looked_long(const struct rf_worker *worker, const struct rf_conn *conn)
{
    uint32_t since_ms = conn->reset_by_ms - worker->settings->half_close_timeout_ms;

    return worker->now_ms - since_ms > LOOK_OFTEN_MS;
}

/*
 * A reset throws away what the kernel has not delivered yet. So it waits until
 * all is acknowledged; no event tells of that, a short timer looks.
 */
static void reset_when_acknowledged(struct rf_worker *worker, struct rf_conn *conn)
{
    enum rf_side side = conn->flags & RF_CONN_LOST(RF_PEER) ? RF_SERVICE : RF_PEER;

    if (conn->flags & RF_CONN_LOST(side) || unacknowledged(conn->fd[side]) == 0 ||
        (int32_t)(worker->now_ms - conn->reset_by_ms) >= 0)
        rf_conn_reset(worker, conn, (enum rf_counter)conn->reason);
    else
        rf_worker_arm(worker, conn, looked_long(worker, conn) ? RF_TIMER_ACKED_LATE
                                                              : RF_TIMER_ACKED);
}

static void begin_reset(struct rf_worker *worker, struct rf_conn *conn, enum rf_side lost)
{
    abandon(worker, &conn->halves[rf_other(lost)]);
    conn->reason = lost == RF_PEER ? RF_CLOSED_RESET_BY_PEER : RF_CLOSED_RESET_BY_SERVICE;
    conn->reset_by_ms = worker->now_ms + worker->settings->half_close_timeout_ms;
    rf_conn_set_state(conn, RF_CONN_RESETTING);
    reset_when_acknowledged(worker, conn);
}

static void touch_timer(struct rf_worker *worker, struct rf_conn *conn)
{
    if (!(conn->flags & RF_CONN_MOVED))
        return;
    conn->flags &= (uint8_t)~RF_CONN_MOVED;
    rf_fifo_touch(&worker->timers[conn->timer_class], &worker->conns, conn->index,
                  worker->now_ms);
}

static void half_close(struct rf_worker *worker, struct rf_conn *conn)
{
    if (conn->state == RF_CONN_HALF_CLOSED) {
        touch_timer(worker, conn);
        return;
    }
    rf_conn_set_state(conn, RF_CONN_HALF_CLOSED);
    rf_worker_arm(worker, conn, RF_TIMER_HALF_CLOSE);
}

void rf_conn_service(struct rf_worker *worker, struct rf_conn *conn)
{
    struct rf_half *halves = conn->halves;
    bool peer_lost, service_lost, peer_ended, service_ended;

    if (conn->state != RF_CONN_RESETTING) {
        relay_side(worker, conn, RF_PEER);
        relay_side(worker, conn, RF_SERVICE);
    }
    peer_lost = conn->flags & RF_CONN_LOST(RF_PEER);
    service_lost = conn->flags & RF_CONN_LOST(RF_SERVICE);
    peer_ended = halves[RF_PEER].flags & RF_HALF_ENDED;
    service_ended = halves[RF_SERVICE].flags & RF_HALF_ENDED;

    if (conn->state == RF_CONN_RESETTING)
        reset_when_acknowledged(worker, conn);
    else if (peer_lost && service_lost)
        rf_conn_reset(worker, conn, RF_CLOSED_RESET_BY_PEER);
    else if (peer_lost && peer_ended)
        begin_reset(worker, conn, RF_PEER);
    else if (service_lost && service_ended)
        begin_reset(worker, conn, RF_SERVICE);
    else if (peer_ended && service_ended)
        rf_conn_close(worker, conn, RF_CLOSED_FINISHED);
    else if (peer_lost || service_lost || peer_ended || service_ended)
        half_close(worker, conn);
    else
        touch_timer(worker, conn);
}

/*
 * A slow reader drains what we have written long before, without an event for
 * us: a send queue of megabytes becomes writable again only when a third of it
 * is free. So an expired connection whose send queues are on the move gets
 * another period; one that has stalled is found out in the second.
 */
static bool still_draining(struct rf_worker *worker, struct rf_conn *conn)
{
    uint32_t queued = unacknowledged(conn->fd[RF_PEER]) + unacknowledged(conn->fd[RF_SERVICE]);

    if (queued == 0 || queued == conn->queued)
        return false;
    conn->queued = queued;
    rf_worker_arm(worker, conn, (enum rf_timer_class)conn->timer_class);
    return true;
}

void rf_conn_expired(struct rf_worker *worker, struct rf_conn *conn)
{
    switch ((enum rf_timer_class)conn->timer_class) {
    case RF_TIMER_CONNECT:
        rf_count(worker, RF_LEGS_TIMED_OUT, 1);
        rf_conn_reset(worker, conn, RF_CLOSED_LEG_FAILED);
        break;
    case RF_TIMER_IDLE:
        if (!still_draining(worker, conn))
            rf_conn_reset(worker, conn, RF_CLOSED_IDLE);
        break;
    case RF_TIMER_HALF_CLOSE:
        if (!still_draining(worker, conn))
            rf_conn_reset(worker, conn, RF_CLOSED_HALF_CLOSE);
        break;
    case RF_TIMER_ACKED:
    case RF_TIMER_ACKED_LATE:
        reset_when_acknowledged(worker, conn);
        break;
    case RF_TIMER_KEEPALIVE: /* threads through timers[1], never the class of timers[0] */
    case RF_TIMER_NONE:
        RF_ASSERT(0);
        break;
    }
}

void rf_conn_reset(struct rf_worker *worker, struct rf_conn *conn, enum rf_counter reason)
{
    rf_sys_reset(conn->fd[RF_PEER]);
    /* A leg that still connects has nobody to tell, unless a forked child holds it too. */
    if (conn->fd[RF_SERVICE] >= 0 && (conn->state != RF_CONN_CONNECTING || !worker->own_table))
        rf_sys_reset(conn->fd[RF_SERVICE]);
    rf_conn_close(worker, conn, reason);
}

void rf_conn_close(struct rf_worker *worker, struct rf_conn *conn, enum rf_counter reason)
{
    bool spare = reason == RF_CLOSED_FINISHED && rf_leg_keep_spare(worker, conn);

    rf_worker_disarm(worker, conn);
    if (conn->flags & RF_CONN_KEEPALIVE_DUE)
        rf_fifo_disarm(&worker->timers[RF_TIMER_KEEPALIVE], &worker->conns, conn->index);
    rf_relay_drop(worker, &conn->halves[RF_PEER]);
    rf_relay_drop(worker, &conn->halves[RF_SERVICE]);
    rf_sys_close_both(conn->fd[RF_PEER], spare ? -1 : conn->fd[RF_SERVICE]);
    conn->fd[RF_PEER] = -1;
    if (!spare)
        conn->fd[RF_SERVICE] = -1;
    rf_admission_leave_source(worker->admission, conn->source);
    rf_count(worker, reason, 1);
    rf_count(worker, RF_ACTIVE, (uint64_t)-1);
    rf_conn_set_state(conn, RF_CONN_CLOSED);
    if (!(conn->flags & RF_CONN_QUEUED))
        rf_slab_put(&worker->conns, conn);
    rf_admission_leave(worker->admission);
}
