#include "timer.h"

#include "slab.h"

static struct rf_timer *timer_of(const struct rf_fifo *fifo, struct rf_slab *slab, uint32_t index)
{
    return &rf_slab_at(slab, index)->timers[fifo->link];
}

void rf_fifo_init(struct rf_fifo *fifo, unsigned link, uint32_t length_ms)
{
    *fifo = (struct rf_fifo){
        .head = RF_NO_INDEX,
        .tail = RF_NO_INDEX,
        .length_ms = length_ms,
        .slack_ms = length_ms / 64,
        .link = link,
    };
}

void rf_fifo_arm(struct rf_fifo *fifo, struct rf_slab *slab, uint32_t index, uint32_t now_ms)
{
    struct rf_timer *timer = timer_of(fifo, slab, index);

    /* One more: now_ms is rounded down, and early is wrong. */
    timer->deadline_ms = now_ms + fifo->length_ms + fifo->slack_ms + 1;
    timer->previous = fifo->tail;
    timer->next = RF_NO_INDEX;
    if (fifo->tail == RF_NO_INDEX)
        fifo->head = index;
    else
        timer_of(fifo, slab, fifo->tail)->next = index;
    fifo->tail = index;
}

void rf_fifo_disarm(struct rf_fifo *fifo, struct rf_slab *slab, uint32_t index)
{
    struct rf_timer *timer = timer_of(fifo, slab, index);

    if (timer->previous == RF_NO_INDEX)
        fifo->head = timer->next;
    else
        timer_of(fifo, slab, timer->previous)->next = timer->next;
    if (timer->next == RF_NO_INDEX)
        fifo->tail = timer->previous;
    else
        timer_of(fifo, slab, timer->next)->previous = timer->previous;
}

void rf_fifo_touch(struct rf_fifo *fifo, struct rf_slab *slab, uint32_t index, uint32_t now_ms)
{
    int32_t remaining = (int32_t)(timer_of(fifo, slab, index)->deadline_ms - now_ms);

    if (remaining > (int32_t)fifo->length_ms)
        return;
    rf_fifo_disarm(fifo, slab, index);
    rf_fifo_arm(fifo, slab, index, now_ms);
}

uint32_t rf_fifo_expired(const struct rf_fifo *fifo, struct rf_slab *slab, uint32_t now_ms)
{
    if (fifo->head == RF_NO_INDEX)
        return RF_NO_INDEX;
    if ((int32_t)(timer_of(fifo, slab, fifo->head)->deadline_ms - now_ms) > 0)
        return RF_NO_INDEX;
    return fifo->head;
}

uint32_t rf_fifo_remaining(const struct rf_fifo *fifo, struct rf_slab *slab, uint32_t now_ms,
                           uint32_t limit_ms)
{
    int32_t remaining;

    if (fifo->head == RF_NO_INDEX)
        return limit_ms;
    remaining = (int32_t)(timer_of(fifo, slab, fifo->head)->deadline_ms - now_ms);
    if (remaining <= 0)
        return 0;
    return (uint32_t)remaining < limit_ms ? (uint32_t)remaining : limit_ms;
}
