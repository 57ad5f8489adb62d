/*
 * worker.h - one thread with everything that its connections need.
 *
 * A worker shares nothing on its way but the admission limits: epoll,
 * listeners, connections, UDP sessions, timers, pipes, buffers, counters and, where the
 * kernel lets it, the descriptor table are its own. Only its thread touches
 * them; counters are read from outside, one relaxed load each.
 */
#ifndef RF_WORKER_H
#define RF_WORKER_H

#include <pthread.h>
#include <stdatomic.h>

#include "address.h"
#include "admission.h"
#include "buffer.h"
#include "conn.h"
#include "pipe.h"
#include "reflector.h"
#include "settings.h"
#include "slab.h"
#include "timer.h"
#include "udp.h"

/* What the owner of the engine wants of its workers. */
enum rf_request {
    RF_REQUEST_RUN,
    RF_REQUEST_STOP_ACCEPTING,
    RF_REQUEST_STOP,
};

enum rf_timer_class {
    RF_TIMER_CONNECT,
    RF_TIMER_IDLE,
    RF_TIMER_HALF_CLOSE,
    RF_TIMER_ACKED,      /* look again whether the bytes before a reset are acknowledged */
    RF_TIMER_ACKED_LATE, /* ... less often */
    RF_TIMER_KEEPALIVE,
    RF_TIMER_CLASSES,
    RF_TIMER_NONE = RF_TIMER_CLASSES
};

#define RF_LEG_SOURCES_MAX 64U

struct rf_worker {
    /* Starts a cache line: no worker writes to that of another. */
    _Alignas(64) const struct rf_settings *settings;
    const atomic_uint *request; /* enum rf_request, set from outside before a write to wake_fd */
    struct rf_admission *admission;
    int epoll_fd;
    int wake_fd;       /* eventfd: a request from outside, or room under the limits */
    int *listener_fds; /* one a target; -1 once closed */
    bool accepting;     /* listeners are in epoll */
    bool closing;       /* listeners are closed: end with the last connection */
    bool awaiting_slot; /* not accepting until one of its own connections ends */
    bool paused;        /* not accepting for want of resources, until: */
    uint32_t resume_at_ms;
    uint32_t now_ms;
    uint32_t run_head, run_tail; /* connections that used up their rounds, in order */
    struct rf_slab conns;
    uint32_t spare_legs; /* in free slots */
    /* The local addresses that legs have been bound to; a host with more has no spares for them. */
    uint32_t leg_sources_count;
    union rf_address leg_sources[RF_LEG_SOURCES_MAX];
    struct rf_fifo timers[RF_TIMER_CLASSES];
    struct rf_pipes pipes;
    struct rf_buffers buffers;
    struct rf_udp *udp; /* NULL without a UDP mapping */
    struct rf_buffer *scratch; /* what is copied goes through here; NULL when memory is short */
    _Atomic uint64_t counters[RF_COUNTER_MAX];
    pthread_t thread;
    uint32_t number;
    bool own_table; /* has a descriptor table of its own */
};

/* Only the worker writes: a load and a store, no locked instruction. */
static inline void rf_count(struct rf_worker *worker, enum rf_counter counter, uint64_t n)
{
    uint64_t value = atomic_load_explicit(&worker->counters[counter], memory_order_relaxed);

    atomic_store_explicit(&worker->counters[counter], value + n, memory_order_relaxed);
}

/*
 * Sets up what the worker owns, in its own thread: room for capacity connections
 * and at most max_pipes pipes. 0 or -errno.
 */
int rf_worker_init(struct rf_worker *worker, uint32_t capacity, uint32_t max_pipes);

/* Runs until the engine stops it or, after stop accepting, its last connection has ended. */
void rf_worker_run(struct rf_worker *worker);

/* Resets all that is left and gives back what rf_worker_init took. */
void rf_worker_fini(struct rf_worker *worker);

/* Arms timers[0] of a connection in a class, instead of the one that it was in. */
void rf_worker_arm(struct rf_worker *worker, struct rf_conn *conn, enum rf_timer_class class);
void rf_worker_disarm(struct rf_worker *worker, struct rf_conn *conn);

/* Runs the connection again in this loop's next round, after everybody else's turn. */
void rf_worker_run_later(struct rf_worker *worker, struct rf_conn *conn);

/* Stops accepting for a moment: descriptors or memory are short. */
void rf_worker_pause(struct rf_worker *worker);

#endif
