/*
 * load.h - loads the program and its maps, by libbpf, from the object that is part of us.
 *
 * What is loaded is owned by the object; maps and program are given out as
 * descriptors that end with it.
 */
#ifndef RF_MIRROR_LOAD_H
#define RF_MIRROR_LOAD_H

#include "mirror.h"

struct bpf_object;

struct rf_loaded {
    struct bpf_object *object; /* NULL: nothing is loaded */
    int maps[RF_MIRROR_MAP_MAX];
    int program;
    unsigned cpus; /* the possible ones: so many values has an entry of a per-CPU map */
};

/* Loads them, the maps' sizes made to fit. On failure no output is touched but the reason. */
int rf_load(uint32_t mappings, uint32_t max_sources, struct rf_loaded *ret_loaded,
            struct rf_mirror_failure *ret_failure);

/* Gives them up; what the kernel has attached keeps what it needs. */
void rf_unload(struct rf_loaded *loaded);

#endif
