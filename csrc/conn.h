/*
 * conn.h - a reflected connection: two sockets, two halves, one state.
 *
 *              accept                leg connects
 *     FREE ------------> CONNECTING --------------> OPEN
 *      ^                     |                      |   \
 *      |                     | leg fails,           |    \ FIN passed on
 *      |                     | times out            |     v
 *      |                     |      RST of one side |   HALF_CLOSED
 *      |                     |                      v   /   |
 *      |                     |               RESETTING <    | FIN passed on
 *      |                     v                   |          v
 *      +-------------------- CLOSED <------------+----------+
 *
 * CONNECTING   only the return leg is in epoll; the client waits outside, so a
 *              connection that is refused costs no registration of it.
 * OPEN         both directions carry bytes.
 * HALF_CLOSED  one direction has ended with a FIN; the other goes on.
 * RESETTING    one side is lost. What had arrived from it is passed on and
 *              acknowledged first; only then is the other side reset.
 * CLOSED       the sockets are gone. The slot is free when the worker's turn is
 *              over and the run queue no longer names it.
 *
 * Who owns what: a connection owns its two sockets and, through its halves, the
 * pipe or buffer with the bytes in flight, its place in the timers and its
 * places in the admission limits. rf_conn_close gives all of it back; nothing
 * else does. A FREE slot owns nothing, or one spare leg (leg.h).
 *
 * A stale event cannot touch a recycled connection: an event carries the
 * generation of its socket's registration. A spare leg keeps its registration,
 * so two things more: a slot that is freed in a turn is not handed out before
 * the next, when the events of the turn are through; and what can be told of a
 * spare in between, a hang-up without an error, is nothing that can be told of
 * a leg that is connecting (leg.c).
 */
#ifndef RF_CONN_H
#define RF_CONN_H

#include <stdint.h>

#include "address.h"
#include "reflector.h"
#include "timer.h"

struct rf_worker;

/* The two sides; fd[side] and halves[side] belong to it. */
enum rf_side {
    RF_PEER = 0,    /* who connected to us */
    RF_SERVICE = 1, /* the return leg: the peer's own service */
};

enum rf_conn_state {
    RF_CONN_FREE,
    RF_CONN_CONNECTING,
    RF_CONN_OPEN,
    RF_CONN_HALF_CLOSED,
    RF_CONN_RESETTING,
    RF_CONN_CLOSED,
    RF_CONN_STATES
};

/* Flags of a connection. */
#define RF_CONN_LOST(side) (1U << (side)) /* the side was reset, or its socket failed */
#define RF_CONN_QUEUED (1U << 2)          /* in the worker's run queue */
#define RF_CONN_MOVED (1U << 3)           /* bytes moved since the timer was touched */
#define RF_CONN_KEEPALIVE_DUE (1U << 4)   /* armed: keepalive not yet set */
#define RF_CONN_SAME_HOST (1U << 5)       /* peer and dialled address are the same */
#define RF_CONN_LEG_OVER (1U << 6)        /* rf_leg_over said so: fit for a spare */
#define RF_CONN_SCOPED (1U << 7)          /* the peer is link-local */

/* Flags of a half. */
#define RF_HALF_READABLE (1U << 0) /* the source may have bytes: no EAGAIN since the last event */
#define RF_HALF_WRITABLE (1U << 1) /* the sink may take bytes */
#define RF_HALF_FIN_SEEN (1U << 2) /* the source's FIN has arrived; bytes may stand before it */
#define RF_HALF_EOF (1U << 3)      /* the source is read to its end */
#define RF_HALF_ENDED (1U << 4)    /* that end has been passed on: nothing left to do */
#define RF_HALF_SPLICE (1U << 5)   /* a bulk stream: splice, do not copy */
#define RF_HALF_URGENT (1U << 6)   /* an urgent byte is, or is about to be, in the queue */
#define RF_HALF_COPY (1U << 7)     /* never splice: the stream has had urgent bytes */
#define RF_HALF_WRITTEN (1U << 8)  /* the sink has been written to */
#define RF_HALF_NODELAY (1U << 9)  /* the sink has TCP_NODELAY */
#define RF_HALF_WATCHED (1U << 10) /* the sink is registered for EPOLLOUT too */
#define RF_HALF_PIPED (1U << 11)   /* what is in flight is in a pipe, not a buffer */

/* One direction: from fd[side] to the other. */
struct rf_half {
    union { /* bytes that were read and that the sink did not take; NULL: none */
        struct rf_buffer *buffer;
        struct rf_pipe *pipe; /* with RF_HALF_PIPED */
    };
    uint16_t flags;
    uint8_t full_reads;  /* in a row: towards promotion */
    uint8_t small_reads; /* in a row, while splicing: towards demotion */
};

#define RF_TIMER_LINKS 2

struct rf_conn {
    int fd[2];
    uint32_t index;
    uint32_t generation[2]; /* of the registration of each side in epoll; never 0 */
    uint8_t state;        /* enum rf_conn_state */
    uint8_t flags;        /* RF_CONN_* */
    uint8_t timer_class;  /* enum rf_timer_class that timers[0] is armed in */
    uint8_t reason;       /* why it ends: enum rf_counter, once RESETTING */
    uint32_t source;    /* slot in the admission table */
    uint32_t run_next;  /* in the run queue */
    uint32_t leg_bytes; /* copied from the leg */
    union {
        uint32_t queued;      /* bytes in the kernel's send queues when a time-out last looked */
        uint32_t reset_by_ms; /* while RESETTING: no later than this */
    };
    uint16_t leg_source; /* in the worker's leg_sources: what fd[RF_SERVICE] is bound to */
    struct rf_timer timers[RF_TIMER_LINKS]; /* its time-out; its keepalive */
    struct rf_half halves[2];
};

/* Every idle connection takes this much: bench/figures.py memory. */
_Static_assert(sizeof(struct rf_conn) <= 104, "a connection has grown");

static inline enum rf_side rf_other(enum rf_side side)
{
    return side == RF_PEER ? RF_SERVICE : RF_PEER;
}

/* What epoll hands back for a socket of a connection. */
static inline uint64_t rf_conn_token(const struct rf_conn *conn, enum rf_side side)
{
    return (uint64_t)conn->generation[side] << 32 | conn->index << 1 | side;
}

/* A new registration: events of the one before are no longer this socket's. */
static inline void rf_conn_renew(struct rf_conn *conn, enum rf_side side)
{
    if (++conn->generation[side] == 0)
        conn->generation[side] = 1;
}

/* Moves to another state; the transition must be one of the drawing. */
void rf_conn_set_state(struct rf_conn *conn, enum rf_conn_state state);

/* The return leg is up: registers the client and begins to relay. */
void rf_conn_open(struct rf_worker *worker, struct rf_conn *conn);

/* Takes the epoll events of one side of an open connection. */
void rf_conn_event(struct rf_worker *worker, struct rf_conn *conn, enum rf_side side,
                   uint32_t events);

/* Relays what can be relayed and draws the consequences. */
void rf_conn_service(struct rf_worker *worker, struct rf_conn *conn);

/* The time-out of timers[0] has passed. */
void rf_conn_expired(struct rf_worker *worker, struct rf_conn *conn);

/* Resets both sides at once. */
void rf_conn_reset(struct rf_worker *worker, struct rf_conn *conn, enum rf_counter reason);

/* The one destructor: frees all that the connection owns and counts the reason. */
void rf_conn_close(struct rf_worker *worker, struct rf_conn *conn, enum rf_counter reason);

#endif
