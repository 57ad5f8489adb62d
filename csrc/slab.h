/*
 * slab.h - the connections of a worker, by index, in chunks that never move.
 *
 * Grows by a chunk at a time up to its capacity and keeps what it has: the
 * memory of a worker is that of its busiest moment, some 100 bytes a
 * connection. Free lists are last in, first out, so that a busy reflector works
 * in few cache lines; slots with a spare leg go first.
 */
#ifndef RF_SLAB_H
#define RF_SLAB_H

#include "conn.h"

#define RF_SLAB_CHUNK 128U

struct rf_slab {
    struct rf_conn **chunks;
    uint32_t chunks_count;
    uint32_t capacity;
    uint32_t used;
    /* Lists threaded through timers[0].next: */
    uint32_t spare_head; /* free, with a spare leg */
    uint32_t free_head;  /* free, without */
    uint32_t freed_head; /* freed in this turn, to be handed out from the next on */
};

int rf_slab_init(struct rf_slab *slab, uint32_t capacity);
void rf_slab_fini(struct rf_slab *slab);

/*
 * NULL at capacity or when memory is short. Zeroes the connection but for its
 * index, its generations and its spare leg, if it has one.
 */
struct rf_conn *rf_slab_get(struct rf_slab *slab);
void rf_slab_put(struct rf_slab *slab, struct rf_conn *conn);

/* The turn is over: what was put can be had again. True if there was any. */
bool rf_slab_end_turn(struct rf_slab *slab);

static inline struct rf_conn *rf_slab_at(struct rf_slab *slab, uint32_t index)
{
    return &slab->chunks[index / RF_SLAB_CHUNK][index % RF_SLAB_CHUNK];
}

/* One past the highest index ever handed out. */
static inline uint32_t rf_slab_end(const struct rf_slab *slab)
{
    return slab->chunks_count * RF_SLAB_CHUNK;
}

#endif
