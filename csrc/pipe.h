/*
 * pipe.h - the pipes that splice(2) needs between two sockets, pooled.
 *
 * Three words: get, the caller owns an empty pipe; put, an empty pipe goes back
 * to the pool; kill, a pipe with bytes left is closed, for the next stream must
 * never see them. A stream holds a pipe only while bytes are in flight.
 */
#ifndef RF_PIPE_H
#define RF_PIPE_H

#include <stdbool.h>
#include <stdint.h>

struct rf_pipe {
    struct rf_pipe *next; /* in the pool */
    int read_fd;
    int write_fd;
    uint32_t capacity; /* bytes */
    uint32_t bytes;    /* in flight: spliced in and not yet out */
};

struct rf_pipes {
    struct rf_pipe *idle;
    uint32_t idle_count;
    uint32_t in_use;
    uint32_t max;         /* idle and in use together */
    uint32_t retry_at_ms; /* after a failure: not to ask the kernel every time */
    bool failed;
};

/* NULL when the pool's bound, the descriptors or the user's pipe pages are used up: copy then. */
struct rf_pipe *rf_pipe_get(struct rf_pipes *pipes, uint32_t now_ms);
void rf_pipe_put(struct rf_pipes *pipes, struct rf_pipe *pipe);
void rf_pipe_kill(struct rf_pipes *pipes, struct rf_pipe *pipe);
void rf_pipes_free(struct rf_pipes *pipes);

#endif
