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

/* The kernel caps it at net.core.rmem_max and wmem_max. */
#define UDP_SOCKET_BUFFER (4 * 1024 * 1024)

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

/* What a TCP or a UDP socket needs before it is bound. */
static int prepare(int fd, const union rf_address *address, bool udp)
{
    bool v6 = address->any.sa_family == AF_INET6;

    if (!udp) {
        set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        set(fd, SOL_SOCKET, SO_OOBINLINE, 1);
        return set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    }
    /* Not SO_REUSEADDR: on UDP it shares the port with whoever sets it too. */
    set(fd, SOL_SOCKET, SO_RCVBUF, UDP_SOCKET_BUFFER);
    set(fd, SOL_SOCKET, SO_SNDBUF, UDP_SOCKET_BUFFER);
    /* An IPv6 socket tells of IPv4 datagrams by the options of IPv4. */
    if (set(fd, IPPROTO_IP, IP_RECVTTL, 1) < 0 ||
        (v6 && set(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1) < 0))
        return -1;
    if (!rf_address_is_wildcard(address))
        return 0;
    if (set(fd, IPPROTO_IP, IP_PKTINFO, 1) < 0)
        return -1;
    return v6 ? set(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1) : 0;
}

static int open_one(union rf_address *address, bool udp, enum way way, int *ret_fd,
                    const char **ret_syscall)
{
    socklen_t length = sizeof(*address);
    int type = udp ? SOCK_DGRAM : SOCK_STREAM;
    int fd;

    fd = socket(address->any.sa_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return failed(fd, "socket", ret_syscall);
    if (prepare(fd, address, udp) < 0)
        return failed(fd, "setsockopt", ret_syscall);
    if (way == JOIN && set(fd, SOL_SOCKET, SO_REUSEPORT, 1) < 0)
        return failed(fd, "setsockopt", ret_syscall);
    if (address->any.sa_family == AF_INET6 &&
        set(fd, IPPROTO_IPV6, IPV6_V6ONLY, !rf_address_is_wildcard(address)) < 0)
        return failed(fd, "setsockopt", ret_syscall);
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
static int open_first(union rf_address *address, bool udp, bool share, int *ret_fd,
                      const char **ret_syscall)
{
    int r = open_one(address, udp, ALONE, ret_fd, ret_syscall);

    if (r != -EADDRINUSE || !share)
        return r;
    r = open_one(address, udp, JOIN, ret_fd, ret_syscall);
    if (r == 0 && !rf_share_allowed(address, udp)) {
        errno = EADDRINUSE;
        r = failed(*ret_fd, "bind", ret_syscall);
        *ret_fd = -1;
    }
    return r;
}

int rf_listener_open(union rf_address *address, bool udp, bool share, int *ret_fds, uint32_t count,
                     const char **ret_syscall)
{
    uint32_t opened;
    int r = 0;

    for (opened = 0; opened < count; opened++) {
        if (opened == 0)
            r = open_first(address, udp, share, &ret_fds[opened], ret_syscall);
        else
            r = open_one(address, udp, JOIN, &ret_fds[opened], ret_syscall);
        if (r < 0)
            break;
        if (share)
            rf_share_mark(ret_fds[opened]);
    }
    for (uint32_t i = 0; r == 0 && !udp && i < count; i++)
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
