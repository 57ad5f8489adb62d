/*
 * lockstep.c - the engine and its peers, one step at a time: the same events in
 * the same order in every run, so that what the engine spends can be counted
 * instead of averaged.
 *
 *     lockstep check|burst|refused|service-first|pingpong|bulk COUNT
 *
 * The main thread plays clients and services. It does a step, lets its packets
 * arrive, and has the engine serve them (gate.h). A scenario is warmed up, then
 * counted COUNT times. All runs on one CPU, in a network namespace of its own
 * where one can be had.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gate.h"
#include "reflector.h"

#define BURST 16 /* checks at a time */
#define BANNER_BYTES 40
#define MESSAGE_BYTES 64
#define BULK_BYTES (1000 * 1000)
/* Fits every first receive window, so that one send is one arrival. */
#define CHUNK_BYTES 40000

enum { MAPPING_SERVED, MAPPING_REFUSED, MAPPINGS };

static char block[CHUNK_BYTES];
static struct rf_engine *engine;
static int listener_fd; /* the service's */

static uint64_t count_of(enum rf_counter counter)
{
    struct rf_stats stats;

    rf_engine_stats(engine, &stats);
    return stats.value[counter];
}

/* Another address than the one dialled, as if from another host. */
static int dial(int mapping)
{
    struct sockaddr_in node = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr("127.1.0.1")};
    struct sockaddr_in target = {.sin_family = AF_INET,
                                 .sin_port = htons(rf_engine_port(engine, (size_t)mapping)),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&node, sizeof(node)) < 0 ||
        connect(fd, (struct sockaddr *)&target, sizeof(target)) < 0)
        die("dial");
    return fd;
}

static int answer(void)
{
    int fd = accept(listener_fd, NULL, NULL);

    if (fd < 0)
        die("accept");
    return fd;
}

static void say(int fd, size_t bytes)
{
    expect(send(fd, block, bytes, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)bytes, "all is sent");
}

static void hear(int fd, size_t bytes)
{
    ssize_t n = recv(fd, block, sizeof(block), MSG_DONTWAIT);

    expect(n == (ssize_t)bytes, bytes ? "all has arrived" : "the stream has ended");
}

static void open_both(int *ret_client, int *ret_service)
{
    *ret_client = dial(MAPPING_SERVED);
    gate_settle("connect");
    *ret_service = answer();
}

/* Checks that go side by side: what each of them sees comes before the next step of any. */
static void check_together(int count)
{
    uint64_t finished = count_of(RF_CLOSED_FINISHED);
    int clients[BURST], services[BURST];

    for (int i = 0; i < count; i++)
        clients[i] = dial(MAPPING_SERVED);
    gate_settle("connect");
    for (int i = 0; i < count; i++)
        say(services[i] = answer(), BANNER_BYTES);
    gate_settle("banner");
    for (int i = 0; i < count; i++) {
        hear(clients[i], BANNER_BYTES);
        close(clients[i]);
    }
    gate_turn_until_end("client closes", services, count);
    for (int i = 0; i < count; i++) {
        hear(services[i], 0);
        close(services[i]);
    }
    gate_settle("service closes");
    expect(count_of(RF_CLOSED_FINISHED) == finished + (uint64_t)count, "all have finished");
}

static void check(void)
{
    check_together(1);
}

static void burst(void)
{
    check_together(BURST);
}

static void service_first(void)
{
    uint64_t finished = count_of(RF_CLOSED_FINISHED);
    int client, service;

    open_both(&client, &service);
    say(service, BANNER_BYTES);
    close(service);
    gate_turn_until_end("banner, service closes", &client, 1);
    hear(client, BANNER_BYTES);
    hear(client, 0);
    close(client);
    gate_settle("client closes");
    expect(count_of(RF_CLOSED_FINISHED) == finished + 1, "the connection has finished");
}

static void refused(void)
{
    int client = dial(MAPPING_REFUSED);

    gate_settle("connect");
    expect(recv(client, block, 1, MSG_DONTWAIT) < 0 && errno == ECONNRESET, "the client is reset");
    close(client);
}

/* These two run over one connection. */
static int open_client, open_service;

static void ping_pong(void)
{
    say(open_client, MESSAGE_BYTES);
    gate_settle("ping");
    hear(open_service, MESSAGE_BYTES);
    say(open_service, MESSAGE_BYTES);
    gate_settle("pong");
    hear(open_client, MESSAGE_BYTES);
}

static void bulk(void)
{
    for (int sent = 0; sent < BULK_BYTES; sent += CHUNK_BYTES) {
        say(open_service, CHUNK_BYTES);
        gate_settle("bulk");
        hear(open_client, CHUNK_BYTES);
    }
}

/* Warmed up by more than the accept batch needs to fall into its rhythm, of nine connections. */
static const struct scenario {
    const char *name;
    void (*run)(void);
    int warm_up;
    bool needs_connection;
} scenarios[] = {
    {"check", check, 27, false},
    {"burst", burst, 9, false},
    {"refused", refused, 27, false},
    {"service-first", service_first, 27, false},
    {"pingpong", ping_pong, 27, true},
    {"bulk", bulk, 1, true},
    {NULL, NULL, 0, false},
};

static bool enter_namespace(int flags)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    bool is_up;
    int fd;

    if (unshare(flags) < 0)
        return false;
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    is_up = fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &request) == 0;
    if (fd >= 0)
        close(fd);
    return is_up;
}

/*
 * Where no network namespace can be had, the loopback of the host does. There is no way back from
 * one whose loopback stays down, as where a user namespace is allowed but has no rights: a child
 * tries first.
 */
static void enter_network(void)
{
    static const int ways[] = {CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET};

    for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
        pid_t child = fork();
        int status;

        if (child < 0)
            die("fork");
        if (child == 0)
            _exit(enter_namespace(ways[i]) ? 0 : 1);
        if (waitpid(child, &status, 0) != child)
            die("waitpid");
        if (status != 0)
            continue;
        if (!enter_namespace(ways[i]))
            die("network namespace");
        return;
    }
}

static void stay_on_one_cpu(void)
{
    int cpu = sched_getcpu();
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu < 0 ? 0U : (unsigned)cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
}

/* A socket of the node at a port that the kernel picks. */
static int bound(struct sockaddr_in *ret_address)
{
    socklen_t length = sizeof(*ret_address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    *ret_address = (struct sockaddr_in){.sin_family = AF_INET};
    ret_address->sin_addr.s_addr = inet_addr("127.1.0.1");
    if (fd < 0 || bind(fd, (struct sockaddr *)ret_address, length) < 0 ||
        getsockname(fd, (struct sockaddr *)ret_address, &length) < 0)
        die("bind");
    return fd;
}

static void start_engine(void)
{
    struct rf_options options = {
        .size = sizeof(options),
        .workers = 1,
        .max_connections = 64,
        .max_per_source = 64,
        .connect_timeout_ms = 3000,
        .idle_timeout_ms = 600000,
        .half_close_timeout_ms = 60000,
        .udp_idle_timeout_ms = 30000,
    };
    /* The wildcard, as people run it, but the same where a host has no IPv6. */
    struct rf_mapping mappings[MAPPINGS] = {
        [MAPPING_SERVED] = {.address = "0.0.0.0", .protocol = IPPROTO_TCP},
        [MAPPING_REFUSED] = {.address = "0.0.0.0", .protocol = IPPROTO_TCP},
    };
    struct rf_failure failure;
    struct sockaddr_in address;
    int r;

    listener_fd = bound(&address);
    mappings[MAPPING_SERVED].return_port = ntohs(address.sin_port);
    if (listen(listener_fd, BURST) < 0)
        die("listen");
    bound(&address); /* nobody listens there */
    mappings[MAPPING_REFUSED].return_port = ntohs(address.sin_port);
    r = rf_engine_new(&options, mappings, MAPPINGS, &engine, &failure);
    if (r == 0)
        r = rf_engine_start(engine, &failure);
    if (r < 0) {
        errno = -r;
        die("engine");
    }
}

int main(int argc, char **argv)
{
    const struct rlimit files = {.rlim_cur = 1024, .rlim_max = 1024};
    const struct scenario *scenario = scenarios;
    int count = argc == 3 ? atoi(argv[2]) : 0;

    while (scenario->name && argc == 3 && strcmp(argv[1], scenario->name) != 0)
        scenario++;
    if (count <= 0 || !scenario->name) {
        fprintf(stderr, "usage: lockstep SCENARIO COUNT\n");
        return 2;
    }
    setrlimit(RLIMIT_NOFILE, &files); /* the engine lays itself out by it */
    enter_network();
    stay_on_one_cpu();
    gate_init();
    start_engine();
    gate_settle("start");
    if (scenario->needs_connection)
        open_both(&open_client, &open_service);
    gate_settle("open");
    for (int i = 0; i < scenario->warm_up; i++)
        scenario->run();
    gate_count(true);
    for (int i = 0; i < count; i++)
        scenario->run();
    gate_count(false);
    gate_open();
    rf_engine_free(engine);
    return 0;
}
