/*
 * filters.h - looks at which filters an interface has: ours, by slot, and those of others.
 *
 * libbpf asks for one filter by its handle and cannot list them, so this is
 * the one message of rtnetlink(7) that is spoken here.
 */
#ifndef RF_MIRROR_FILTERS_H
#define RF_MIRROR_FILTERS_H

#include <stdbool.h>
#include <stdint.h>

#define RF_FILTER_SLOTS 8U

/*
 * What names our filters. Filters of automatic priorities come after ours
 * (the kernel begins at 49152), those of a low one before.
 */
#define RF_FILTER_PRIORITY 21062U
#define RF_FILTER_BASE 0x52460000U
#define RF_FILTER_OWNS_QDISC 0x100U /* its queueing discipline was made here */

struct rf_filters {
    uint32_t handles[RF_FILTER_SLOTS]; /* of ours; 0: the slot has none */
    bool owns_qdisc;                   /* one of them says so */
    bool others;                       /* there are filters that are not ours, at either side */
};

static inline uint32_t rf_filter_handle(unsigned slot, bool owns_qdisc)
{
    return RF_FILTER_BASE | (owns_qdisc ? RF_FILTER_OWNS_QDISC : 0) | (slot + 1);
}

/* Of a handle of ours; at least RF_FILTER_SLOTS when it is none. */
static inline unsigned rf_filter_slot(uint32_t handle)
{
    return (handle & ~RF_FILTER_OWNS_QDISC) - RF_FILTER_BASE - 1;
}

/* An interface that has no clsact, or that is gone, has no filters. */
int rf_filters_list(uint32_t ifindex, struct rf_filters *ret_filters);

#endif
