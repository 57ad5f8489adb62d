/*
 * session_table.h - the UDP sessions of a worker: found by peer, by index, or by who
 * has been idle longest.
 *
 * A session stands for what a connection is in TCP: one peer (address and
 * port), the local address that it dialled, and the mapping. The table owns the
 * memory and the links; session.c owns what is in a session: its socket and its
 * places in the admission limits.
 *
 * Sessions lie in chunks that never move, as connections do (slab.h). Buckets
 * are as many as sessions may be, so a chain is short whoever the peers are;
 * the hash is keyed (admission.h), so no peer can aim at the chain of another.
 * Idle sessions stand in one FIFO as in timer.h: one timeout, so in order of
 * expiry by themselves, moved at most once in 1/64 of it, never early.
 *
 * Invariant: a session is in a chain and in the FIFO, or it is free, fd -1.
 */
#ifndef RF_SESSION_TABLE_H
#define RF_SESSION_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "address.h"
#include "timer.h"

#define RF_SESSION_CHUNK 128U

struct rf_session {
    int fd; /* connected to the peer's service; -1: free */
    uint32_t index;
    uint32_t hash;
    uint32_t chain_next; /* in its bucket, or in the free list */
    uint32_t source;     /* slot in the admission table */
    uint32_t target;     /* its mapping */
    bool answered;       /* the service has sent a datagram */
    struct rf_timer idle;
    union rf_address peer;    /* as the listener's socket gives and takes it */
    union rf_address dialled; /* what the peer sent to: the source of what it gets */
};

/* What tells sessions apart. */
struct rf_session_key {
    uint32_t hash;
    uint32_t target;
    const union rf_address *peer;
    const union rf_address *dialled;
};

struct rf_sessions {
    struct rf_session **chunks;
    uint32_t chunks_count;
    uint32_t capacity;
    uint32_t used;
    uint32_t free_head;
    uint32_t *buckets; /* index + 1 of the first of a chain; 0: none */
    uint32_t buckets_mask;
    uint32_t idle_head, idle_tail;
    uint32_t idle_timeout_ms;
};

/* 0 or -ENOMEM. */
int rf_sessions_init(struct rf_sessions *sessions, uint32_t capacity, uint32_t idle_timeout_ms);
void rf_sessions_fini(struct rf_sessions *sessions);

/* NULL when there is none. */
struct rf_session *rf_sessions_find(struct rf_sessions *sessions,
                                    const struct rf_session_key *key);

/* One for the key, its idle timer armed, without a socket; NULL at capacity, short of memory. */
struct rf_session *rf_sessions_get(struct rf_sessions *sessions, const struct rf_session_key *key,
                                   uint32_t now_ms);
void rf_sessions_put(struct rf_sessions *sessions, struct rf_session *session);

/* A datagram has passed. */
void rf_sessions_touch(struct rf_sessions *sessions, struct rf_session *session, uint32_t now_ms);

/* A session that has been idle for the timeout, or NULL. */
struct rf_session *rf_sessions_expired(const struct rf_sessions *sessions, uint32_t now_ms);

/* Milliseconds until one will have been, never above limit_ms. */
uint32_t rf_sessions_remaining(const struct rf_sessions *sessions, uint32_t now_ms,
                               uint32_t limit_ms);

static inline struct rf_session *rf_sessions_at(const struct rf_sessions *sessions,
                                                uint32_t index)
{
    return &sessions->chunks[index / RF_SESSION_CHUNK][index % RF_SESSION_CHUNK];
}

/* One past the highest index ever handed out. */
static inline uint32_t rf_sessions_end(const struct rf_sessions *sessions)
{
    return sessions->chunks_count * RF_SESSION_CHUNK;
}

#endif
