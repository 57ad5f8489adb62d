#include "buffer.h"

#include <stdlib.h>

#define FREE_MAX 32U

struct rf_buffer *rf_buffer_get(struct rf_buffers *buffers)
{
    struct rf_buffer *buffer = buffers->free;

    if (buffer) {
        buffers->free = buffer->next;
        buffers->free_count--;
    } else {
        buffer = malloc(sizeof(*buffer));
        if (!buffer)
            return NULL;
    }
    buffer->next = NULL;
    buffer->start = buffer->end = 0;
    buffers->in_use++;
    return buffer;
}

void rf_buffer_put(struct rf_buffers *buffers, struct rf_buffer *buffer)
{
    buffers->in_use--;
    if (buffers->free_count >= FREE_MAX) {
        free(buffer);
        return;
    }
    buffer->next = buffers->free;
    buffers->free = buffer;
    buffers->free_count++;
}

void rf_buffers_free(struct rf_buffers *buffers)
{
    while (buffers->free) {
        struct rf_buffer *buffer = buffers->free;

        buffers->free = buffer->next;
        free(buffer);
    }
    buffers->free_count = 0;
}
