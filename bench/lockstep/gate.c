#include "gate.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else /* it can still be run by itself and under strace */
#define CALLGRIND_TOGGLE_COLLECT (void)0
#endif

#define STUCK_SECONDS 30

/* A packet that calls for another does so at most three times: SYN, SYN-ACK, ACK, data. */
#define PACKETS_IN_A_ROW 4

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool held;     /* the worker stands at the gate */
    bool look;     /* it is to look for events */
    bool ready;    /* ... and there were some */
    bool open;     /* no longer a gate: the engine is to end */
    bool counting; /* turns count */
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static _Atomic uint64_t clock_ms = 1000000;
static const char *step = "start";
static int echo_fds[2]; /* a datagram sent to one comes out of the other */

_Noreturn void die(const char *what)
{
    fprintf(stderr, "lockstep: %s: %s\n", what, strerror(errno));
    exit(1);
}

void expect(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "lockstep: in step \"%s\": not so: %s\n", step, what);
    exit(1);
}

static void stuck(int number)
{
    static const char hint[] =
        " took too long; does the engine still wait by epoll_wait? (see gate.h)\n";

    (void)number;
    (void)!write(STDERR_FILENO, step, strlen(step));
    (void)!write(STDERR_FILENO, hint, sizeof(hint) - 1);
    _exit(1);
}

static void mark(const char *what)
{
    (void)!write(-1, what, strlen(what));
}

/* --- in the worker's thread ---------------------------------------------- */

int __real_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms);
int __wrap_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms);
int __wrap_clock_gettime(clockid_t id, struct timespec *ret_now);

/* Returns true when there is something to do: an event, or work put off for later. */
static bool pass_gate(int epoll_fd, int timeout_ms)
{
    struct pollfd events = {.fd = epoll_fd, .events = POLLIN};
    bool open;

    pthread_mutex_lock(&gate.lock);
    gate.held = true;
    pthread_cond_broadcast(&gate.changed);
    while (!gate.open) {
        if (gate.look) {
            gate.look = false;
            gate.ready = timeout_ms == 0 || poll(&events, 1, 0) > 0;
            pthread_cond_broadcast(&gate.changed);
            if (gate.ready)
                break;
        }
        pthread_cond_wait(&gate.changed, &gate.lock);
    }
    gate.held = false;
    open = gate.open;
    pthread_mutex_unlock(&gate.lock);
    return !open;
}

int __wrap_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms)
{
    static bool collecting;

    if (collecting)
        CALLGRIND_TOGGLE_COLLECT;
    collecting = false;
    mark("gate");
    if (pass_gate(epoll_fd, timeout_ms))
        timeout_ms = 0; /* the clock stands still: a timeout would never come */
    clock_ms++;
    if (gate.counting) {
        mark("counted");
        collecting = true;
        CALLGRIND_TOGGLE_COLLECT;
    }
    return __real_epoll_wait(epoll_fd, events, max, timeout_ms);
}

int __wrap_clock_gettime(clockid_t id, struct timespec *ret_now)
{
    (void)id;
    ret_now->tv_sec = (time_t)(clock_ms / 1000);
    ret_now->tv_nsec = (long)(clock_ms % 1000) * 1000000;
    return 0;
}

/* --- in the main thread -------------------------------------------------- */

/*
 * Until all packets under way have arrived. They go through one queue per CPU,
 * first in first out, and the kernel may leave it to a thread of its own: a
 * datagram that has come round comes after all that was there before it.
 */
static void let_arrive(void)
{
    char byte = 0;

    for (int i = 0; i < PACKETS_IN_A_ROW; i++)
        if (send(echo_fds[0], &byte, 1, 0) != 1 || recv(echo_fds[1], &byte, 1, 0) != 1)
            die("datagram");
}

/* Has the worker look for events and serve them: false if there were none. */
static bool turn(void)
{
    bool ready;

    let_arrive();
    pthread_mutex_lock(&gate.lock);
    while (!gate.held)
        pthread_cond_wait(&gate.changed, &gate.lock);
    gate.look = true;
    pthread_cond_broadcast(&gate.changed);
    while (gate.look || !gate.held)
        pthread_cond_wait(&gate.changed, &gate.lock);
    ready = gate.ready;
    pthread_mutex_unlock(&gate.lock);
    return ready;
}

void gate_settle(const char *name)
{
    step = name;
    while (turn())
        ;
}

static bool ended(int fd)
{
    struct pollfd end = {.fd = fd, .events = POLLRDHUP};

    return poll(&end, 1, 0) > 0;
}

void gate_turn_until_end(const char *name, const int *fds, int count)
{
    step = name;
    for (int i = 0; i < count; i++) {
        while (!ended(fds[i])) {
            expect(turn(), "the engine has something to do");
            let_arrive();
        }
    }
}

void gate_count(bool counting)
{
    gate.counting = counting; /* read by the worker after it has taken the lock */
}

void gate_open(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.open = true;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

void gate_init(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);

    signal(SIGALRM, stuck);
    alarm(STUCK_SECONDS);
    for (int i = 0; i < 2; i++) {
        echo_fds[i] = socket(AF_INET, SOCK_DGRAM, 0);
        if (echo_fds[i] < 0)
            die("socket");
    }
    if (bind(echo_fds[1], (struct sockaddr *)&address, length) < 0 ||
        getsockname(echo_fds[1], (struct sockaddr *)&address, &length) < 0 ||
        connect(echo_fds[0], (struct sockaddr *)&address, length) < 0)
        die("datagram");
}
