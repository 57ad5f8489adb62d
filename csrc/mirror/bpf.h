/*
 * bpf.h - the commands of bpf(2) that the loader needs, each one call.
 *
 * The structs stand here and are not taken from linux/bpf.h, so that it builds
 * where the kernel's headers are older than bpf(2) itself (manylinux2014). The
 * kernel reads as much of them as it is told, and the layouts never change.
 * All return a descriptor or 0, or a negative errno value. The kernel makes
 * every descriptor close-on-exec.
 */
#ifndef RF_MIRROR_BPF_H
#define RF_MIRROR_BPF_H

#include <stddef.h>
#include <stdint.h>

/* What a map is, as shared.h lists it. */
struct rf_bpf_map {
    const char *name;
    uint32_t type;
    uint32_t key_size;
    uint32_t value_size;
    uint32_t entries;
    uint32_t flags;
};

/* Numbers of linux/bpf.h, by its names without the prefix. */
enum {
    RF_BPF_MAP_TYPE_HASH = 1,
    RF_BPF_MAP_TYPE_ARRAY = 2,
    RF_BPF_MAP_TYPE_PERCPU_ARRAY = 6,
    RF_BPF_MAP_TYPE_LRU_HASH = 9,
    RF_BPF_MAP_TYPE_LPM_TRIE = 11,
};
enum { RF_BPF_F_NONE = 0, RF_BPF_F_NO_PREALLOC = 1 };

int rf_bpf_create_map(const struct rf_bpf_map *map);

/* Loads a program for traffic control. The verifier's log may be NULL. */
int rf_bpf_load_program(const char *name, const uint64_t *code, size_t instructions, char *log,
                        size_t log_size);

int rf_bpf_update(int map_fd, const void *key, const void *value);
int rf_bpf_lookup(int map_fd, const void *key, void *ret_value);
int rf_bpf_delete(int map_fd, const void *key);

/* Attaches to ingress of an interface by a tcx link: its descriptor (Linux 6.6). */
int rf_bpf_link_tcx(int program_fd, uint32_t ifindex);

#endif
