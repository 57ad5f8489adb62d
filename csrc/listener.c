#include "listener.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <unistd.h>

#include "share.h"

/* How a socket comes to its port. */
enum way {
    ALONE, /* nobody else may listen there; once it is bound, others may join */
    JOIN,  /* beside those that share it already */
};

/* The kernel caps it at net.core.somaxconn. */
#define BACKLOG 65535

static int set(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof(value));
}

static int failed(int fd, const char *syscall, const char **ret_syscall)
{
    int error = errno;

    if (fd >= 0)
        close(fd);
    *ret_syscall = syscall;
    return -error;
}

static int open_one(union rf_address *address, enum way way, int *ret_fd,
                    const char **ret_syscall)
{
    socklen_t length = sizeof(*address);
    int fd;

    fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return failed(fd, "socket", ret_syscall);
    if (set(fd, SOL_SOCKET, SO_REUSEADDR, 1) < 0)
        return failed(fd, "setsockopt", ret_syscall);
    if (way == JOIN && set(fd, SOL_SOCKET, SO_REUSEPORT, 1) < 0)
        return failed(fd, "setsockopt", ret_syscall);
    if (address->any.sa_family == AF_INET6 &&
        set(fd, IPPROTO_IPV6, IPV6_V6ONLY, !rf_address_is_wildcard(address)) < 0)
        return failed(fd, "setsockopt", ret_syscall);
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set(fd, SOL_SOCKET, SO_OOBINLINE, 1);
    if (bind(fd, &address->any, rf_address_length(address)) < 0)
        return failed(fd, "bind", ret_syscall);
    /* After bind: the others may share the port from here on. */
    if (way == ALONE && set(fd, SOL_SOCKET, SO_REUSEPORT, 1) < 0)
        return failed(fd, "setsockopt", ret_syscall);
    if (way == ALONE && getsockname(fd, &address->any, &length) < 0)
        return failed(fd, "getsockname", ret_syscall);
    *ret_fd = fd;
    return 0;
}

/* The first socket of a port: alone, or beside another reflector if both share. */
static int open_first(union rf_address *address, bool share, int *ret_fd, const char **ret_syscall)
{
    int r = open_one(address, ALONE, ret_fd, ret_syscall);

    if (r != -EADDRINUSE || !share)
        return r;
    r = open_one(address, JOIN, ret_fd, ret_syscall);
    if (r == 0 && !rf_share_allowed(address)) {
        errno = EADDRINUSE;
        r = failed(*ret_fd, "bind", ret_syscall);
        *ret_fd = -1;
    }
    return r;
}

int rf_listener_open(union rf_address *address, bool share, int *ret_fds, uint32_t count,
                     const char **ret_syscall)
{
    uint32_t opened;
    int r = 0;

    for (opened = 0; opened < count; opened++) {
        if (opened == 0)
            r = open_first(address, share, &ret_fds[opened], ret_syscall);
        else
            r = open_one(address, JOIN, &ret_fds[opened], ret_syscall);
        if (r < 0)
            break;
        if (share)
            rf_share_mark(ret_fds[opened]);
    }
    for (uint32_t i = 0; r == 0 && i < count; i++)
        if (listen(ret_fds[i], BACKLOG) < 0) {
            r = -errno;
            *ret_syscall = "listen";
        }
    if (r < 0)
        while (opened-- > 0) {
            close(ret_fds[opened]);
            ret_fds[opened] = -1;
        }
    return r;
}
