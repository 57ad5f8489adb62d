#include "slab.h"

#include <errno.h>
#include <stdlib.h>

static const struct rf_slab empty = {
    .spare_head = RF_NO_INDEX,
    .free_head = RF_NO_INDEX,
    .freed_head = RF_NO_INDEX,
};

int rf_slab_init(struct rf_slab *slab, uint32_t capacity)
{
    uint32_t chunks = (capacity + RF_SLAB_CHUNK - 1) / RF_SLAB_CHUNK;

    *slab = empty;
    slab->capacity = capacity;
    slab->chunks = calloc(chunks, sizeof(struct rf_conn *));
    return slab->chunks ? 0 : -ENOMEM;
}

void rf_slab_fini(struct rf_slab *slab)
{
    for (uint32_t i = 0; i < slab->chunks_count; i++)
        free(slab->chunks[i]);
    free(slab->chunks);
    *slab = empty;
}

static void push(uint32_t *head, struct rf_conn *conn)
{
    conn->timers[0].next = *head;
    *head = conn->index;
}

static struct rf_conn *pop(struct rf_slab *slab, uint32_t *head)
{
    struct rf_conn *conn = rf_slab_at(slab, *head);

    *head = conn->timers[0].next;
    return conn;
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
        chunk[i].fd[RF_PEER] = chunk[i].fd[RF_SERVICE] = -1;
        push(&slab->free_head, &chunk[i]);
    }
    return true;
}

struct rf_conn *rf_slab_get(struct rf_slab *slab)
{
    struct rf_conn *conn;

    if (slab->used >= slab->capacity)
        return NULL;
    if (slab->spare_head != RF_NO_INDEX)
        conn = pop(slab, &slab->spare_head);
    else if (slab->free_head != RF_NO_INDEX || grow(slab))
        conn = pop(slab, &slab->free_head);
    else
        return NULL;
    slab->used++;
    *conn = (struct rf_conn){
        .fd = {-1, conn->fd[RF_SERVICE]},
        .index = conn->index,
        .generation = {conn->generation[RF_PEER], conn->generation[RF_SERVICE]},
        .leg_source = conn->leg_source,
    };
    return conn;
}

void rf_slab_put(struct rf_slab *slab, struct rf_conn *conn)
{
    conn->state = RF_CONN_FREE;
    push(&slab->freed_head, conn);
}

bool rf_slab_end_turn(struct rf_slab *slab)
{
    bool any = slab->freed_head != RF_NO_INDEX;

    while (slab->freed_head != RF_NO_INDEX) {
        struct rf_conn *conn = pop(slab, &slab->freed_head);

        push(conn->fd[RF_SERVICE] < 0 ? &slab->free_head : &slab->spare_head, conn);
        slab->used--;
    }
    return any;
}
