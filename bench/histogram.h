/*
 * histogram.h - latencies, counted in buckets whose width grows with the value.
 *
 * 128 buckets for each power of two of nanoseconds: a quantile is wrong by less
 * than 0.4 %, in a fixed space, however many values there are.
 */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdint.h>
#include <string.h>

#define HISTOGRAM_BITS 7
#define HISTOGRAM_STEPS (1U << HISTOGRAM_BITS)
#define HISTOGRAM_MAX_BITS 42 /* 73 minutes */
#define HISTOGRAM_BUCKETS ((HISTOGRAM_MAX_BITS - HISTOGRAM_BITS + 1) * HISTOGRAM_STEPS)

struct histogram {
    uint64_t total;
    uint32_t counts[HISTOGRAM_BUCKETS];
};

static inline void histogram_clear(struct histogram *histogram)
{
    memset(histogram, 0, sizeof(*histogram));
}

static inline void histogram_add(struct histogram *histogram, uint64_t ns)
{
    uint32_t shift = 0;

    if (ns >> HISTOGRAM_MAX_BITS)
        ns = (1ULL << HISTOGRAM_MAX_BITS) - 1;
    if (ns >> HISTOGRAM_BITS)
        shift = 63U - (uint32_t)__builtin_clzll(ns) - HISTOGRAM_BITS;
    /* The leading bit of what is left moves the bucket into its own power of two. */
    histogram->counts[shift * HISTOGRAM_STEPS + (uint32_t)(ns >> shift)]++;
    histogram->total++;
}

/* The middle of the bucket in which the value of rank q lies, 0 to 1, in microseconds. */
static inline double histogram_quantile_us(const struct histogram *histogram, double q)
{
    uint64_t rank = (uint64_t)(q * (double)(histogram->total ? histogram->total - 1 : 0));
    uint64_t seen = 0;

    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        uint32_t shift = i < 2 * HISTOGRAM_STEPS ? 0 : i / HISTOGRAM_STEPS - 1;

        seen += histogram->counts[i];
        if (seen > rank)
            return ((double)((uint64_t)(i - shift * HISTOGRAM_STEPS) << shift) +
                    (double)(1ULL << shift) / 2) / 1e3;
    }
    return 0;
}

#endif
