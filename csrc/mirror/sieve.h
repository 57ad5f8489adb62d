/*
 * sieve.h - keeps the bits of the sieve (shared.h) in line with what the tables hold.
 *
 * A bit must be set before its table knows the key, and may be cleared only
 * once it does not any more: a superset is never wrong.
 */
#ifndef RF_MIRROR_SIEVE_H
#define RF_MIRROR_SIEVE_H

#include <stdint.h>

#include "shared.h"

struct rf_sieve {
    int map_fd;
    uint64_t words[RF_MIRROR_SIEVE_WORDS]; /* what the map holds */
};

static inline void rf_sieve_mark(uint64_t *words, uint32_t bit)
{
    words[bit / 64] |= 1ULL << bit % 64;
}

/*
 * The words from `first` on become these: with what is set in them already, or
 * without. Of what the kernel did not take, the sieve knows.
 */
int rf_sieve_add(struct rf_sieve *sieve, uint32_t first, const uint64_t *words, uint32_t count);
int rf_sieve_replace(struct rf_sieve *sieve, uint32_t first, const uint64_t *words,
                     uint32_t count);

#endif
