#include "pipe.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/*
 * What is asked for, best first: 1 MB costs less CPU per GB than 256 kB, and is
 * as much as an ordinary user may have (pipe-max-size). Below 64 kB, what
 * splicing saves goes into its system calls.
 */
static const int sizes[] = {1024 * 1024, 256 * 1024, 64 * 1024};

#define SIZES (sizeof(sizes) / sizeof(sizes[0]))

/*
 * All pipes of an ordinary user have 64 MB in sum (pipe-user-pages-soft), those
 * of his other programs too. So a worker has few large ones, and keeps few.
 */
#define LARGE_MAX 16U
#define IDLE_MAX 16U
#define RETRY_MS 1000U

static void close_pipe(struct rf_pipe *pipe)
{
    close(pipe->read_fd);
    close(pipe->write_fd);
    free(pipe);
}

/*
 * Returns the capacity, or -1 where the kernel gives too little: when an
 * ordinary user's pages have run out, a pipe has a page or two and may not grow
 * (pipe(7)). Then copying is cheaper.
 */
static int enlarge(int fd, bool large)
{
    int capacity = -1;

    for (size_t i = large ? 0 : 1; capacity < 0 && i < SIZES; i++)
        capacity = fcntl(fd, F_SETPIPE_SZ, sizes[i]);
    return capacity;
}

static struct rf_pipe *open_pipe(bool large)
{
    struct rf_pipe *pipe = malloc(sizeof(*pipe));
    int fds[2];
    int capacity;

    if (!pipe)
        return NULL;
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0) {
        free(pipe);
        return NULL;
    }
    *pipe = (struct rf_pipe){.read_fd = fds[0], .write_fd = fds[1]};
    capacity = enlarge(pipe->write_fd, large);
    if (capacity < 0) {
        close_pipe(pipe);
        return NULL;
    }
    pipe->capacity = (uint32_t)capacity;
    return pipe;
}

struct rf_pipe *rf_pipe_get(struct rf_pipes *pipes, uint32_t now_ms)
{
    struct rf_pipe *pipe = pipes->idle;

    if (pipe) {
        pipes->idle = pipe->next;
        pipes->idle_count--;
        pipes->in_use++;
        return pipe;
    }
    if (pipes->in_use >= pipes->max)
        return NULL;
    if (pipes->failed && (int32_t)(now_ms - pipes->retry_at_ms) < 0)
        return NULL;
    pipe = open_pipe(pipes->in_use < LARGE_MAX); /* none is idle here */
    pipes->failed = !pipe;
    if (!pipe) {
        pipes->retry_at_ms = now_ms + RETRY_MS;
        return NULL;
    }
    pipes->in_use++;
    return pipe;
}

void rf_pipe_put(struct rf_pipes *pipes, struct rf_pipe *pipe)
{
    if (pipe->bytes != 0 || pipes->idle_count >= IDLE_MAX) {
        rf_pipe_kill(pipes, pipe);
        return;
    }
    pipes->in_use--;
    pipe->next = pipes->idle;
    pipes->idle = pipe;
    pipes->idle_count++;
}

void rf_pipe_kill(struct rf_pipes *pipes, struct rf_pipe *pipe)
{
    pipes->in_use--;
    close_pipe(pipe);
}

void rf_pipes_free(struct rf_pipes *pipes)
{
    while (pipes->idle) {
        struct rf_pipe *pipe = pipes->idle;

        pipes->idle = pipe->next;
        close_pipe(pipe);
    }
    pipes->idle_count = 0;
}
