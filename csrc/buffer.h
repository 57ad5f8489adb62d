/*
 * buffer.h - the buffers of a worker: one to copy through, more only for bytes
 * that a slow sink left behind.
 *
 * get: the caller owns the buffer. put: back to the free list, which keeps a
 * few and frees the rest.
 */
#ifndef RF_BUFFER_H
#define RF_BUFFER_H

#include <stdint.h>

/*
 * A read that fills it counts towards promotion to splice. Splicing wins from
 * 4 kB on (bench/figures.py relay), by 30 % at 16 kB; but a message that fits
 * into one read costs one recv and one send, and needs no pipe.
 */
#define RF_BUFFER_SIZE (16U * 1024)

struct rf_buffer {
    struct rf_buffer *next; /* in the free list */
    uint32_t start;         /* the bytes held are data[start..end) */
    uint32_t end;
    char data[RF_BUFFER_SIZE];
};

struct rf_buffers {
    struct rf_buffer *free;
    uint32_t free_count;
    uint32_t in_use; /* handed out */
};

/* NULL when memory is short. */
struct rf_buffer *rf_buffer_get(struct rf_buffers *buffers);
void rf_buffer_put(struct rf_buffers *buffers, struct rf_buffer *buffer);
void rf_buffers_free(struct rf_buffers *buffers);

#endif
