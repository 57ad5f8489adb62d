#include "bpf.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux 3.18; older C libraries do not know the number. */
#ifndef SYS_bpf
#if defined(__x86_64__)
#define SYS_bpf 321
#elif defined(__aarch64__) || defined(__riscv)
#define SYS_bpf 280
#else
#error "the number of bpf(2) on this architecture"
#endif
#endif

enum command {
    MAP_CREATE = 0,
    MAP_LOOKUP_ELEM = 1,
    MAP_UPDATE_ELEM = 2,
    MAP_DELETE_ELEM = 3,
    PROG_LOAD = 5,
    LINK_CREATE = 28,
};

enum {
    PROG_TYPE_SCHED_CLS = 3,
    TCX_INGRESS = 46,
    NAME_SIZE = 16,
};

static int call(enum command command, void *attributes, size_t size)
{
    long r = syscall(SYS_bpf, command, attributes, size);

    return r < 0 ? -errno : (int)r;
}

static uint64_t address_of(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

int rf_bpf_create_map(const struct rf_bpf_map *map)
{
    struct {
        uint32_t type, key_size, value_size, max_entries, flags, inner_map_fd, numa_node;
        char name[NAME_SIZE];
    } attributes = {
        .type = map->type,
        .key_size = map->key_size,
        .value_size = map->value_size,
        .max_entries = map->entries,
        .flags = map->flags,
    };

    strncpy(attributes.name, map->name, NAME_SIZE - 1);
    return call(MAP_CREATE, &attributes, sizeof(attributes));
}

int rf_bpf_load_program(const char *name, const uint64_t *code, size_t instructions, char *log,
                        size_t log_size)
{
    struct {
        uint32_t type, instructions;
        uint64_t code, license;
        uint32_t log_level, log_size;
        uint64_t log;
        uint32_t kernel_version, flags;
        char name[NAME_SIZE];
    } attributes = {
        .type = PROG_TYPE_SCHED_CLS,
        .instructions = (uint32_t)instructions,
        .code = address_of(code),
        .license = address_of("Apache-2.0"),
        .log_level = log ? 1 : 0,
        .log_size = log ? (uint32_t)log_size : 0,
        .log = address_of(log),
    };

    strncpy(attributes.name, name, NAME_SIZE - 1);
    return call(PROG_LOAD, &attributes, sizeof(attributes));
}

/* The three commands on an element share one layout. */
static int access_element(enum command command, int map_fd, const void *key, uint64_t value)
{
    struct {
        uint32_t map_fd, unused;
        uint64_t key, value, flags;
    } attributes = {
        .map_fd = (uint32_t)map_fd,
        .key = address_of(key),
        .value = value,
    };

    return call(command, &attributes, sizeof(attributes));
}

int rf_bpf_update(int map_fd, const void *key, const void *value)
{
    return access_element(MAP_UPDATE_ELEM, map_fd, key, address_of(value));
}

int rf_bpf_lookup(int map_fd, const void *key, void *ret_value)
{
    return access_element(MAP_LOOKUP_ELEM, map_fd, key, address_of(ret_value));
}

int rf_bpf_delete(int map_fd, const void *key)
{
    return access_element(MAP_DELETE_ELEM, map_fd, key, 0);
}

int rf_bpf_link_tcx(int program_fd, uint32_t ifindex)
{
    struct {
        uint32_t program_fd, ifindex, attach_type, flags;
        uint32_t relative_fd, unused;
        uint64_t expected_revision;
    } attributes = {
        .program_fd = (uint32_t)program_fd,
        .ifindex = ifindex,
        .attach_type = TCX_INGRESS,
    };

    return call(LINK_CREATE, &attributes, sizeof(attributes));
}
