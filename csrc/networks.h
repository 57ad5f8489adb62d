/*
 * networks.h - which peers are served, by the networks that they are in.
 *
 * The longest prefix that a peer is in decides. A peer in none is served, unless
 * some network is allowed: then what is not allowed is denied.
 *
 * Prefixes nest or are apart, so all of them together cut the address space into
 * ranges of one verdict each. The table is the sorted list of their first
 * addresses, and a look-up is a binary search in it (B. Lampson, V. Srinivasan,
 * G. Varghese, "IP Lookups Using Multiway and Multicolumn Search", IEEE/ACM
 * Transactions on Networking 7(3), 1999; here with neighbours of one verdict
 * joined, so that the verdicts alternate and need not be stored). n networks
 * make 2 n + 1 ranges at most: 15 steps for 10,000 of them.
 *
 * Ownership: rf_settings has it. Invariant: never changed once it is made, so
 * all workers read it without a lock.
 */
#ifndef RF_NETWORKS_H
#define RF_NETWORKS_H

#include <stdbool.h>
#include <stddef.h>

#include "address.h"
#include "reflector.h"

struct rf_networks;

/*
 * Makes the table, or NULL for no networks at all. -EINVAL: a prefix that is
 * none (no numeric address, too long, bits set after its end, v4-mapped), one
 * that is both allowed and denied, or more than RF_MAX_NETWORKS. -ENOMEM.
 */
int rf_networks_new(const struct rf_network *networks, size_t count,
                    struct rf_networks **ret_networks);
void rf_networks_free(struct rf_networks *networks);

/* Whether a peer, never v4-mapped, is served. The interface of a link-local one does not count. */
bool rf_networks_allow(const struct rf_networks *networks, const union rf_address *peer);

#endif
