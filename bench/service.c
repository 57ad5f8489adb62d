/*
 * service.c - the nodes' own service in the measurements.
 *
 *     banner  sends 40 bytes to whoever connects, closes when it sees EOF, as sshd would
 *     echo    sends back what it reads
 *     source  sends without end to whoever has asked with a byte
 *     mixed   a banner to everyone, and a source to those who ask
 *
 * One thread, epoll. Listens on all of IPv4, with SO_REUSEPORT: several may
 * share a port. Says "ready PORT" on stdout, and runs until it is killed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS 256
#define ACCEPT_BATCH 64
#define BLOCK_BYTES (256 * 1024)

enum mode { BANNER, ECHO, SOURCE, MIXED };

static const char *const mode_names[] = {"banner", "echo", "source", "mixed"};
static const char banner[] = "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n";

_Static_assert(sizeof(banner) - 1 == 40, "the figures are for a banner of 40 bytes");

static enum mode mode;
static int epoll_fd;
static int listen_fd;
static char block[BLOCK_BYTES];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void listen_on(uint16_t port)
{
    static const int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t length = sizeof(address);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = -1};

    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listen_fd < 0)
        die("socket");
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
    setsockopt(listen_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (bind(listen_fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        die("bind");
    if (listen(listen_fd, 65535) < 0)
        die("listen");
    event.data.fd = listen_fd;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &event) < 0)
        die("epoll_ctl");
    getsockname(listen_fd, (struct sockaddr *)&address, &length);
    printf("ready %u\n", ntohs(address.sin_port));
    fflush(stdout);
}

static void accept_some(void)
{
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED))
            return;
        if (fd < 0)
            die("accept4");
        if (mode == BANNER || mode == MIXED)
            (void)!send(fd, banner, sizeof(banner) - 1, MSG_NOSIGNAL);
        event.data.fd = fd;
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
            die("epoll_ctl");
    }
}

/* Have whoever asked be sent to, whenever there is room. */
static void begin_sending(int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLOUT, .data.fd = fd};

    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0)
        die("epoll_ctl");
}

/* False when the connection is over. */
static bool serve(int fd, uint32_t events)
{
    ssize_t n;

    if (events & EPOLLOUT && send(fd, block, BLOCK_BYTES, MSG_NOSIGNAL) < 0 && errno != EAGAIN)
        return false;
    if (!(events & ~(uint32_t)EPOLLOUT))
        return true;
    n = recv(fd, block, BLOCK_BYTES, 0);
    if (n < 0)
        return errno == EAGAIN;
    if (n == 0)
        return false;
    if (mode == SOURCE || mode == MIXED)
        begin_sending(fd);
    /* Echoed payloads are small and one at a time: they always fit. */
    return mode != ECHO || send(fd, block, (size_t)n, MSG_NOSIGNAL) == n;
}

static void usage(void)
{
    fprintf(stderr, "usage: service banner|echo|source|mixed [-p PORT]\n");
    exit(2);
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS];
    uint16_t port = 0;
    int option;

    while ((option = getopt(argc, argv, "p:")) != -1) {
        if (option != 'p')
            usage();
        port = (uint16_t)atoi(optarg);
    }
    if (optind != argc - 1)
        usage();
    while (strcmp(argv[optind], mode_names[mode]) != 0)
        if (mode++ == MIXED)
            usage();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1");
    listen_on(port);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);

        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listen_fd)
                accept_some();
            else if (!serve(events[i].data.fd, events[i].events))
                close(events[i].data.fd);
        }
    }
}
