/*
 * slab.h - the connections of a worker, by index, in chunks that never move.
 *
 * Grows by a chunk at a time up to its capacity and keeps what it has: the
 * memory of a worker is that of its busiest moment, some 120 bytes a
 * connection. The free list is last in, first out, so that a busy reflector
 * works in few cache lines.
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
    uint32_t free_head; /* threaded through timers[0].next */
};

int rf_slab_init(struct rf_slab *slab, uint32_t capacity);
void rf_slab_fini(struct rf_slab *slab);

/* NULL at capacity or when memory is short. Keeps index and generation, zeroes the rest. */
struct rf_conn *rf_slab_get(struct rf_slab *slab);
void rf_slab_put(struct rf_slab *slab, struct rf_conn *conn);

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
