#include "worker.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "accept.h"
#include "leg.h"
#include "relay.h"
#include "sys.h"

#define EVENTS 256

/* No connection has generation 0: what else is in epoll has it, and its number below. */
#define WAKE_TOKEN UINT32_MAX

/* How long accepting rests when descriptors or memory are short. */
#define PAUSE_MS 100U

/* While no buffer can be had to copy through. */
#define MEMORY_RETRY_MS 10U

/* Between looks whether all is acknowledged: at first, and once a reader has stalled. */
#define ACKED_MS 5U
#define ACKED_LATE_MS 100U

/* A connection that lives this long gets keepalive; a check is spared the calls and the timers. */
#define KEEPALIVE_AFTER_MS 5000U

void rf_worker_arm(struct rf_worker *worker, struct rf_conn *conn, enum rf_timer_class class)
{
    rf_worker_disarm(worker, conn);
    rf_fifo_arm(&worker->timers[class], &worker->conns, conn->index, worker->now_ms);
    conn->timer_class = (uint8_t)class;
}

void rf_worker_disarm(struct rf_worker *worker, struct rf_conn *conn)
{
    if (conn->timer_class == RF_TIMER_NONE)
        return;
    rf_fifo_disarm(&worker->timers[conn->timer_class], &worker->conns, conn->index);
    conn->timer_class = RF_TIMER_NONE;
}

void rf_worker_run_later(struct rf_worker *worker, struct rf_conn *conn)
{
    if (conn->flags & RF_CONN_QUEUED)
        return;
    conn->flags |= RF_CONN_QUEUED;
    conn->run_next = RF_NO_INDEX;
    if (worker->run_head == RF_NO_INDEX)
        worker->run_head = conn->index;
    else
        rf_slab_at(&worker->conns, worker->run_tail)->run_next = conn->index;
    worker->run_tail = conn->index;
}

void rf_worker_pause(struct rf_worker *worker)
{
    if (!worker->paused)
        rf_count(worker, RF_PAUSES_RESOURCES, 1);
    worker->paused = true;
    worker->resume_at_ms = worker->now_ms + PAUSE_MS;
    rf_accept_suspend(worker);
}

/* Everybody who is in the queue now gets one turn; who comes back waits for the next round. */
static void run_queue(struct rf_worker *worker)
{
    uint32_t last = worker->run_tail;
    uint32_t index = worker->run_head;

    while (index != RF_NO_INDEX) {
        struct rf_conn *conn = rf_slab_at(&worker->conns, index);
        bool was_last = index == last;

        worker->run_head = index = conn->run_next;
        conn->flags &= (uint8_t)~RF_CONN_QUEUED;
        if (conn->state == RF_CONN_CLOSED)
            rf_slab_put(&worker->conns, conn);
        else
            rf_conn_service(worker, conn);
        index = worker->run_head;
        if (was_last)
            break;
    }
}

static void set_keepalive(struct rf_worker *worker, struct rf_conn *conn)
{
    rf_fifo_disarm(&worker->timers[RF_TIMER_KEEPALIVE], &worker->conns, conn->index);
    conn->flags &= (uint8_t)~RF_CONN_KEEPALIVE_DUE;
    rf_sys_keep_alive(conn->fd[RF_PEER]);
    rf_sys_keep_alive(conn->fd[RF_SERVICE]);
}

static void expire(struct rf_worker *worker)
{
    for (unsigned class = 0; class < RF_TIMER_CLASSES; class++) {
        const struct rf_fifo *fifo = &worker->timers[class];
        uint32_t index;

        while ((index = rf_fifo_expired(fifo, &worker->conns, worker->now_ms)) != RF_NO_INDEX) {
            struct rf_conn *conn = rf_slab_at(&worker->conns, index);

            if (class == RF_TIMER_KEEPALIVE)
                set_keepalive(worker, conn);
            else
                rf_conn_expired(worker, conn);
        }
    }
    if (worker->paused && (int32_t)(worker->now_ms - worker->resume_at_ms) >= 0) {
        worker->paused = false;
        rf_accept_resume(worker);
    }
    if (worker->udp)
        rf_udp_expire(worker);
}

/* What epoll_wait may sleep for, in ms; -1: until something happens. */
static int wait_ms(struct rf_worker *worker)
{
    uint32_t ms = UINT32_MAX;

    if (worker->run_head != RF_NO_INDEX)
        return worker->scratch ? 0 : (int)MEMORY_RETRY_MS;
    for (unsigned class = 0; class < RF_TIMER_CLASSES; class++)
        ms = rf_fifo_remaining(&worker->timers[class], &worker->conns, worker->now_ms, ms);
    if (worker->udp)
        ms = rf_udp_remaining(worker, ms);
    if (worker->paused && ms > PAUSE_MS)
        ms = PAUSE_MS;
    return ms > INT32_MAX ? -1 : (int)ms;
}

static void woken(struct rf_worker *worker)
{
    uint64_t ignored;

    (void)!read(worker->wake_fd, &ignored, sizeof(ignored));
    if (*worker->request >= RF_REQUEST_STOP_ACCEPTING && !worker->closing)
        rf_accept_close(worker);
    if (worker->closing)
        rf_udp_close(worker);
    rf_accept_resume(worker);
}

static void dispatch(struct rf_worker *worker, const struct epoll_event *event)
{
    uint32_t generation = (uint32_t)(event->data.u64 >> 32);
    uint32_t number = (uint32_t)event->data.u64;
    struct rf_conn *conn;

    if (generation == 0) {
        if (number < RF_UDP_NUMBER)
            rf_accept_some(worker, number);
        else if (number == WAKE_TOKEN)
            woken(worker);
        else
            rf_udp_event(worker, number, event->events);
        return;
    }
    conn = rf_slab_at(&worker->conns, number >> 1);
    if (conn->generation[number & 1] != generation)
        return; /* told before the connection closed; its slot has been reused */
    switch ((enum rf_conn_state)conn->state) {
    case RF_CONN_CONNECTING:
        if (number & 1) /* the client is not registered yet */
            rf_leg_event(worker, conn, event->events);
        break;
    case RF_CONN_OPEN:
    case RF_CONN_HALF_CLOSED:
    case RF_CONN_RESETTING:
        rf_conn_event(worker, conn, number & 1 ? RF_SERVICE : RF_PEER, event->events);
        break;
    case RF_CONN_FREE:
    case RF_CONN_CLOSED:
    case RF_CONN_STATES:
        break; /* told before it closed, or a spare leg's */
    }
}

static void end_turn(struct rf_worker *worker)
{
    if (!rf_slab_end_turn(&worker->conns) || !worker->awaiting_slot)
        return;
    worker->awaiting_slot = false;
    rf_accept_resume(worker);
}

static void publish_gauges(struct rf_worker *worker)
{
    const uint32_t gauges[] = {
        [RF_SPARE_LEGS - RF_SPARE_LEGS] = worker->spare_legs,
        [RF_PIPES_IN_USE - RF_SPARE_LEGS] = worker->pipes.in_use,
        [RF_PIPES_IDLE - RF_SPARE_LEGS] = worker->pipes.idle_count,
        [RF_BUFFERS_IN_USE - RF_SPARE_LEGS] = worker->buffers.in_use - !!worker->scratch,
    };

    for (unsigned i = 0; i < sizeof(gauges) / sizeof(gauges[0]); i++)
        atomic_store_explicit(&worker->counters[RF_SPARE_LEGS + i], gauges[i],
                              memory_order_relaxed);
}

void rf_worker_run(struct rf_worker *worker)
{
    struct epoll_event events[EVENTS];

    while (*worker->request != RF_REQUEST_STOP &&
           !(worker->closing && worker->conns.used == 0 && rf_udp_close(worker))) {
        int n = epoll_wait(worker->epoll_fd, events, EVENTS, wait_ms(worker));

        worker->now_ms = rf_sys_now_ms();
        for (int i = 0; i < n; i++)
            dispatch(worker, &events[i]);
        run_queue(worker);
        expire(worker);
        end_turn(worker);
        publish_gauges(worker);
    }
}

int rf_worker_init(struct rf_worker *worker, uint32_t capacity, uint32_t max_pipes)
{
    const struct rf_settings *settings = worker->settings;
    const uint32_t lengths_ms[RF_TIMER_CLASSES] = {
        [RF_TIMER_CONNECT] = settings->connect_timeout_ms,
        [RF_TIMER_IDLE] = settings->idle_timeout_ms,
        [RF_TIMER_HALF_CLOSE] = settings->half_close_timeout_ms,
        [RF_TIMER_ACKED] = ACKED_MS,
        [RF_TIMER_ACKED_LATE] = ACKED_LATE_MS,
        [RF_TIMER_KEEPALIVE] = KEEPALIVE_AFTER_MS,
    };
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = WAKE_TOKEN};
    int r;

    worker->run_head = worker->run_tail = RF_NO_INDEX;
    worker->now_ms = rf_sys_now_ms();
    worker->pipes.max = max_pipes;
    for (unsigned class = 0; class < RF_TIMER_CLASSES; class++)
        rf_fifo_init(&worker->timers[class], class == RF_TIMER_KEEPALIVE, lengths_ms[class]);
    r = rf_slab_init(&worker->conns, capacity);
    if (r < 0)
        return r;
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (worker->epoll_fd < 0)
        return -errno;
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->wake_fd, &event) < 0)
        return -errno;
    r = rf_udp_init(worker, capacity);
    if (r < 0)
        return r;
    rf_accept_resume(worker);
    return worker->accepting ? 0 : -ENOSPC;
}

void rf_worker_fini(struct rf_worker *worker)
{
    worker->closing = true; /* no connection that ends now brings in another */
    for (uint32_t i = 0; i < rf_slab_end(&worker->conns); i++) {
        struct rf_conn *conn = rf_slab_at(&worker->conns, i);

        if (conn->state == RF_CONN_CONNECTING)
            rf_count(worker, RF_LEGS_STOPPED, 1);
        if (conn->state != RF_CONN_FREE && conn->state != RF_CONN_CLOSED)
            rf_conn_reset(worker, conn, RF_CLOSED_STOPPED);
        rf_leg_drop_spare(worker, conn);
    }
    rf_udp_fini(worker);
    for (uint32_t i = 0; i < worker->settings->targets_count; i++) {
        if (worker->listener_fds[i] >= 0)
            close(worker->listener_fds[i]);
        worker->listener_fds[i] = -1;
    }
    RF_ASSERT(worker->spare_legs == 0);
    if (worker->epoll_fd >= 0)
        close(worker->epoll_fd);
    worker->epoll_fd = -1;
    if (worker->scratch)
        rf_buffer_put(&worker->buffers, worker->scratch);
    worker->scratch = NULL;
    rf_buffers_free(&worker->buffers);
    rf_pipes_free(&worker->pipes);
    publish_gauges(worker);
    rf_slab_fini(&worker->conns);
}
