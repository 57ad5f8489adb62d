/*
 * load.c - the nodes of the measurements: connections through a reflector.
 *
 * Whatever the mode, a connection does exchanges: it sends a payload (maybe
 * none) and is done when the bytes that it expects have come back.
 *
 *     check     expect the banner, close; another one in its place
 *     hold      echo a payload of its own, and stay; again for each line on stdin
 *     pingpong  echo a payload again and again
 *     pull      expect very many bytes, close
 *
 * One thread, edge-triggered epoll. Each connection leaves from one of a range
 * of source addresses: those are the nodes. Every phase ends with a line of
 * JSON on stdout.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define EVENTS 256
#define BANNER_BYTES 40
#define PAYLOAD_MAX 65536
#define READ_MAX (1U << 20)

enum mode { CHECK, HOLD, PINGPONG, PULL };

static const char *const mode_names[] = {"check", "hold", "pingpong", "pull"};

struct conn {
    int fd; /* -1: none */
    uint32_t number;
    bool busy;         /* in an exchange */
    bool sent;         /* its payload is on the way */
    uint64_t left;     /* bytes still expected */
    uint64_t since_ns; /* begin of the exchange */
};

static enum mode mode;
static uint32_t total = 1;       /* exchanges of this phase, over all connections */
static uint32_t width = 1;       /* exchanges at a time */
static uint32_t sources = 1;     /* addresses to leave from, */
static uint32_t first_source;    /* from this one up; host byte order */
static uint64_t exchange_bytes;  /* that each exchange expects */
static uint32_t payload_bytes;   /* that each exchange sends */
static struct sockaddr_in target = {.sin_family = AF_INET};

static int epoll_fd;
static struct conn *conns;
static uint32_t conns_count;
static uint32_t opened;
static uint32_t begun, done, failed; /* of this phase */
static uint32_t phase;              /* 0: connections come up */
static uint32_t *latencies_us;
static char buffer[READ_MAX];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

/* A payload that no other connection of this process sends, in this phase or another. */
static void make_payload(const struct conn *conn, char *payload)
{
    memset(payload, '.', payload_bytes);
    snprintf(payload, payload_bytes, "phase %u connection %u from %08x", phase, conn->number,
             first_source);
}

static void close_conn(struct conn *conn)
{
    if (conn->fd >= 0)
        close(conn->fd);
    conn->fd = -1;
}

static void finish(struct conn *conn, bool ok)
{
    latencies_us[done + failed] = (uint32_t)((now_ns() - conn->since_ns) / 1000);
    if (ok)
        done++;
    else
        failed++;
    conn->busy = false;
    if (!ok || mode == CHECK || mode == PULL)
        close_conn(conn);
}

/* Opens a connection from the next source address. False: refused at once. */
static bool open_conn(struct conn *conn)
{
    static const int on = 1;
    struct sockaddr_in from = {.sin_family = AF_INET};
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = conn};

    from.sin_addr.s_addr = htonl(first_source + opened % sources);
    conn->number = opened++;
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0)
        die("socket");
    setsockopt(conn->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
    if (bind(conn->fd, (struct sockaddr *)&from, sizeof(from)) < 0)
        die("bind");
    if (connect(conn->fd, (struct sockaddr *)&target, sizeof(target)) < 0 && errno != EINPROGRESS)
        return false;
    if (payload_bytes)
        event.events |= EPOLLOUT;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, conn->fd, &event) < 0)
        die("epoll_ctl");
    return true;
}

static void send_payload(struct conn *conn)
{
    char payload[PAYLOAD_MAX];
    ssize_t n;

    make_payload(conn, payload);
    n = send(conn->fd, payload, payload_bytes, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN)
        return; /* not connected yet: EPOLLOUT comes */
    conn->sent = true;
    if (n != (ssize_t)payload_bytes)
        finish(conn, false);
}

static void begin(struct conn *conn)
{
    begun++;
    *conn = (struct conn){
        .fd = conn->fd,
        .number = conn->number,
        .busy = true,
        .left = exchange_bytes,
        .since_ns = now_ns(),
    };
    if (conn->fd >= 0)
        send_payload(conn);
    else if ((mode == HOLD && phase > 0) || !open_conn(conn))
        finish(conn, false); /* what is held is never opened anew */
}

static bool right_bytes(const struct conn *conn, size_t n)
{
    char payload[PAYLOAD_MAX];

    if (mode != HOLD)
        return true;
    make_payload(conn, payload);
    return memcmp(buffer, payload + (payload_bytes - conn->left), n) == 0;
}

static void receive(struct conn *conn)
{
    while (conn->busy) {
        size_t want = conn->left < READ_MAX ? conn->left : READ_MAX;
        /* What is only counted is not copied: MSG_TRUNC, tcp(7). */
        ssize_t n = recv(conn->fd, buffer, want, mode == PULL ? MSG_TRUNC : 0);

        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0 || !right_bytes(conn, (size_t)n)) {
            finish(conn, false);
            return;
        }
        conn->left -= (uint64_t)n;
        if (conn->left == 0)
            finish(conn, true);
    }
}

static void handle(const struct epoll_event *event)
{
    struct conn *conn = event->data.ptr;

    if (!conn->busy) {
        if (event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) && conn->fd >= 0) {
            fprintf(stderr, "load: connection %u ended while idle\n", conn->number);
            close_conn(conn);
        }
        return;
    }
    if (event->events & EPOLLOUT && payload_bytes && !conn->sent)
        send_payload(conn);
    if (event->events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        receive(conn);
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static uint32_t quantile_us(double q)
{
    return latencies_us[(uint32_t)(q * (total - 1))];
}

static long cpu_us(const struct timeval *time)
{
    return time->tv_sec * 1000000L + time->tv_usec;
}

static void report(uint64_t ns)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    qsort(latencies_us, total, sizeof(*latencies_us), ascending);
    printf("{\"done\": %u, \"failed\": %u, \"seconds\": %.6f, \"p50_us\": %u, \"p99_us\": %u, "
           "\"p999_us\": %u, \"user_us\": %ld, \"system_us\": %ld}\n",
           done, failed, (double)ns / 1e9, quantile_us(0.5), quantile_us(0.99),
           quantile_us(0.999), cpu_us(&usage.ru_utime), cpu_us(&usage.ru_stime));
    fflush(stdout);
}

/* Runs `total` exchanges, `width` at a time. */
static void run_phase(void)
{
    struct epoll_event events[EVENTS];
    uint64_t start = now_ns();
    uint32_t next = 0; /* the connection to look at next for one that is free */

    begun = done = failed = 0;
    while (done + failed < total) {
        int n;

        while (begun < total && begun - done - failed < width) {
            while (conns[next % conns_count].busy)
                next++;
            begin(&conns[next++ % conns_count]);
        }
        if (done + failed == total)
            break; /* the last ones failed at once: nothing to wait for */
        n = epoll_wait(epoll_fd, events, EVENTS, -1);
        if (n < 0)
            die("epoll_wait");
        for (int i = 0; i < n; i++)
            handle(&events[i]);
    }
    report(now_ns() - start);
    phase++;
}

static void usage(void)
{
    fprintf(stderr, "usage: load check|hold|pingpong|pull [-a ADDRESS] -p PORT [-s FIRST_SOURCE] "
                    "[-m SOURCES] [-n COUNT] [-c AT_A_TIME] [-b BYTES] [-t SECONDS]\n");
    exit(2);
}

static void parse(int argc, char **argv)
{
    struct in_addr address;
    int option;

    target.sin_addr.s_addr = first_source = htonl(INADDR_LOOPBACK);
    while ((option = getopt(argc, argv, "a:p:s:m:n:c:b:t:")) != -1) {
        switch (option) {
        case 'a':
        case 's':
            if (inet_pton(AF_INET, optarg, &address) != 1)
                usage();
            *(option == 'a' ? &target.sin_addr.s_addr : &first_source) = address.s_addr;
            break;
        case 'p': target.sin_port = htons((uint16_t)atoi(optarg)); break;
        case 'm': sources = (uint32_t)atoi(optarg); break;
        case 'n': total = (uint32_t)atoi(optarg); break;
        case 'c': width = (uint32_t)atoi(optarg); break;
        case 'b': exchange_bytes = strtoull(optarg, NULL, 10); break;
        case 't': alarm((unsigned)atoi(optarg)); break; /* dies of SIGALRM */
        default: usage();
        }
    }
    first_source = ntohl(first_source);
    if (optind != argc - 1 || !target.sin_port || !sources || !total || !width)
        usage();
    while (strcmp(argv[optind], mode_names[mode]) != 0)
        if (mode++ == PULL)
            usage();
}

int main(int argc, char **argv)
{
    char line[64];

    parse(argc, argv);
    if (mode == CHECK)
        exchange_bytes = BANNER_BYTES;
    if (mode == HOLD || mode == PINGPONG)
        payload_bytes = (uint32_t)(exchange_bytes = exchange_bytes ? exchange_bytes : 64);
    if (payload_bytes > PAYLOAD_MAX)
        usage();
    conns_count = mode == HOLD ? total : width;
    conns = calloc(conns_count, sizeof(*conns));
    latencies_us = calloc(total, sizeof(*latencies_us));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!conns || !latencies_us || epoll_fd < 0)
        die("load");
    for (uint32_t i = 0; i < conns_count; i++)
        conns[i].fd = -1;
    run_phase();
    while (mode == HOLD && fgets(line, sizeof(line), stdin))
        run_phase();
    return 0;
}
