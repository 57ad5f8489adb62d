/*
 * load.h - makes the maps, and loads the program with them.
 */
#ifndef RF_MIRROR_LOAD_H
#define RF_MIRROR_LOAD_H

#include "mirror.h"

/* Makes every map of shared.h: descriptors, -1 where there is none yet. */
int rf_load_maps(uint32_t mappings, uint32_t max_sources, int ret_maps[RF_MIRROR_MAP_MAX],
                 struct rf_mirror_failure *ret_failure);

/* Loads the program, which keeps the maps: its descriptor. */
int rf_load_program(const int maps[RF_MIRROR_MAP_MAX], struct rf_mirror_failure *ret_failure);

#endif
