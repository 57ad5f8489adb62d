/*
 * timer.h - timeouts as one FIFO per class.
 *
 * Every timeout of a class has the same length, so the queue is in order of
 * expiry by itself: arm appends, disarm unlinks, the head is the next to
 * expire. To keep busy connections from moving in the queue at every byte, a
 * timer that is touched again within 1/64 of its length stays where it is; for
 * this the deadline has that 1/64 on top. It is never early.
 *
 * Links are indices of connections, not pointers: half the memory.
 */
#ifndef RF_TIMER_H
#define RF_TIMER_H

#include <stdbool.h>
#include <stdint.h>

#define RF_NO_INDEX UINT32_MAX

struct rf_timer {
    uint32_t previous;
    uint32_t next;
    uint32_t deadline_ms;
};

struct rf_slab;

struct rf_fifo {
    uint32_t head;
    uint32_t tail;
    uint32_t length_ms;
    uint32_t slack_ms;
    unsigned link; /* which of a connection's timers it threads through */
};

void rf_fifo_init(struct rf_fifo *fifo, unsigned link, uint32_t length_ms);
void rf_fifo_arm(struct rf_fifo *fifo, struct rf_slab *slab, uint32_t index, uint32_t now_ms);
void rf_fifo_disarm(struct rf_fifo *fifo, struct rf_slab *slab, uint32_t index);

/* Moves an armed timer to the end, unless that would gain less than the slack. */
void rf_fifo_touch(struct rf_fifo *fifo, struct rf_slab *slab, uint32_t index, uint32_t now_ms);

/* The head if it has expired, else RF_NO_INDEX. */
uint32_t rf_fifo_expired(const struct rf_fifo *fifo, struct rf_slab *slab, uint32_t now_ms);

/* Milliseconds until the head expires, never above limit_ms. */
uint32_t rf_fifo_remaining(const struct rf_fifo *fifo, struct rf_slab *slab, uint32_t now_ms,
                           uint32_t limit_ms);

#endif
