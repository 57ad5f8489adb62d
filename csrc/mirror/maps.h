/*
 * maps.h - the maps as the program sees them, and the counters.
 *
 * A map is an external symbol here; the build notes which instructions name
 * it, and the loader puts the map's descriptor there (see
 * tools/mirror_program.py).
 */
#ifndef RF_MIRROR_MAPS_H
#define RF_MIRROR_MAPS_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "shared.h"

struct map;

#define RF_MIRROR_MAP_DECLARE(id, name, ...) extern struct map name##_map;
RF_MIRROR_MAPS(RF_MIRROR_MAP_DECLARE)
#undef RF_MIRROR_MAP_DECLARE

static __always_inline void count(uint32_t mapping, uint32_t counter, uint64_t by)
{
    uint32_t index = mapping * RF_MIRROR_COUNTER_MAX + counter;
    uint64_t *found = bpf_map_lookup_elem(&counters_map, &index);

    if (found)
        *found += by;
}

#endif
