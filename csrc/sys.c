#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Linux 5.9 (close_range(2)); the number is the same on every architecture. */
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

static int control(int epoll_fd, int operation, int fd, uint32_t events, uint64_t token)
{
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET | events,
        .data.u64 = token,
    };

    return epoll_ctl(epoll_fd, operation, fd, &event) < 0 ? -errno : 0;
}

int rf_sys_watch(int epoll_fd, int fd, uint32_t events, uint64_t token)
{
    return control(epoll_fd, EPOLL_CTL_ADD, fd, events, token);
}

int rf_sys_watch_writable(int epoll_fd, int fd, uint64_t token)
{
    return control(epoll_fd, EPOLL_CTL_MOD, fd, EPOLLOUT, token);
}

void rf_sys_keep_alive(int fd)
{
    static const int on = 1, idle_s = 60, interval_s = 10, probes = 6;

    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

int rf_sys_reset(int fd)
{
    static const struct sockaddr nobody = {.sa_family = AF_UNSPEC};

    return connect(fd, &nobody, sizeof(nobody)) < 0 ? -errno : 0;
}

#ifndef RF_SANITIZE_THREAD /* TSan takes one number in two tables for one descriptor */
static bool close_range_of(unsigned first, unsigned last)
{
    return syscall(SYS_close_range, first, last, 0) == 0;
}
#endif

void rf_sys_close_both(int a, int b)
{
#ifndef RF_SANITIZE /* the sanitizers keep books of descriptors and know only close */
    static atomic_bool missing;

    /*
     * A connection's two sockets are opened one after the other, so their
     * numbers are neighbours more often than not.
     */
    if (a >= 0 && b == a + 1 && !atomic_load_explicit(&missing, memory_order_relaxed)) {
        if (close_range_of((unsigned)a, (unsigned)b))
            return;
        atomic_store_explicit(&missing, true, memory_order_relaxed);
    }
#endif
    if (a >= 0)
        close(a);
    if (b >= 0)
        close(b);
}

bool rf_sys_take_table(const int *keep, size_t keep_count)
{
#ifdef RF_SANITIZE_THREAD
    (void)keep;
    (void)keep_count;
    return false;
#else
    unsigned first = 0;
    int null;

    if (unshare(CLONE_FILES) < 0)
        return false;
    for (size_t i = 0; i < keep_count; i++) {
        if ((unsigned)keep[i] > first && !close_range_of(first, (unsigned)keep[i] - 1))
            for (unsigned fd = first; fd < (unsigned)keep[i]; fd++)
                close((int)fd);
        first = (unsigned)keep[i] + 1;
    }
    if (!close_range_of(first, ~0U)) {
        long end = sysconf(_SC_OPEN_MAX);

        for (int fd = (int)first; fd < end; fd++)
            close(fd);
    }
    /* What the C library writes to its standard error must not reach a peer. */
    do
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (null >= 0 && null < STDERR_FILENO);
    if (null > STDERR_FILENO)
        close(null);
    return true;
#endif
}

uint32_t rf_sys_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
}
