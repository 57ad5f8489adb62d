/*
 * leg.h - the return leg: from the address that the peer dialled back to the
 * peer's own address, at the return port.
 *
 * Its destination is the address that the kernel accepted the connection from,
 * and nothing that the peer sends can change it.
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

/* Counts a leg that was limited, and why, and resets the peer. */
void rf_leg_limited(struct rf_worker *worker, struct rf_conn *conn, enum rf_counter why);

#endif
