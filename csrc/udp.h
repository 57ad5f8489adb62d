/*
 * udp.h - UDP mappings: a session for each peer, datagrams both ways.
 *
 *   peer p ──▶ listener's socket ──▶ session's socket ──▶ the peer's service
 *              of the worker         from the address     p's own address,
 *                                    that p dialled       return port
 *
 * What holds, whatever a peer sends: a datagram goes to the address that the
 * session's first one came from and to nowhere else; each is passed on at most
 * once, so no peer gets more than its own service sent; what a stranger sends
 * to a session's socket is dropped, by the kernel once the socket is connected
 * and here in the instant before.
 *
 * All of it is the worker's own, and none of it is there without a UDP mapping.
 * An event that was told before a session ended may find another one in its
 * place: it is then a look at a socket that has nothing to tell.
 */
#ifndef RF_UDP_H
#define RF_UDP_H

#include "datagram.h"
#include "session_table.h"

struct rf_worker;

struct rf_udp {
    struct rf_sessions sessions;
    struct rf_datagrams *datagrams;
    bool closed; /* the listeners are, on a drain */
};

/* In epoll, with generation 0: a listener by its mapping, a session by its index. */
#define RF_UDP_NUMBER (UINT32_C(1) << 30)
#define RF_SESSION_NUMBER (UINT32_C(1) << 31)

/* Makes worker->udp, for up to capacity sessions, if there are UDP mappings. 0 or -errno. */
int rf_udp_init(struct rf_worker *worker, uint32_t capacity);

/* Ends all sessions. The listeners' sockets are the worker's to close. */
void rf_udp_fini(struct rf_worker *worker);

/* Takes the epoll events of a number from RF_UDP_NUMBER on. */
void rf_udp_event(struct rf_worker *worker, uint32_t number, uint32_t events);

/* Ends the sessions whose time has come. This and the next: only where there is worker->udp. */
void rf_udp_expire(struct rf_worker *worker);

/* Milliseconds until the next one's has, never above limit_ms. */
uint32_t rf_udp_remaining(const struct rf_worker *worker, uint32_t limit_ms);

/*
 * While closing: closes the listeners' sockets once no worker has a session,
 * for closing one deals the peers of the others anew. True when it has.
 */
bool rf_udp_close(struct rf_worker *worker);

#endif
