#include "sieve.h"

#include <bpf/bpf.h>

static int put(struct rf_sieve *sieve, uint32_t index, uint64_t word)
{
    int r;

    if (sieve->words[index] == word)
        return 0;
    r = bpf_map_update_elem(sieve->map_fd, &index, &word, BPF_ANY);
    if (r == 0)
        sieve->words[index] = word;
    return r;
}

int rf_sieve_add(struct rf_sieve *sieve, uint32_t first, const uint64_t *words, uint32_t count)
{
    int r = 0;

    for (uint32_t i = 0; i < count && r == 0; i++)
        r = put(sieve, first + i, sieve->words[first + i] | words[i]);
    return r;
}

int rf_sieve_replace(struct rf_sieve *sieve, uint32_t first, const uint64_t *words, uint32_t count)
{
    int r = 0;

    for (uint32_t i = 0; i < count && r == 0; i++)
        r = put(sieve, first + i, words[i]);
    return r;
}
