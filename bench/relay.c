/*
 * relay.c - what copying and splicing cost by themselves: a bare relay between
 * two TCP connections on loopback, without an event loop.
 *
 *     relay copy|splice SIZE stream BYTES   a stream, through a buffer or pipe of SIZE bytes
 *     relay copy|splice SIZE message COUNT  messages of SIZE bytes, each acknowledged
 *
 * Prints JSON. For a stream: CPU of the relay alone, and wall time. For messages:
 * the median time that one spends in the calls that pass it on, waiting apart.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WRITE_BYTES (256 * 1024)
#define MESSAGE_PIPE_BYTES (256 * 1024)

struct relay {
    bool splices;
    int source;
    int sink;
    int pipe_fds[2];
};

static char *block;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t clock_ns(clockid_t id)
{
    struct timespec now;

    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

/* Two connected TCP sockets: socketpair has none of that family. */
static void tcp_pair(int fds[2])
{
    static const int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) < 0 ||
        listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die("listen");
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fds[0], (struct sockaddr *)&address, length) < 0)
        die("connect");
    fds[1] = accept(listener, NULL, NULL);
    if (fds[1] < 0)
        die("accept");
    close(listener);
    for (int i = 0; i < 2; i++)
        setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/*
 * Counts the bytes without copying them (MSG_TRUNC, tcp(7)). A reader that spins
 * needs no waking: between two CPUs of a virtual machine that costs the sender
 * several times what its call does.
 */
static void read_full(int fd, size_t bytes, bool spins)
{
    while (bytes > 0) {
        ssize_t n = recv(fd, block, bytes, MSG_TRUNC | (spins ? MSG_DONTWAIT : 0));

        if (n == 0 || (n < 0 && errno != EAGAIN))
            exit(1);
        if (n > 0)
            bytes -= (size_t)n;
        else
            sched_yield();
    }
}

static void write_full(int fd, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = send(fd, block, bytes < WRITE_BYTES ? bytes : WRITE_BYTES, MSG_NOSIGNAL);

        if (n <= 0)
            exit(1);
        bytes -= (size_t)n;
    }
}

/* The ends stay off the CPU of the relay, where there are two, so as not to interrupt its calls. */
static void pin(bool is_relay)
{
    cpu_set_t usable, one;
    int cpu = 0;

    if (sched_getaffinity(0, sizeof(usable), &usable) < 0 || CPU_COUNT(&usable) < 2)
        return;
    while (!CPU_ISSET(cpu, &usable))
        cpu++;
    one = usable;
    CPU_CLR(cpu, &one);
    if (is_relay) {
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
    }
    sched_setaffinity(0, sizeof(one), &one);
}

/* Runs an end of the relay in a process of its own; both when the ends take turns. */
static void spawn(int write_fd, int read_fd, size_t bytes, uint64_t turns)
{
    pid_t pid = fork();

    if (pid < 0)
        die("fork");
    if (pid != 0)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(false);
    for (uint64_t i = 0; i < turns; i++) {
        if (write_fd >= 0)
            write_full(write_fd, bytes);
        if (read_fd >= 0)
            read_full(read_fd, bytes, turns > 1);
    }
    _exit(0);
}

/* One read and what passes it on. */
static size_t pass_some(const struct relay *relay, size_t want)
{
    ssize_t n = relay->splices
                    ? splice(relay->source, NULL, relay->pipe_fds[1], NULL, want, SPLICE_F_MOVE)
                    : recv(relay->source, block, want, 0);

    if (n <= 0)
        die("read");
    for (ssize_t passed = 0; passed < n;) {
        size_t left = (size_t)(n - passed);
        ssize_t s = relay->splices
                        ? splice(relay->pipe_fds[0], NULL, relay->sink, NULL, left, SPLICE_F_MOVE)
                        : send(relay->sink, block + passed, left, MSG_NOSIGNAL);

        if (s <= 0)
            die("write");
        passed += s;
    }
    return (size_t)n;
}

static void pass_stream(const struct relay *relay, size_t size, uint64_t bytes)
{
    uint64_t wall_ns = clock_ns(CLOCK_MONOTONIC);
    uint64_t cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t reads = 0;

    for (uint64_t passed = 0; passed < bytes; reads++)
        passed += pass_some(relay, size);
    cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns;
    wall_ns = clock_ns(CLOCK_MONOTONIC) - wall_ns;
    printf("{\"cpu_ms_per_gb\": %.3f, \"mb_per_second\": %.1f, \"bytes_per_read\": %.0f}\n",
           (double)cpu_ns / 1e6 / ((double)bytes / 1e9),
           (double)bytes / 1e6 / ((double)wall_ns / 1e9), (double)bytes / (double)reads);
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void pass_messages(const struct relay *relay, size_t size, uint64_t count)
{
    uint64_t *times_ns = calloc(count, sizeof(*times_ns));

    if (!times_ns)
        die("calloc");
    for (uint64_t i = 0; i < count; i++) {
        for (size_t passed = 0; passed < size;) {
            struct pollfd ready = {.fd = relay->source, .events = POLLIN};
            uint64_t since_ns;

            if (poll(&ready, 1, -1) != 1)
                die("poll");
            since_ns = clock_ns(CLOCK_MONOTONIC);
            passed += pass_some(relay, size - passed);
            times_ns[i] += clock_ns(CLOCK_MONOTONIC) - since_ns;
        }
    }
    qsort(times_ns, count, sizeof(*times_ns), ascending);
    printf("{\"median_us\": %.3f}\n", (double)times_ns[count / 2] / 1e3);
    free(times_ns);
}

int main(int argc, char **argv)
{
    struct relay relay = {0};
    int source[2], sink[2], pipe_size;
    bool messages;
    size_t size;
    uint64_t count;

    if (argc != 5) {
        fprintf(stderr, "usage: relay copy|splice SIZE stream|message BYTES|COUNT\n");
        return 2;
    }
    relay.splices = strcmp(argv[1], "splice") == 0;
    messages = strcmp(argv[3], "message") == 0;
    size = strtoul(argv[2], NULL, 10);
    count = strtoull(argv[4], NULL, 10);
    pipe_size = messages ? MESSAGE_PIPE_BYTES : (int)size;

    block = calloc(1, size > WRITE_BYTES ? size : WRITE_BYTES);
    if (!block || pipe(relay.pipe_fds) < 0)
        die("relay");
    if (relay.splices && fcntl(relay.pipe_fds[1], F_SETPIPE_SZ, pipe_size) < 0)
        die("F_SETPIPE_SZ");
    tcp_pair(source);
    tcp_pair(sink);
    relay.source = source[1];
    relay.sink = sink[0];
    if (messages) {
        spawn(source[0], sink[1], size, count);
        pin(true);
        pass_messages(&relay, size, count);
    } else {
        spawn(source[0], -1, count, 1);
        spawn(-1, sink[1], count, 1);
        pin(true);
        pass_stream(&relay, size, count);
    }
    return 0;
}
