/*
 * sys.h - the few system calls that want more than one line, and assertions.
 */
#ifndef RF_SYS_H
#define RF_SYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Our own mistakes end a debug build; what a peer does is counted, never asserted. */
#ifdef RF_DEBUG
#include <assert.h>
#define RF_ASSERT(condition) assert(condition)
#else
#define RF_ASSERT(condition) ((void)sizeof(condition))
#endif

/*
 * Registers a socket for all that it can receive, and for `events` (EPOLLOUT or
 * 0), edge-triggered. 0 or -errno.
 */
int rf_sys_watch(int epoll_fd, int fd, uint32_t events, uint64_t token);

/* Adds EPOLLOUT to a registration; told at once if the socket is writable. 0 or -errno. */
int rf_sys_watch_writable(int epoll_fd, int fd, uint64_t token);

/* Keepalive: a dead other end is noticed within two minutes, well before the idle timeout. */
void rf_sys_keep_alive(int fd);

/*
 * Disconnects a TCP socket (connect(2), AF_UNSPEC): where the connection is not
 * over, with a RST, at once and also if a forked child holds the socket too.
 * What is unsent is dropped. 0 or -errno.
 */
int rf_sys_reset(int fd);

/* Closes two descriptors (-1: none), in one call where their numbers are neighbours. */
void rf_sys_close_both(int a, int b);

/*
 * Gives the calling thread a descriptor table of its own and closes in it all
 * but the kept ones, which must be in ascending order; /dev/null takes the place
 * of the standard streams, which are the program's to close. False where the kernel
 * or a seccomp filter does not allow it: then nothing is closed.
 */
bool rf_sys_take_table(const int *keep, size_t keep_count);

/* Milliseconds of a clock that only goes forward; wraps after 49 days. */
uint32_t rf_sys_now_ms(void);

#endif
