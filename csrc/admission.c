#include "admission.h"

#include <errno.h>
#include <linux/random.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define GROUP_SLOTS 8U /* of 8 bytes: one cache line */
/* 32 kB; and as many levels as RF_MAX_CONNECTIONS can ask for. */
#define FIRST_LEVEL_GROUPS 512U
#define LEVEL_FACTOR 4U
#define LEVELS_MAX 9U

#define COUNT_BITS 24U
#define COUNT_MASK ((UINT64_C(1) << COUNT_BITS) - 1)

struct level {
    uint32_t first_slot;
    uint32_t groups; /* a power of two */
};

struct rf_admission {
    _Alignas(64) atomic_uint entered;
    /* Set by a worker before it sleeps for want of room, cleared by whoever wakes it: some do, */
    _Alignas(64) atomic_bool wanted;
    atomic_bool waiting[RF_MAX_WORKERS]; /* and these. */
    uint32_t max_connections;
    uint32_t max_per_source;
    atomic_uint levels_used; /* only grows */
    uint32_t levels_count;
    struct level levels[LEVELS_MAX];
    uint64_t key[2];
    const int *wake_fds;
    uint32_t workers_count;
    _Atomic uint64_t *slots;
    _Alignas(64) atomic_uint sessions;
};

/* The last level has four slots for every source that can be there at once. Number of slots. */
static uint32_t lay_out_levels(struct rf_admission *a, uint32_t max_connections)
{
    uint32_t groups = FIRST_LEVEL_GROUPS;
    uint32_t slots = 0;

    a->levels_used = 1;
    do {
        a->levels[a->levels_count++] = (struct level){.first_slot = slots, .groups = groups};
        slots += groups * GROUP_SLOTS;
        groups *= LEVEL_FACTOR;
    } while (a->levels_count < LEVELS_MAX &&
             groups / LEVEL_FACTOR * GROUP_SLOTS / 4 < max_connections);
    return slots;
}

int rf_admission_new(uint32_t max_connections, uint32_t max_per_source, const int *wake_fds,
                     uint32_t workers_count, struct rf_admission **ret_admission)
{
    struct rf_admission *a;
    uint32_t slots;

    a = aligned_alloc(64, (sizeof(*a) + 63) / 64 * 64);
    if (!a)
        return -ENOMEM;
    memset(a, 0, sizeof(*a));
    slots = lay_out_levels(a, max_connections);
    /* calloc: the pages of a level that is never used are never touched. */
    a->slots = calloc(slots, sizeof(*a->slots));
    if (!a->slots) {
        free(a);
        return -ENOMEM;
    }
    a->max_connections = max_connections;
    a->max_per_source = max_per_source;
    a->wake_fds = wake_fds;
    a->workers_count = workers_count;
    /* By number: manylinux2014 has no function for it. */
    if (syscall(SYS_getrandom, a->key, sizeof(a->key), GRND_NONBLOCK) != sizeof(a->key)) {
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

bool rf_admission_try_enter(struct rf_admission *admission)
{
    unsigned entered = atomic_load(&admission->entered);

    while (entered < admission->max_connections)
        if (atomic_compare_exchange_weak(&admission->entered, &entered, entered + 1))
            return true;
    return false;
}

bool rf_admission_enter(struct rf_admission *admission, uint32_t worker)
{
    if (rf_admission_try_enter(admission))
        return true;
    /* Say so first and look again: whoever leaves in between sees it, or we see the room. */
    atomic_store(&admission->waiting[worker], true);
    atomic_store(&admission->wanted, true);
    return rf_admission_try_enter(admission);
}

void rf_admission_leave(struct rf_admission *admission)
{
    static const uint64_t one = 1;

    atomic_fetch_sub(&admission->entered, 1);
    if (!atomic_load(&admission->wanted) || !atomic_exchange(&admission->wanted, false))
        return;
    for (uint32_t i = 0; i < admission->workers_count; i++)
        if (atomic_exchange(&admission->waiting[i], false))
            (void)!write(admission->wake_fds[i], &one, sizeof(one));
}

void rf_admission_begin_session(struct rf_admission *admission)
{
    atomic_fetch_add(&admission->sessions, 1);
}

void rf_admission_end_session(struct rf_admission *admission, bool draining)
{
    static const uint64_t one = 1;

    if (atomic_fetch_sub(&admission->sessions, 1) != 1 || !draining)
        return;
    for (uint32_t i = 0; i < admission->workers_count; i++)
        (void)!write(admission->wake_fds[i], &one, sizeof(one));
}

bool rf_admission_has_sessions(struct rf_admission *admission)
{
    return atomic_load(&admission->sessions) != 0;
}

/* Multiply-fold, the mixer of wyhash: full avalanche in one multiplication. */
static uint64_t mix(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 product = (unsigned __int128)a * b;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t rf_admission_hash(const struct rf_admission *admission, const union rf_address *address)
{
    const uint64_t *key = admission->key;
    uint64_t words[2] = {0, 0};

    if (address->any.sa_family == AF_INET)
        words[1] = address->v4.sin_addr.s_addr;
    else
        memcpy(words, &address->v6.sin6_addr, sizeof(words));
    return mix(mix(words[0] ^ key[0], UINT64_C(0xa0761d6478bd642f)) ^ words[1] ^ key[1],
               UINT64_C(0xe7037ed1a0b428db) ^ key[0]);
}

/* Counts one more in a slot if it carries the tag: then *ret_slot is set, maybe to "limited". */
static bool count_up(struct rf_admission *a, uint32_t slot, uint64_t tag, uint32_t *ret_slot)
{
    uint64_t value = atomic_load_explicit(&a->slots[slot], memory_order_relaxed);

    while ((value & ~COUNT_MASK) == tag) {
        if ((value & COUNT_MASK) >= a->max_per_source) {
            *ret_slot = RF_NO_SOURCE;
            return true;
        }
        if (atomic_compare_exchange_weak(&a->slots[slot], &value, value + 1)) {
            *ret_slot = slot;
            return true;
        }
    }
    return false;
}

static bool find(struct rf_admission *a, uint32_t first, uint64_t tag, uint32_t *ret_slot)
{
    for (uint32_t slot = first; slot < first + GROUP_SLOTS; slot++)
        if (count_up(a, slot, tag, ret_slot))
            return true;
    return false;
}

/*
 * Two workers that meet a new source at the same instant both go for the first
 * empty slot of the group; the loser of the compare-and-swap finds the tag there
 * and counts up. Only where a slot before it is freed in that very instant can a
 * source get two slots: its limit is then too kind until the first of them
 * empties, never too strict.
 */
static bool claim(struct rf_admission *a, uint32_t first, uint64_t tag, uint32_t *ret_slot)
{
    for (uint32_t slot = first; slot < first + GROUP_SLOTS; slot++) {
        uint64_t empty = 0;

        if (atomic_load_explicit(&a->slots[slot], memory_order_relaxed) == 0 &&
            atomic_compare_exchange_strong(&a->slots[slot], &empty, tag | 1)) {
            *ret_slot = slot;
            return true;
        }
        if (count_up(a, slot, tag, ret_slot))
            return true;
    }
    return false;
}

static uint32_t group_of(const struct level *level, uint64_t hash)
{
    return level->first_slot + ((uint32_t)hash & (level->groups - 1)) * GROUP_SLOTS;
}

static void use_levels(struct rf_admission *a, uint32_t count)
{
    unsigned used = atomic_load_explicit(&a->levels_used, memory_order_relaxed);

    while (used < count && !atomic_compare_exchange_weak(&a->levels_used, &used, count))
        ;
}

/*
 * All groups of the source are full, which takes thousands of sources at once:
 * it gets the next slot there is.
 */
static uint32_t claim_anywhere(struct rf_admission *a, uint64_t hash, uint64_t tag)
{
    const struct level *last = &a->levels[a->levels_count - 1];
    uint32_t slot = RF_NO_SOURCE;

    for (uint32_t i = 1; i < last->groups; i++)
        if (claim(a, group_of(last, hash + i), tag, &slot))
            break;
    return slot;
}

uint32_t rf_admission_enter_source(struct rf_admission *admission, const union rf_address *peer)
{
    uint64_t hash = rf_admission_hash(admission, peer);
    /* Group from the low bits, tag from the high ones; the bit keeps a tag from being 0. */
    uint64_t tag = (hash & ~COUNT_MASK) | (UINT64_C(1) << COUNT_BITS);
    uint32_t used = atomic_load_explicit(&admission->levels_used, memory_order_relaxed);
    uint32_t slot;

    for (uint32_t i = 0; i < used; i++)
        if (find(admission, group_of(&admission->levels[i], hash), tag, &slot))
            return slot;
    for (uint32_t i = 0; i < admission->levels_count; i++) {
        use_levels(admission, i + 1);
        if (claim(admission, group_of(&admission->levels[i], hash), tag, &slot))
            return slot;
    }
    return claim_anywhere(admission, hash, tag);
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
