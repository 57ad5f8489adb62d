#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bpf.h"

/* The byte code, and which of its instructions name which map; made when the package is built. */
#include "mirror_program.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the byte code is that of little-endian machines"
#endif

#define LOG_SIZE (1U << 20)
#define PSEUDO_MAP_FD 1U /* linux/bpf.h: the immediate value is a descriptor of a map */

static const struct rf_bpf_map MAPS[RF_MIRROR_MAP_MAX] = {
#define DESCRIBE(id, name, type, key, value, entries, flags)                                      \
    {#name, RF_BPF_MAP_TYPE_##type, sizeof(key), sizeof(value), entries, RF_BPF_F_##flags},
    RF_MIRROR_MAPS(DESCRIBE)
#undef DESCRIBE
};

int rf_load_maps(uint32_t mappings, uint32_t max_sources, int ret_maps[RF_MIRROR_MAP_MAX],
                 struct rf_mirror_failure *ret_failure)
{
    for (unsigned i = 0; i < RF_MIRROR_MAP_MAX; i++) {
        struct rf_bpf_map map = MAPS[i];
        if (i == RF_MIRROR_MAP_COUNTERS)
            map.entries = mappings * RF_MIRROR_COUNTER_MAX;
        else if (i == RF_MIRROR_MAP_SOURCES)
            map.entries = max_sources;
        ret_maps[i] = rf_bpf_create_map(&map);
        if (ret_maps[i] < 0) {
            ret_failure->syscall = "bpf";
            ret_failure->what = MAPS[i].name;
            return ret_maps[i];
        }
    }
    return 0;
}

/* The verifier's last words that tell of the matter; the line after them is of its costs. */
static void find_reason(char *log, char *ret_reason, size_t size)
{
    char *end = log + strlen(log);

    for (;;) {
        while (end > log && end[-1] == '\n')
            *--end = '\0';
        char *line = strrchr(log, '\n');
        line = line ? line + 1 : log;
        if (strncmp(line, "processed ", 10) != 0 || line == log) {
            snprintf(ret_reason, size, "%s", line);
            return;
        }
        *line = '\0';
        end = line;
    }
}

/* Loads it once more, to be told why not. */
static void explain(const uint64_t *code, size_t count, struct rf_mirror_failure *ret_failure)
{
    char *log = calloc(1, LOG_SIZE);

    if (!log)
        return;
    /* A log that is too short keeps its end since Linux 6.4. */
    int fd = rf_bpf_load_program("rf_mirror", code, count, log, LOG_SIZE);
    if (fd >= 0)
        close(fd);
    find_reason(log, ret_failure->reason, sizeof(ret_failure->reason));
    free(log);
}

int rf_load_program(const int maps[RF_MIRROR_MAP_MAX], struct rf_mirror_failure *ret_failure)
{
    size_t count = sizeof(program_code) / sizeof(program_code[0]);
    uint64_t *code = malloc(sizeof(program_code));
    int r;

    ret_failure->syscall = "bpf";
    ret_failure->what = "program";
    if (!code)
        return -ENOMEM;
    memcpy(code, program_code, sizeof(program_code));
    for (size_t i = 0; i < sizeof(program_maps) / sizeof(program_maps[0]); i++) {
        uint64_t *instruction = &code[program_maps[i].instruction];
        /* Code, registers, offset, immediate: 8, 4 + 4, 16, 32 bits. */
        *instruction |= (uint64_t)PSEUDO_MAP_FD << 12;
        *instruction |= (uint64_t)(uint32_t)maps[program_maps[i].map] << 32;
    }
    r = rf_bpf_load_program("rf_mirror", code, count, NULL, 0);
    if (r == -EACCES || r == -EINVAL || r == -E2BIG)
        explain(code, count, ret_failure);
    free(code);
    return r;
}
