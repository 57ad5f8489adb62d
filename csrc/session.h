/*
 * session.h - the life of a UDP session: opened by a peer's first datagram,
 * ended by a refusal, by being idle, or by a stop.
 *
 *   first datagram ──▶ OPEN ──▶ first datagram of the service ──▶ ANSWERED
 *                       │                                            │
 *                       └──▶ idle, refused, unreachable, stopped ◀───┘
 *
 * A session owns its socket, which is bound to the address that the peer
 * dialled, connected to the peer's service and registered with epoll,
 * level-triggered; and its places in the admission limits. rf_session_end gives
 * back all of it; nothing else does. The table has the memory (session_table.h).
 *
 * Each session gets one LEGS_* counter and one CLOSED_*, as a connection does.
 */
#ifndef RF_SESSION_H
#define RF_SESSION_H

#include "reflector.h"
#include "session_table.h"

struct rf_worker;

/*
 * A session for a new peer, or NULL: limited or its leg failed, and counted.
 * peer: the key's as plain IPv4 or IPv6; its port is changed. hops: what its
 * datagram had left; what it is passed on with is less, so that reflectors that
 * lead to each other cannot pass one on for ever.
 */
struct rf_session *rf_session_open(struct rf_worker *worker, const struct rf_session_key *key,
                                   union rf_address *peer, unsigned hops);

/* The one destructor; the leg has been counted. */
void rf_session_end(struct rf_worker *worker, struct rf_session *session,
                    enum rf_counter reason);

/*
 * The error that a session's socket has to tell: a refusal if there was one,
 * else another that is not about the size of one datagram, else 0. Reads the
 * error queue too, for a sendmmsg that got some datagrams away forgets the
 * error after them.
 */
int rf_session_take_error(int fd);

/*
 * Draws the consequence of an error. Before the service has answered, the leg
 * has failed. Afterwards only a refusal ends the session: any other may pass,
 * and a stream must not change its port over one lost fragment. True if it has
 * ended.
 */
bool rf_session_note_error(struct rf_worker *worker, struct rf_session *session, int error);

#endif
