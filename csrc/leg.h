/*
 * leg.h - the return leg: from the address that the peer dialled back to the
 * peer's own address, at the return port.
 *
 * Its destination is the address that the kernel accepted the connection from,
 * and nothing that the peer sends can change it.
 *
 * Spare legs: a check that ended cleanly leaves a socket that can connect
 * again. It stays with its slot, bound and registered, and saves the next
 * connection five calls: socket, two setsockopt, bind and epoll_ctl
 * (docs/ARCHITECTURE.md).
 */
#ifndef RF_LEG_H
#define RF_LEG_H

#include "address.h"
#include "conn.h"

/*
 * Begins to connect. A leg that cannot be tried ends the connection, counted.
 * source: where it leaves from, its port not looked at.
 */
void rf_leg_connect(struct rf_worker *worker, struct rf_conn *conn, const union rf_address *source,
                    const union rf_address *destination);

/* Takes the epoll events of a leg that is connecting. */
void rf_leg_event(struct rf_worker *worker, struct rf_conn *conn, uint32_t events);

/*
 * True when the TCP connection of the leg is over and all that it brought has
 * been read: what a recv that gives 0 says, and that our FIN is acknowledged.
 * False may also mean: not known, go and read.
 */
bool rf_leg_over(const struct rf_conn *conn);

/*
 * Makes a spare of a leg that is over, if it can be one: its socket then
 * outlives the connection, which is about to close.
 */
bool rf_leg_keep_spare(struct rf_worker *worker, struct rf_conn *conn);
void rf_leg_drop_spare(struct rf_worker *worker, struct rf_conn *conn);

/* Counts a leg that was limited, and why, and resets the peer. */
void rf_leg_limited(struct rf_worker *worker, struct rf_conn *conn, enum rf_counter why);

#endif
