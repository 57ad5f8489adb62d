/*
 * relay.h - moves the bytes of one half.
 */
#ifndef RF_RELAY_H
#define RF_RELAY_H

#include "conn.h"

enum rf_relay_result {
    RF_RELAY_WAIT,      /* nothing more until the next event; or ever, if RF_HALF_ENDED */
    RF_RELAY_AGAIN,     /* its rounds are used up: others first, then again */
    RF_RELAY_SINK_LOST, /* the sink takes no more, ever */
};

/* Relays from fd[side] to the other side for a bounded number of rounds. */
enum rf_relay_result rf_relay_run(struct rf_worker *worker, struct rf_conn *conn,
                                  enum rf_side side);

/* Throws away what the half holds. */
void rf_relay_drop(struct rf_worker *worker, struct rf_half *half);

#endif
