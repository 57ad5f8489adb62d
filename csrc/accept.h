/*
 * accept.h - takes connections from the listeners and sends them on their way.
 *
 * Listeners are level-triggered and in epoll only while a connection could be
 * taken: whoever must wait, waits in the backlog, and nothing spins.
 */
#ifndef RF_ACCEPT_H
#define RF_ACCEPT_H

#include "worker.h"

/* Puts the listeners into epoll, or takes them out; no-op if it is so already. */
void rf_accept_resume(struct rf_worker *worker);
void rf_accept_suspend(struct rf_worker *worker);

/* Accepts a bounded number of connections on the listener of a target. */
void rf_accept_some(struct rf_worker *worker, uint32_t target);

/* Serves what the kernel had already put into the backlogs, then closes the listeners. */
void rf_accept_close(struct rf_worker *worker);

#endif
