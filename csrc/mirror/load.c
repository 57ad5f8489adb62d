#include "load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <bpf/libbpf.h>

#include "messages.h"

/* The object file, which is made when the package is built. */
#include "mirror_program.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the program is one for little-endian machines"
#endif

_Static_assert(sizeof(((struct rf_mirror_failure *)0)->reason) == RF_MESSAGES_SIZE,
               "a reason is what messages.h makes");

#define LOG_SIZE (1U << 20)

/* The maps by number, as maps.h names them in BTF. */
static const char *const NAMES[RF_MIRROR_MAP_MAX] = {
#define NAME(id, name, ...) #name "_map",
    RF_MIRROR_MAPS(NAME)
#undef NAME
};

/*
 * The verifier's last words that tell of the matter: the last line, but for
 * the one of its costs.
 */
static const char *find_reason(char *log)
{
    char *end = log + strlen(log);

    for (;;) {
        while (end > log && end[-1] == '\n')
            *--end = '\0';
        char *line = strrchr(log, '\n');
        line = line ? line + 1 : log;
        if (strncmp(line, "processed ", 10) != 0 || line == log)
            return line;
        *line = '\0';
        end = line;
    }
}

static int set_size(const struct bpf_object *object, unsigned map, uint32_t entries)
{
    struct bpf_map *found = bpf_object__find_map_by_name(object, NAMES[map]);

    return found ? bpf_map__set_max_entries(found, entries) : -ENOENT;
}

/* Loads what was opened; `log` is for the verifier. */
static int load(struct bpf_object *object, uint32_t mappings, uint32_t max_sources, char *log,
                struct rf_loaded *ret_loaded)
{
    struct bpf_program *program = bpf_object__find_program_by_name(object, "rf_mirror");
    struct rf_loaded loaded = {.object = object};
    int r;

    if (!program)
        return -ENOENT;
    r = set_size(object, RF_MIRROR_MAP_COUNTERS, mappings * RF_MIRROR_COUNTER_MAX);
    if (r == 0)
        r = set_size(object, RF_MIRROR_MAP_SOURCES, max_sources);
    /* Written to only when the verifier has refused the program; not used once it is loaded. */
    if (r == 0)
        r = bpf_program__set_log_buf(program, log, LOG_SIZE);
    if (r == 0)
        r = bpf_object__load(object);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < RF_MIRROR_MAP_MAX; i++) {
        loaded.maps[i] = bpf_object__find_map_fd_by_name(object, NAMES[i]);
        if (loaded.maps[i] < 0)
            return loaded.maps[i];
    }
    loaded.program = bpf_program__fd(program);
    r = libbpf_num_possible_cpus();
    if (r < 0)
        return r;
    loaded.cpus = (unsigned)r;
    *ret_loaded = loaded;
    return 0;
}

int rf_load(uint32_t mappings, uint32_t max_sources, struct rf_loaded *ret_loaded,
            struct rf_mirror_failure *ret_failure)
{
    const struct bpf_object_open_opts options = {.sz = sizeof(options),
                                                 .object_name = "rf_mirror"};
    struct bpf_object *object = NULL;
    struct rf_messages messages;
    char *log = calloc(1, LOG_SIZE);
    int r;

    ret_failure->syscall = "bpf";
    ret_failure->what = "program";
    if (!log)
        return -ENOMEM;
    rf_messages_begin(&messages);
    object = bpf_object__open_mem(program_object, sizeof(program_object), &options);
    r = object ? load(object, mappings, max_sources, log, ret_loaded) : -errno;
    if (r < 0)
        bpf_object__close(object);
    rf_messages_end();
    if (r < 0)
        rf_messages_append(ret_failure->reason, log[0] ? find_reason(log) : messages.text);
    free(log);
    return r;
}

void rf_unload(struct rf_loaded *loaded)
{
    bpf_object__close(loaded->object);
    loaded->object = NULL;
}
