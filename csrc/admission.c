#include "admission.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define GROUP_SLOTS 8U /* of 8 bytes: one cache line */
#define COUNT_BITS 24U
#define COUNT_MASK ((UINT64_C(1) << COUNT_BITS) - 1)

struct rf_admission {
    _Alignas(64) atomic_uint entered;
    /* Set by a worker before it sleeps for want of room, cleared by whoever wakes it. */
    _Alignas(64) atomic_bool wanted;
    uint32_t max_connections;
    uint32_t max_per_source;
    uint32_t group_mask;
    uint64_t key[2];
    const int *wake_fds;
    uint32_t wake_fds_count;
    _Atomic uint64_t *slots;
};

int rf_admission_new(uint32_t max_connections, uint32_t max_per_source, const int *wake_fds,
                     uint32_t wake_fds_count, struct rf_admission **ret_admission)
{
    struct rf_admission *a;
    uint32_t groups = 1;

    /* Two slots for every source that can be there at once: a full group is then rare. */
    while (groups < max_connections / (GROUP_SLOTS / 2) + 1)
        groups *= 2;
    a = aligned_alloc(64, (sizeof(*a) + 63) / 64 * 64);
    if (!a)
        return -ENOMEM;
    memset(a, 0, sizeof(*a));
    /* calloc: pages that no source ever hashes to are never touched. */
    a->slots = calloc((size_t)groups * GROUP_SLOTS, sizeof(*a->slots));
    if (!a->slots) {
        free(a);
        return -ENOMEM;
    }
    a->max_connections = max_connections;
    a->max_per_source = max_per_source;
    a->group_mask = groups - 1;
    a->wake_fds = wake_fds;
    a->wake_fds_count = wake_fds_count;
    if (getrandom(a->key, sizeof(a->key), GRND_NONBLOCK) != sizeof(a->key)) {
        struct timespec now;

        /* Too early after boot for the kernel's pool: the clock and the heap must do. */
        clock_gettime(CLOCK_REALTIME, &now);
        a->key[0] = (uint64_t)now.tv_nsec * UINT64_C(0x9e3779b97f4a7c15);
        a->key[1] = (uint64_t)(uintptr_t)a ^ (uint64_t)now.tv_sec;
    }
    *ret_admission = a;
    return 0;
}

void rf_admission_free(struct rf_admission *admission)
{
    if (!admission)
        return;
    free(admission->slots);
    free(admission);
}

static bool try_enter(struct rf_admission *a)
{
    unsigned entered = atomic_load_explicit(&a->entered, memory_order_relaxed);

    while (entered < a->max_connections)
        if (atomic_compare_exchange_weak(&a->entered, &entered, entered + 1))
            return true;
    return false;
}

bool rf_admission_enter(struct rf_admission *admission)
{
    if (try_enter(admission))
        return true;
    /* Say so first and look again: whoever leaves in between sees it, or we see the room. */
    atomic_store(&admission->wanted, true);
    return try_enter(admission);
}

void rf_admission_leave(struct rf_admission *admission)
{
    static const uint64_t one = 1;

    atomic_fetch_sub(&admission->entered, 1);
    if (!atomic_load(&admission->wanted) || !atomic_exchange(&admission->wanted, false))
        return;
    for (uint32_t i = 0; i < admission->wake_fds_count; i++)
        (void)!write(admission->wake_fds[i], &one, sizeof(one));
}

/* Multiply-fold, the mixer of wyhash: full avalanche in one multiplication. */
static uint64_t mix(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 product = (unsigned __int128)a * b;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_source(const struct rf_admission *a, const union rf_address *peer)
{
    uint64_t words[2] = {0, 0};

    if (peer->any.sa_family == AF_INET)
        words[1] = peer->v4.sin_addr.s_addr;
    else
        memcpy(words, &peer->v6.sin6_addr, sizeof(words));
    return mix(mix(words[0] ^ a->key[0], UINT64_C(0xa0761d6478bd642f)) ^ words[1] ^ a->key[1],
               UINT64_C(0xe7037ed1a0b428db) ^ a->key[0]);
}

/* Counts one more in a slot that carries the tag; false when the tag left it meanwhile. */
static bool count_up(struct rf_admission *a, uint32_t slot, uint64_t tag, bool *ret_limited)
{
    uint64_t value = atomic_load_explicit(&a->slots[slot], memory_order_relaxed);

    while ((value & ~COUNT_MASK) == tag && value != 0) {
        if ((value & COUNT_MASK) >= a->max_per_source) {
            *ret_limited = true;
            return true;
        }
        if (atomic_compare_exchange_weak(&a->slots[slot], &value, value + 1)) {
            *ret_limited = false;
            return true;
        }
    }
    return false;
}

/*
 * Two workers that meet a new source at the same instant both go for the first
 * empty slot of the group; the loser of the compare-and-swap looks again, finds
 * the tag and counts up. Only where a slot before it is freed in that very
 * instant can a source get two slots: its limit is then too kind until the
 * first of them empties, never too strict.
 */
static bool enter_group(struct rf_admission *a, uint32_t first, uint64_t tag, uint32_t *ret_slot)
{
    bool limited;

again:
    for (uint32_t slot = first; slot < first + GROUP_SLOTS; slot++) {
        if (count_up(a, slot, tag, &limited)) {
            *ret_slot = limited ? RF_NO_SOURCE : slot;
            return true;
        }
    }
    for (uint32_t slot = first; slot < first + GROUP_SLOTS; slot++) {
        uint64_t empty = 0;

        if (atomic_load_explicit(&a->slots[slot], memory_order_relaxed) != 0)
            continue;
        if (!atomic_compare_exchange_strong(&a->slots[slot], &empty, tag | 1))
            goto again;
        *ret_slot = slot;
        return true;
    }
    return false;
}

uint32_t rf_admission_enter_source(struct rf_admission *admission, const union rf_address *peer)
{
    uint64_t hash = hash_source(admission, peer);
    /* Group from the low bits, tag from the high ones; the bit keeps a tag from being 0. */
    uint64_t tag = (hash & ~COUNT_MASK) | (UINT64_C(1) << COUNT_BITS);
    uint32_t group = (uint32_t)hash & admission->group_mask;
    uint32_t slot;

    for (uint32_t i = 0; i <= admission->group_mask; i++) {
        if (enter_group(admission, group * GROUP_SLOTS, tag, &slot))
            return slot;
        group = (group + 1) & admission->group_mask;
    }
    return RF_NO_SOURCE; /* not reached: there are more slots than connections */
}

void rf_admission_leave_source(struct rf_admission *admission, uint32_t slot)
{
    uint64_t value;

    if (slot == RF_NO_SOURCE)
        return;
    value = atomic_load_explicit(&admission->slots[slot], memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&admission->slots[slot], &value,
                                         (value & COUNT_MASK) == 1 ? 0 : value - 1))
        ;
}
