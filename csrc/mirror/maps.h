/*
 * maps.h - the maps as the program sees them, and the counters.
 *
 * They are described in BTF, from which libbpf makes them: shared.h lists
 * them. Those without a size of their own get it when the program is loaded.
 */
#ifndef RF_MIRROR_MAPS_H
#define RF_MIRROR_MAPS_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "shared.h"

#define RF_MIRROR_MAP_DEFINE(id, name, kind, key_type, value_type, entries, flags)                \
    struct {                                                                                      \
        __uint(type, BPF_MAP_TYPE_##kind);                                                        \
        __type(key, key_type);                                                                    \
        __type(value, value_type);                                                                \
        __uint(max_entries, entries);                                                             \
        __uint(map_flags, flags);                                                                 \
    } name##_map SEC(".maps");
RF_MIRROR_MAPS(RF_MIRROR_MAP_DEFINE)
#undef RF_MIRROR_MAP_DEFINE

static __always_inline void count(uint32_t mapping, uint32_t counter, uint64_t by)
{
    uint32_t index = mapping * RF_MIRROR_COUNTER_MAX + counter;
    uint64_t *found = bpf_map_lookup_elem(&counters_map, &index);

    if (found)
        *found += by;
}

#endif
