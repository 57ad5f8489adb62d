/*
 * listener.h - listening sockets, one a worker and mapping, sharing the port by
 * SO_REUSEPORT.
 *
 * What an accepted socket inherits is set here once, instead of at every
 * accept: TCP_NODELAY and SO_OOBINLINE.
 */
#ifndef RF_LISTENER_H
#define RF_LISTENER_H

#include "address.h"
#include "reflector.h"

/*
 * Opens count listeners on one address and port. With port 0 the kernel picks
 * it for the first and *address tells it afterwards. The first binds alone, so
 * that a port which another process shares by SO_REUSEPORT counts as taken;
 * with `share`, unless it is another reflector's of the same user that shares
 * too (share.h).
 * On failure none stays open and *ret_syscall names the call.
 */
int rf_listener_open(union rf_address *address, bool share, int *ret_fds, uint32_t count,
                     const char **ret_syscall);

#endif
