/*
 * listener.h - listening sockets, one a worker and mapping, sharing the port by
 * SO_REUSEPORT.
 *
 * What an accepted socket inherits is set here once, instead of at every
 * accept: TCP_NODELAY, SO_OOBINLINE and keepalive.
 */
#ifndef RF_LISTENER_H
#define RF_LISTENER_H

#include "address.h"
#include "reflector.h"

/* A dead peer is noticed within two minutes, well before the idle timeout. */
#define RF_KEEPALIVE_IDLE_S 60
#define RF_KEEPALIVE_INTERVAL_S 10
#define RF_KEEPALIVE_PROBES 6

/* Keepalive towards one side; on a listener: for all that it accepts. */
void rf_listener_keepalive(int fd);

/*
 * Opens count listeners on one address and port. With port 0 the kernel picks
 * it for the first and *address tells it afterwards. The first binds alone, so
 * that a port which another process shares by SO_REUSEPORT counts as taken.
 * On failure none stays open and *ret_syscall names the call.
 */
int rf_listener_open(union rf_address *address, int *ret_fds, uint32_t count,
                     const char **ret_syscall);

#endif
