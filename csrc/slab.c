#include "slab.h"

#include <errno.h>
#include <stdlib.h>

int rf_slab_init(struct rf_slab *slab, uint32_t capacity)
{
    uint32_t chunks = (capacity + RF_SLAB_CHUNK - 1) / RF_SLAB_CHUNK;

    *slab = (struct rf_slab){.capacity = capacity, .free_head = RF_NO_INDEX};
    slab->chunks = calloc(chunks, sizeof(struct rf_conn *));
    return slab->chunks ? 0 : -ENOMEM;
}

void rf_slab_fini(struct rf_slab *slab)
{
    for (uint32_t i = 0; i < slab->chunks_count; i++)
        free(slab->chunks[i]);
    free(slab->chunks);
    *slab = (struct rf_slab){.free_head = RF_NO_INDEX};
}

static bool grow(struct rf_slab *slab)
{
    uint32_t first = slab->chunks_count * RF_SLAB_CHUNK;
    struct rf_conn *chunk;

    if (first >= slab->capacity)
        return false;
    chunk = calloc(RF_SLAB_CHUNK, sizeof(*chunk));
    if (!chunk)
        return false;
    slab->chunks[slab->chunks_count++] = chunk;
    for (uint32_t i = RF_SLAB_CHUNK; i-- > 0;) {
        chunk[i].index = first + i;
        chunk[i].timers[0].next = slab->free_head;
        slab->free_head = first + i;
    }
    return true;
}

struct rf_conn *rf_slab_get(struct rf_slab *slab)
{
    struct rf_conn *conn;

    if (slab->used >= slab->capacity)
        return NULL;
    if (slab->free_head == RF_NO_INDEX && !grow(slab))
        return NULL;
    conn = rf_slab_at(slab, slab->free_head);
    slab->free_head = conn->timers[0].next;
    slab->used++;
    *conn = (struct rf_conn){
        .fd = {-1, -1},
        .index = conn->index,
        .generation = conn->generation + 1,
    };
    if (conn->generation == 0) /* wrapped: 0 marks events that are no connection's */
        conn->generation = 1;
    return conn;
}

void rf_slab_put(struct rf_slab *slab, struct rf_conn *conn)
{
    conn->state = RF_CONN_FREE;
    conn->timers[0].next = slab->free_head;
    slab->free_head = conn->index;
    slab->used--;
}
