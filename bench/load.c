/*
 * load.c - the nodes of the measurements: connections through a reflector.
 *
 * Whatever the mode, a connection does exchanges: it sends a payload (maybe
 * none) and is done when the bytes that it expects have come back.
 *
 *     check     expect the banner, close; another one in its place
 *     keep      expect the banner, and stay
 *     hold      echo a payload of its own, and stay; again in each further phase
 *     pingpong  echo a payload again and again
 *     pull      ask with one byte, expect very many, close
 *
 * A phase is a count of exchanges (-n) or a time in which they begin (-d). It
 * ends with a line of JSON on stdout: what happened in it, and the CPU that it
 * cost this process. hold, and any mode with a warm-up (-w: a first phase of that
 * length), goes on with another phase for each line on stdin, until that ends; keep
 * tells then how many it still has. So clocks can be read while nothing moves.
 *
 * A closed loop begins an exchange when another one has ended. An open one (-r)
 * begins them by the clock, and counts latencies from the time at which each was
 * due: a stall is felt by all whom it keeps waiting. "late" are those that were
 * due, and that no connection was free for until the end.
 *
 * One thread, edge-triggered epoll. Each connection leaves from one of a range
 * of source addresses: those are the nodes.
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
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "histogram.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define EVENTS 256
#define BANNER_BYTES 40
#define PAYLOAD_MAX 65536
#define READ_MAX (1U << 20)
#define NS 1000000000U
/* How long an exchange may go on after the time of its phase; then it has failed. */
#define GRACE_NS (3ULL * NS)

enum mode { CHECK, KEEP, HOLD, PINGPONG, PULL };

static const char *const mode_names[] = {"check", "keep", "hold", "pingpong", "pull"};

struct conn {
    int fd; /* -1: none */
    uint32_t number;
    bool busy;         /* in an exchange */
    bool sent;         /* its payload is on the way */
    uint64_t left;     /* bytes still expected */
    uint64_t since_ns; /* when the exchange began, or was due to */
};

static enum mode mode;
static uint32_t total = 1;       /* exchanges of this phase, over all connections */
static uint32_t width = 1;       /* exchanges at a time */
static uint32_t sources = 1;     /* addresses to leave from, */
static uint32_t first_source;    /* from this one up; host byte order */
static uint64_t exchange_bytes;  /* that each exchange expects */
static uint32_t payload_bytes;   /* that each exchange sends */
static double rate;              /* exchanges due a second; 0: closed loop */
static double phase_seconds;     /* how long exchanges begin; 0: until `total` have */
static double warm_up_seconds;   /* the same for the first phase */
static unsigned patience_seconds; /* a phase that takes longer is killed; 0: none is */
static struct sockaddr_in target = {.sin_family = AF_INET};

static int epoll_fd;
static int timer_fd;       /* of an open loop: */
static uint64_t armed_ns; /* the due time that it waits for; 0: none */
static struct conn *conns;
static uint32_t conns_count;
static uint32_t opened;
static uint32_t phase;              /* 0: connections come up */
static uint32_t begun, done, failed; /* of this phase, */
static uint32_t done_in_time;       /* those done before its time was over */
static uint64_t bytes_read;
static uint64_t start_ns, until_ns; /* its times; until 0: by count */
static uint64_t last_ns;            /* the last exchange that was done */
static struct histogram latencies;
static struct rusage usage_before;
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
    return (uint64_t)now.tv_sec * NS + (uint64_t)now.tv_nsec;
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
    if (ok) {
        last_ns = now_ns();
        histogram_add(&latencies, last_ns - conn->since_ns);
        done++;
        if (!until_ns || last_ns <= until_ns)
            done_in_time++;
    } else {
        failed++;
    }
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

static void begin(struct conn *conn, uint64_t since_ns)
{
    begun++;
    *conn = (struct conn){
        .fd = conn->fd,
        .number = conn->number,
        .busy = true,
        .left = exchange_bytes,
        .since_ns = since_ns,
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
        bytes_read += (uint64_t)n;
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

static long cpu_us(const struct timeval *after, const struct timeval *before)
{
    return (after->tv_sec - before->tv_sec) * 1000000L + after->tv_usec - before->tv_usec;
}

/* When the next exchange of an open loop is due, or one after that. */
static uint64_t due_ns(uint32_t further)
{
    return start_ns + (uint64_t)((begun + further) / rate * NS);
}

/* The exchanges that were due in the phase and never began. */
static uint32_t late(void)
{
    uint32_t count = 0;

    while (rate > 0 && due_ns(count) < until_ns)
        count++;
    return count;
}

static void report(void)
{
    uint64_t end_ns = last_ns > until_ns ? last_ns : until_ns;
    double seconds = (double)(end_ns - start_ns) / NS;
    /* By what was done in the time: the last one to end would make the rate too low. */
    double rate_seconds = until_ns ? (double)(until_ns - start_ns) / NS : seconds;
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    printf("{\"done\": %u, \"failed\": %u, \"late\": %u, \"seconds\": %.6f, \"rate\": %.3f, "
           "\"bytes\": %llu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
           "\"user_us\": %ld, \"system_us\": %ld}\n",
           done, failed, late(), seconds, rate_seconds > 0 ? done_in_time / rate_seconds : 0,
           (unsigned long long)bytes_read,
           histogram_quantile_us(&latencies, 0.5), histogram_quantile_us(&latencies, 0.99),
           histogram_quantile_us(&latencies, 0.999),
           cpu_us(&usage.ru_utime, &usage_before.ru_utime),
           cpu_us(&usage.ru_stime, &usage_before.ru_stime));
    fflush(stdout);
}

/* Ends what still goes on after the phase: a pull has done what it could, others have failed. */
static void end_exchanges(void)
{
    for (uint32_t i = 0; i < conns_count; i++)
        if (conns[i].busy)
            finish(&conns[i], mode == PULL && conns[i].left < exchange_bytes);
}

static uint32_t under_way(void)
{
    return begun - done - failed;
}

/* Whether no further exchange of the phase is to begin. */
static bool all_begun(uint64_t now)
{
    if (!until_ns)
        return begun >= total;
    return (rate > 0 ? due_ns(0) : now) >= until_ns;
}

/* Has epoll_wait return when the next exchange of an open loop is due. */
static void arm_timer(uint64_t ns)
{
    struct itimerspec timer = {.it_value = {(time_t)(ns / NS), (long)(ns % NS)}};

    if (ns == armed_ns)
        return;
    armed_ns = ns;
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &timer, NULL) < 0)
        die("timerfd_settime");
}

/* Whether an exchange is to begin now, and since when it should have. */
static bool due(uint64_t *ret_since_ns)
{
    uint64_t now = now_ns();

    *ret_since_ns = rate > 0 ? due_ns(0) : now;
    if (all_begun(now) || under_way() >= width)
        return false;
    if (*ret_since_ns <= now)
        return true;
    arm_timer(*ret_since_ns);
    return false;
}

/* How long to wait for events, for epoll_wait. Below 0: the phase is over. */
static int patience_ms(void)
{
    uint64_t now = now_ns();

    if (!until_ns)
        return 1000;
    if (now < until_ns)
        return (int)((until_ns - now) / 1000000) + 1;
    if (mode == PULL || now >= until_ns + GRACE_NS)
        return -1;
    return (int)((until_ns + GRACE_NS - now) / 1000000) + 1;
}

static bool phase_over(void)
{
    uint64_t now = now_ns();

    return under_way() == 0 && all_begun(now) && now >= until_ns;
}

static void start_phase(double seconds)
{
    alarm(patience_seconds); /* dies of SIGALRM */
    begun = done = failed = done_in_time = 0;
    bytes_read = 0;
    histogram_clear(&latencies);
    getrusage(RUSAGE_SELF, &usage_before);
    start_ns = last_ns = now_ns();
    until_ns = seconds > 0 ? start_ns + (uint64_t)(seconds * NS) : 0;
}

static void end_phase(void)
{
    report();
    phase++;
    alarm(0); /* who asks for the next phase, or for what is held, may take the time it needs */
}

static void run_phase(double seconds)
{
    struct epoll_event events[EVENTS];
    uint32_t next = 0; /* the connection to look at next for one that is free */
    uint64_t since_ns;

    start_phase(seconds);
    while (!phase_over()) {
        int n, wait_ms;

        while (due(&since_ns)) {
            while (conns[next % conns_count].busy)
                next++;
            begin(&conns[next++ % conns_count], since_ns);
        }
        wait_ms = patience_ms();
        if (wait_ms < 0) {
            end_exchanges();
            break;
        }
        if (!rate && under_way() == 0)
            continue; /* all failed at once: no event comes */
        n = epoll_wait(epoll_fd, events, EVENTS, wait_ms);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr)
                handle(&events[i]);
            else
                armed_ns = 0;
        }
    }
    end_phase();
}

/* keep: counts as done what has neither ended nor been sent anything since it came up. */
static void count_kept(void)
{
    char byte;

    start_phase(0);
    for (uint32_t i = 0; i < conns_count; i++) {
        if (conns[i].fd >= 0 && recv(conns[i].fd, &byte, 1, MSG_PEEK) < 0 && errno == EAGAIN)
            done++;
        else
            failed++;
    }
    last_ns = now_ns();
    end_phase();
}

static void make_timer(void)
{
    /* Edge-triggered: it is set anew, and never read. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};

    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timer_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event) < 0)
        die("timerfd");
}

static void usage(void)
{
    fprintf(stderr, "usage: load check|keep|hold|pingpong|pull [-a ADDRESS] -p PORT\n"
                    "            [-s FIRST_SOURCE] [-m SOURCES] [-c AT_A_TIME] [-b BYTES]\n"
                    "            [-n COUNT | -d SECONDS [-r RATE]] [-w WARM_UP_SECONDS] "
                    "[-t SECONDS_OF_A_PHASE]\n");
    exit(2);
}

static void parse(int argc, char **argv)
{
    struct in_addr address;
    int option;

    target.sin_addr.s_addr = first_source = htonl(INADDR_LOOPBACK);
    while ((option = getopt(argc, argv, "a:p:s:m:n:c:b:d:w:r:t:")) != -1) {
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
        case 'd': phase_seconds = atof(optarg); break;
        case 'w': warm_up_seconds = atof(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 't': patience_seconds = (unsigned)atoi(optarg); break;
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
    if (mode == CHECK || mode == KEEP)
        exchange_bytes = BANNER_BYTES;
    if (mode == HOLD || mode == PINGPONG)
        payload_bytes = (uint32_t)(exchange_bytes = exchange_bytes ? exchange_bytes : 64);
    if (mode == PULL) {
        payload_bytes = 1;
        exchange_bytes = exchange_bytes ? exchange_bytes : UINT64_MAX;
    }
    if (payload_bytes > PAYLOAD_MAX)
        usage();
    conns_count = mode == HOLD || mode == KEEP ? total : width;
    conns = calloc(conns_count, sizeof(*conns));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!conns || epoll_fd < 0)
        die("load");
    for (uint32_t i = 0; i < conns_count; i++)
        conns[i].fd = -1;
    if (rate > 0)
        make_timer();
    run_phase(warm_up_seconds > 0 ? warm_up_seconds : phase_seconds);
    if (mode != HOLD && mode != KEEP && warm_up_seconds <= 0)
        return 0;
    while (fgets(line, sizeof(line), stdin)) {
        if (mode == KEEP)
            count_kept();
        else
            run_phase(phase_seconds);
    }
    return 0;
}
