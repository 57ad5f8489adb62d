/*
 * admission.h - who may have a connection.
 *
 * The limits that mean something only over all workers together: the total and
 * the number per source address; and the number of UDP sessions, which a drain
 * must know. This is the one thing that workers share;
 * it takes no lock, and costs one atomic operation on a cache line of its own
 * and one on the line of the source, at accept and again at close.
 *
 * Sources are counted in 64-bit slots: 40 bits of a keyed hash of the address
 * beside a 24-bit count. The key is random, so that no peer can aim at the slot
 * of another. Slots come in levels, each four times the one before; a source
 * has one group of slots (a cache line) in each and sits in the first that had
 * room. So memory follows the number of sources, not the limit, and a lookup
 * reads as many lines as there are levels in use. A connection keeps its slot's
 * number and releases it without looking.
 */
#ifndef RF_ADMISSION_H
#define RF_ADMISSION_H

#include "address.h"
#include "reflector.h"

struct rf_admission;

/* Never a slot: no source is held. */
#define RF_NO_SOURCE UINT32_MAX

/*
 * wake_fds: an eventfd for each worker, written when room appears that it waits
 * for. They stay the caller's. -ENOMEM.
 */
int rf_admission_new(uint32_t max_connections, uint32_t max_per_source, const int *wake_fds,
                     uint32_t workers_count, struct rf_admission **ret_admission);
void rf_admission_free(struct rf_admission *admission);

/* Takes one of the connections; false, and the worker will be woken, when all are taken. */
bool rf_admission_enter(struct rf_admission *admission, uint32_t worker);
void rf_admission_leave(struct rf_admission *admission);

/* The same for who does not wait, and is not woken. */
bool rf_admission_try_enter(struct rf_admission *admission);

/*
 * UDP sessions over all workers. Closing a worker's UDP socket deals the peers
 * of that port anew, so on a drain nobody closes one while there are sessions.
 * ended: wakes all workers after the last one if `draining`.
 */
void rf_admission_begin_session(struct rf_admission *admission);
void rf_admission_end_session(struct rf_admission *admission, bool draining);
bool rf_admission_has_sessions(struct rf_admission *admission);

/* The keyed hash of an address, its port left out. */
uint64_t rf_admission_hash(const struct rf_admission *admission, const union rf_address *address);

/* Takes one of the connections of a source: its slot, or RF_NO_SOURCE at the limit. */
uint32_t rf_admission_enter_source(struct rf_admission *admission, const union rf_address *peer);
void rf_admission_leave_source(struct rf_admission *admission, uint32_t slot);

#endif
