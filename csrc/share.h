/*
 * share.h - a port that one reflector takes over from another.
 *
 * SO_REUSEPORT alone would let a new reflector join any listener of the same
 * user that has the option set, and every reflector sets it, for its workers.
 * So those that are meant to share carry a mark, which the kernel tells of every
 * listener (sock_diag(7)): IP_BIND_ADDRESS_NO_PORT, which has no meaning for a
 * socket that is bound already (ip(7)).
 *
 * Nothing is owned here, and nothing is kept.
 */
#ifndef RF_SHARE_H
#define RF_SHARE_H

#include <stdbool.h>

#include "address.h"

/* Marks a bound socket. Where the kernel does not know the mark, no other will join it. */
void rf_share_mark(int fd);

/*
 * Whether every listener that takes connections to the address and port carries
 * the mark; true for none. False where the kernel does not tell.
 */
bool rf_share_allowed(const union rf_address *address);

#endif
