/*
 * engine.c - makes the workers, starts them, ends them, adds up their counters.
 *
 * Listeners are bound in rf_engine_new, by the caller's thread, so that a port
 * that is taken is known before anything runs. rf_engine_start then goes
 * through the phases below together with the workers: each first takes a
 * descriptor table of its own, in which it keeps only its listeners and the
 * wake-up descriptors; only when all have tried is it known how many
 * connections fit. After that the caller's copies of the listeners are closed:
 * a listener is gone only when every table that has it has closed it.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "sys.h"
#include "worker.h"

/* Descriptors of a table that are nobody's connection: standard streams, epoll, some to spare. */
#define SPARE_DESCRIPTORS 32U

/* In a table that is shared with the rest of the process. */
#define SHARED_DESCRIPTORS 128U

#define MAX_PIPES 256U

/* However many descriptors there are: what a machine of some GB can hold in the kernel. */
#define DEFAULT_MAX_CONNECTIONS (1U << 20)

enum phase {
    PHASE_NEW,
    PHASE_TABLES, /* workers take their descriptor tables */
    PHASE_INIT,   /* ... set themselves up */
    PHASE_RUN,    /* ... run */
    PHASE_ABORT,  /* ... go home: one of them failed */
    PHASE_ENDED,  /* all joined */
};

struct rf_engine {
    struct rf_settings settings;
    struct rf_admission *admission;
    struct rf_worker *workers;
    int *wake_fds;
    int *listener_fds; /* a row for each worker */
    uint32_t workers_count;
    uint32_t max_connections;
    uint32_t max_per_source;
    uint32_t capacity; /* connections of one worker; also UDP sessions */
    uint32_t max_pipes;
    pid_t pid; /* of the process that made it */
    struct rf_engine *next_abandoned;
    atomic_uint request; /* enum rf_request */

    pthread_mutex_t lock; /* for what follows; never taken by a worker that runs */
    pthread_cond_t changed;
    enum phase phase;
    uint32_t arrived; /* workers that are through with the phase */
    uint32_t started;
    uint32_t running;
    int start_error;
    bool busy; /* starting or stopping: who else wants to must wait */
};

const char *rf_counter_name(unsigned counter)
{
    static const char *const names[] = {
#define COUNTER_NAME(id, name, help) name,
        RF_COUNTERS(COUNTER_NAME)
#undef COUNTER_NAME
    };

    return counter < RF_COUNTER_MAX ? names[counter] : NULL;
}

static uint32_t usable_cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1;
    return CPU_COUNT(&set) < RF_MAX_WORKERS ? (uint32_t)CPU_COUNT(&set) : RF_MAX_WORKERS;
}

static uint32_t descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 1024;
    return limit.rlim_cur > RF_MAX_CONNECTIONS ? RF_MAX_CONNECTIONS : (uint32_t)limit.rlim_cur;
}

/* Of a connection and of a UDP session together, so that each finds room beside the other. */
static uint32_t descriptors_of_a_place(const struct rf_settings *settings)
{
    bool tcp = settings->targets_count > settings->udp_targets_count;

    return (tcp ? 2U : 0U) + (settings->udp_targets_count > 0 ? 1U : 0U);
}

/* How many connections, as many UDP sessions, and how many pipes one worker has room for. */
static void find_capacity(struct rf_engine *engine, bool own_tables)
{
    uint32_t listeners = engine->settings.targets_count;
    uint32_t limit = descriptor_limit();
    uint32_t reserved = SPARE_DESCRIPTORS + listeners + engine->workers_count;
    uint32_t each = descriptors_of_a_place(&engine->settings);

    if (!own_tables) {
        uint32_t all = SHARED_DESCRIPTORS + (listeners + 2) * engine->workers_count;

        limit = (limit > all ? limit - all : 0) / engine->workers_count;
        reserved = 0;
    }
    engine->max_pipes = limit / 16 < MAX_PIPES ? limit / 16 : MAX_PIPES;
    reserved += 2 * engine->max_pipes;
    engine->capacity = limit > reserved + each ? (limit - reserved) / each : 1;
}

static uint32_t resolved_max_connections(const struct rf_engine *engine)
{
    uint64_t all = (uint64_t)engine->capacity * engine->workers_count;

    if (engine->max_connections != 0)
        return engine->max_connections;
    return all > DEFAULT_MAX_CONNECTIONS ? DEFAULT_MAX_CONNECTIONS : (uint32_t)all;
}

static int make_workers(struct rf_engine *engine)
{
    uint32_t targets = engine->settings.targets_count;

    engine->workers = aligned_alloc(64, engine->workers_count * sizeof(*engine->workers));
    engine->wake_fds = malloc(engine->workers_count * sizeof(*engine->wake_fds));
    engine->listener_fds = malloc((size_t)engine->workers_count * targets * sizeof(int));
    if (!engine->workers || !engine->wake_fds || !engine->listener_fds)
        return -ENOMEM;
    memset(engine->workers, 0, engine->workers_count * sizeof(*engine->workers));
    memset(engine->wake_fds, -1, engine->workers_count * sizeof(int));
    memset(engine->listener_fds, -1, (size_t)engine->workers_count * targets * sizeof(int));
    for (uint32_t i = 0; i < engine->workers_count; i++) {
        struct rf_worker *worker = &engine->workers[i];

        worker->settings = &engine->settings;
        worker->request = &engine->request;
        worker->number = i;
        worker->epoll_fd = -1;
        worker->listener_fds = &engine->listener_fds[(size_t)i * targets];
    }
    for (uint32_t i = 0; i < engine->workers_count; i++) {
        engine->wake_fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (engine->wake_fds[i] < 0)
            return -errno;
        engine->workers[i].wake_fd = engine->wake_fds[i];
    }
    return 0;
}

static int init_lock(struct rf_engine *engine)
{
    pthread_condattr_t attributes;
    int r = pthread_condattr_init(&attributes);

    if (r == 0)
        r = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    if (r == 0)
        r = pthread_cond_init(&engine->changed, &attributes);
    if (r == 0)
        r = pthread_mutex_init(&engine->lock, NULL);
    pthread_condattr_destroy(&attributes);
    return -r;
}

int rf_engine_new(const struct rf_options *options, const struct rf_mapping *mappings,
                  size_t mappings_count, struct rf_engine **ret_engine,
                  struct rf_failure *ret_failure)
{
    struct rf_engine *engine;
    struct rf_failure failure = {.syscall = NULL, .mapping = -1};
    int r;

    engine = calloc(1, sizeof(*engine));
    if (!engine)
        return -ENOMEM;
    engine->pid = getpid();
    engine->workers_count = options->workers ? options->workers : usable_cpus();
    engine->max_connections = options->max_connections;
    engine->max_per_source = options->max_per_source;
    r = init_lock(engine);
    if (r == 0)
        r = rf_settings_init(&engine->settings, options, mappings_count, &failure.syscall);
    if (r == 0)
        r = make_workers(engine);
    if (r == 0)
        r = rf_settings_listen(&engine->settings, mappings, engine->workers_count,
                               engine->listener_fds, &failure);
    if (r < 0) {
        rf_engine_free(engine);
        *ret_failure = failure;
        return r;
    }
    find_capacity(engine, true);
    *ret_engine = engine;
    return 0;
}

static int compare_fds(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* Leaves the worker's table with its listeners, everybody's wake-up descriptors, and no more. */
static bool take_table(struct rf_engine *engine, const struct rf_worker *worker)
{
    size_t count = 0;
    size_t max = engine->settings.targets_count + engine->workers_count + 1;
    int *keep = malloc(max * sizeof(*keep));
    bool taken;

    if (!keep)
        return false;
#ifdef RF_SANITIZE
    keep[count++] = STDERR_FILENO; /* for its reports */
#endif
    for (uint32_t i = 0; i < engine->settings.targets_count; i++)
        keep[count++] = worker->listener_fds[i];
    for (uint32_t i = 0; i < engine->workers_count; i++)
        keep[count++] = engine->wake_fds[i];
    qsort(keep, count, sizeof(*keep), compare_fds);
    taken = rf_sys_take_table(keep, count);
    free(keep);
    return taken;
}

/* Reports that the worker is through with its phase and waits for the next one. */
static enum phase arrive(struct rf_engine *engine, enum phase done, int error)
{
    enum phase phase;

    pthread_mutex_lock(&engine->lock);
    if (error < 0 && engine->start_error == 0)
        engine->start_error = error;
    engine->arrived++;
    pthread_cond_broadcast(&engine->changed);
    while (engine->phase == done)
        pthread_cond_wait(&engine->changed, &engine->lock);
    phase = engine->phase;
    pthread_mutex_unlock(&engine->lock);
    return phase;
}

struct worker_start {
    struct rf_engine *engine;
    struct rf_worker *worker;
};

static void *worker_main(void *argument)
{
    struct worker_start start = *(struct worker_start *)argument;
    struct rf_engine *engine = start.engine;
    struct rf_worker *worker = start.worker;
    enum phase phase;
    int r;

    free(argument);
    worker->own_table = take_table(engine, worker);
    phase = arrive(engine, PHASE_TABLES, 0);
    if (phase == PHASE_INIT) {
        worker->admission = engine->admission;
        r = rf_worker_init(worker, engine->capacity, engine->max_pipes);
        phase = arrive(engine, PHASE_INIT, r);
    }
    if (phase == PHASE_RUN)
        rf_worker_run(worker);
    rf_worker_fini(worker);

    pthread_mutex_lock(&engine->lock);
    engine->running--;
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

static int spawn(struct rf_engine *engine, struct rf_worker *worker)
{
    struct worker_start *start = malloc(sizeof(*start));
    char name[16];
    int r;

    if (!start)
        return -ENOMEM;
    *start = (struct worker_start){.engine = engine, .worker = worker};
    r = pthread_create(&worker->thread, NULL, worker_main, start);
    if (r != 0) {
        free(start);
        return -r;
    }
    snprintf(name, sizeof(name), "reflector/%u", worker->number % 10000);
    pthread_setname_np(worker->thread, name);
    return 0;
}

/* Lets the workers into a phase and waits until all of them are through. */
static int go_through(struct rf_engine *engine, enum phase phase)
{
    int error;

    pthread_mutex_lock(&engine->lock);
    engine->phase = phase;
    if (phase != PHASE_TABLES) /* in that one they began by themselves */
        engine->arrived = 0;
    pthread_cond_broadcast(&engine->changed);
    while (engine->arrived < engine->started)
        pthread_cond_wait(&engine->changed, &engine->lock);
    error = engine->start_error;
    pthread_mutex_unlock(&engine->lock);
    return error;
}

static void enter_phase(struct rf_engine *engine, enum phase phase)
{
    pthread_mutex_lock(&engine->lock);
    engine->phase = phase;
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->lock);
}

/* Signals are the program's, not the workers'. With all blocked, SIGPIPE becomes EPIPE. */
static int spawn_all(struct rf_engine *engine)
{
    sigset_t all, before;
    int r = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint32_t i = 0; i < engine->workers_count && r == 0; i++) {
        r = spawn(engine, &engine->workers[i]);
        if (r == 0) {
            pthread_mutex_lock(&engine->lock);
            engine->started++;
            engine->running++;
            pthread_mutex_unlock(&engine->lock);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r;
}

static bool all_own_tables(const struct rf_engine *engine)
{
    bool all = true;

    for (uint32_t i = 0; i < engine->workers_count; i++)
        all = all && engine->workers[i].own_table;
    return all;
}

static void close_listeners(struct rf_engine *engine, uint32_t worker)
{
    const int *fds = &engine->listener_fds[(size_t)worker * engine->settings.targets_count];

    for (uint32_t i = 0; i < engine->settings.targets_count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* Workers with a table of their own have copies; the others use these and close them. */
static void close_copies(struct rf_engine *engine)
{
    for (uint32_t i = 0; i < engine->started; i++)
        if (engine->workers[i].own_table)
            close_listeners(engine, i);
}

/* Takes the right to start or to stop the engine; false if it is not in the phase for it. */
static bool begin(struct rf_engine *engine, enum phase first, enum phase last)
{
    bool allowed;

    pthread_mutex_lock(&engine->lock);
    while (engine->busy)
        pthread_cond_wait(&engine->changed, &engine->lock);
    allowed = engine->phase >= first && engine->phase <= last;
    engine->busy = allowed;
    pthread_mutex_unlock(&engine->lock);
    return allowed;
}

static void end(struct rf_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->busy = false;
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->lock);
}

int rf_engine_start(struct rf_engine *engine, struct rf_failure *ret_failure)
{
    int r;

    if (!begin(engine, PHASE_NEW, PHASE_NEW))
        return -EALREADY;
    enter_phase(engine, PHASE_TABLES);
    *ret_failure = (struct rf_failure){.syscall = "pthread_create", .mapping = -1};
    r = spawn_all(engine);
    go_through(engine, PHASE_TABLES);
    find_capacity(engine, all_own_tables(engine));
    close_copies(engine);
    if (r == 0) {
        ret_failure->syscall = "malloc";
        r = rf_admission_new(resolved_max_connections(engine), engine->max_per_source,
                             engine->wake_fds, engine->workers_count, &engine->admission);
    }
    if (r == 0) {
        ret_failure->syscall = NULL;
        r = go_through(engine, PHASE_INIT);
    }
    enter_phase(engine, r == 0 ? PHASE_RUN : PHASE_ABORT);
    end(engine);
    if (r < 0)
        rf_engine_stop(engine);
    return r;
}

uint16_t rf_engine_port(const struct rf_engine *engine, size_t mapping)
{
    if (mapping >= engine->settings.targets_count)
        return 0;
    return rf_address_port(&engine->settings.targets[mapping].address);
}

uint32_t rf_engine_workers(const struct rf_engine *engine)
{
    return engine->workers_count;
}

uint32_t rf_engine_max_connections(const struct rf_engine *engine)
{
    return resolved_max_connections(engine);
}

static void make_request(struct rf_engine *engine, enum rf_request request)
{
    static const uint64_t one = 1;
    unsigned current = atomic_load(&engine->request);

    while (current < request && !atomic_compare_exchange_weak(&engine->request, &current, request))
        ;
    for (uint32_t i = 0; i < engine->workers_count; i++)
        if (engine->wake_fds[i] >= 0)
            (void)!write(engine->wake_fds[i], &one, sizeof(one));
}

void rf_engine_stop_accepting(struct rf_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    if (engine->phase == PHASE_RUN)
        make_request(engine, RF_REQUEST_STOP_ACCEPTING);
    pthread_mutex_unlock(&engine->lock);
}

int rf_engine_wait(struct rf_engine *engine, uint32_t timeout_ms)
{
    struct timespec until;
    int r = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&engine->lock);
    while (engine->running > 0 && r == 0)
        r = pthread_cond_timedwait(&engine->changed, &engine->lock, &until);
    pthread_mutex_unlock(&engine->lock);
    return -r;
}

void rf_engine_stop(struct rf_engine *engine)
{
    if (!begin(engine, PHASE_NEW, PHASE_ABORT))
        return;
    make_request(engine, RF_REQUEST_STOP);
    for (uint32_t i = 0; i < engine->started; i++)
        pthread_join(engine->workers[i].thread, NULL);
    for (uint32_t i = engine->started; i < engine->workers_count; i++)
        close_listeners(engine, i); /* of a worker that never was */

    pthread_mutex_lock(&engine->lock);
    for (uint32_t i = 0; i < engine->workers_count; i++) {
        if (engine->wake_fds[i] >= 0)
            close(engine->wake_fds[i]);
        engine->wake_fds[i] = -1;
    }
    engine->phase = PHASE_ENDED;
    pthread_mutex_unlock(&engine->lock);
    end(engine);
}

void rf_engine_stats(const struct rf_engine *engine, struct rf_stats *ret_stats)
{
    *ret_stats = (struct rf_stats){0};
    for (uint32_t i = 0; i < engine->workers_count; i++)
        for (unsigned c = 0; c < RF_COUNTER_MAX; c++)
            ret_stats->value[c] +=
                atomic_load_explicit(&engine->workers[i].counters[c], memory_order_relaxed);
}

/*
 * In a forked child: the threads are gone, in the middle of whatever they did,
 * so there is nothing to stop and nothing that could safely be freed.
 */
static void abandon(struct rf_engine *engine)
{
    static struct rf_engine *abandoned; /* keeps it reachable, for leak checkers */

    engine->next_abandoned = abandoned;
    abandoned = engine;
}

void rf_engine_free(struct rf_engine *engine)
{
    if (!engine)
        return;
    if (engine->pid != getpid()) {
        abandon(engine);
        return;
    }
    if (engine->wake_fds && engine->listener_fds) {
        rf_engine_stop(engine);
        pthread_cond_destroy(&engine->changed);
        pthread_mutex_destroy(&engine->lock);
    }
    rf_admission_free(engine->admission);
    free(engine->workers);
    free(engine->wake_fds);
    free(engine->listener_fds);
    rf_settings_fini(&engine->settings);
    free(engine);
}
