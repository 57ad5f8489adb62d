#include "session_table.h"

#include <errno.h>
#include <stdlib.h>

static uint32_t slack_ms(const struct rf_sessions *sessions)
{
    return sessions->idle_timeout_ms / 64;
}

int rf_sessions_init(struct rf_sessions *sessions, uint32_t capacity, uint32_t idle_timeout_ms)
{
    uint32_t buckets = RF_SESSION_CHUNK;

    while (buckets < capacity)
        buckets *= 2;
    *sessions = (struct rf_sessions){
        .capacity = capacity,
        .free_head = RF_NO_INDEX,
        .buckets_mask = buckets - 1,
        .idle_head = RF_NO_INDEX,
        .idle_tail = RF_NO_INDEX,
        .idle_timeout_ms = idle_timeout_ms,
    };
    sessions->chunks = calloc((capacity + RF_SESSION_CHUNK - 1) / RF_SESSION_CHUNK,
                              sizeof(struct rf_session *));
    /* calloc: pages of buckets that are never used are never touched. */
    sessions->buckets = calloc(buckets, sizeof(*sessions->buckets));
    if (!sessions->chunks || !sessions->buckets) {
        rf_sessions_fini(sessions);
        return -ENOMEM;
    }
    return 0;
}

void rf_sessions_fini(struct rf_sessions *sessions)
{
    for (uint32_t i = 0; i < sessions->chunks_count; i++)
        free(sessions->chunks[i]);
    free(sessions->chunks);
    free(sessions->buckets);
    *sessions = (struct rf_sessions){.free_head = RF_NO_INDEX};
}

static bool matches(const struct rf_session *session, const struct rf_session_key *key)
{
    return session->hash == key->hash && session->target == key->target &&
           rf_address_port(&session->peer) == rf_address_port(key->peer) &&
           rf_address_same_host(&session->peer, key->peer) &&
           rf_address_same_host(&session->dialled, key->dialled);
}

struct rf_session *rf_sessions_find(struct rf_sessions *sessions,
                                    const struct rf_session_key *key)
{
    uint32_t next = sessions->buckets[key->hash & sessions->buckets_mask];

    while (next != 0) {
        struct rf_session *session = rf_sessions_at(sessions, next - 1);

        if (matches(session, key))
            return session;
        next = session->chain_next;
    }
    return NULL;
}

static bool grow(struct rf_sessions *sessions)
{
    uint32_t first = sessions->chunks_count * RF_SESSION_CHUNK;
    struct rf_session *chunk;

    if (first >= sessions->capacity)
        return false;
    chunk = calloc(RF_SESSION_CHUNK, sizeof(*chunk));
    if (!chunk)
        return false;
    sessions->chunks[sessions->chunks_count++] = chunk;
    for (uint32_t i = RF_SESSION_CHUNK; i-- > 0;) {
        chunk[i].fd = -1;
        chunk[i].index = first + i;
        chunk[i].chain_next = sessions->free_head;
        sessions->free_head = chunk[i].index;
    }
    return true;
}

static void append_idle(struct rf_sessions *sessions, struct rf_session *session, uint32_t now_ms)
{
    /* One more: now_ms is rounded down, and early is wrong. */
    session->idle = (struct rf_timer){
        .previous = sessions->idle_tail,
        .next = RF_NO_INDEX,
        .deadline_ms = now_ms + sessions->idle_timeout_ms + slack_ms(sessions) + 1,
    };
    if (sessions->idle_tail == RF_NO_INDEX)
        sessions->idle_head = session->index;
    else
        rf_sessions_at(sessions, sessions->idle_tail)->idle.next = session->index;
    sessions->idle_tail = session->index;
}

static void unlink_idle(struct rf_sessions *sessions, const struct rf_session *session)
{
    const struct rf_timer *idle = &session->idle;

    if (idle->previous == RF_NO_INDEX)
        sessions->idle_head = idle->next;
    else
        rf_sessions_at(sessions, idle->previous)->idle.next = idle->next;
    if (idle->next == RF_NO_INDEX)
        sessions->idle_tail = idle->previous;
    else
        rf_sessions_at(sessions, idle->next)->idle.previous = idle->previous;
}

struct rf_session *rf_sessions_get(struct rf_sessions *sessions, const struct rf_session_key *key,
                                   uint32_t now_ms)
{
    uint32_t *bucket = &sessions->buckets[key->hash & sessions->buckets_mask];
    struct rf_session *session;

    if (sessions->used >= sessions->capacity)
        return NULL;
    if (sessions->free_head == RF_NO_INDEX && !grow(sessions))
        return NULL;
    session = rf_sessions_at(sessions, sessions->free_head);
    sessions->free_head = session->chain_next;
    sessions->used++;
    *session = (struct rf_session){
        .fd = -1,
        .index = session->index,
        .hash = key->hash,
        .chain_next = *bucket,
        .target = key->target,
        .peer = *key->peer,
        .dialled = *key->dialled,
    };
    *bucket = session->index + 1;
    append_idle(sessions, session, now_ms);
    return session;
}

void rf_sessions_put(struct rf_sessions *sessions, struct rf_session *session)
{
    uint32_t *link = &sessions->buckets[session->hash & sessions->buckets_mask];

    while (*link != session->index + 1)
        link = &rf_sessions_at(sessions, *link - 1)->chain_next;
    *link = session->chain_next;
    unlink_idle(sessions, session);
    session->fd = -1;
    session->chain_next = sessions->free_head;
    sessions->free_head = session->index;
    sessions->used--;
}

void rf_sessions_touch(struct rf_sessions *sessions, struct rf_session *session, uint32_t now_ms)
{
    int32_t remaining = (int32_t)(session->idle.deadline_ms - now_ms);

    if (remaining > (int32_t)sessions->idle_timeout_ms)
        return;
    unlink_idle(sessions, session);
    append_idle(sessions, session, now_ms);
}

struct rf_session *rf_sessions_expired(const struct rf_sessions *sessions, uint32_t now_ms)
{
    if (sessions->idle_head == RF_NO_INDEX ||
        rf_sessions_remaining(sessions, now_ms, UINT32_MAX) > 0)
        return NULL;
    return rf_sessions_at(sessions, sessions->idle_head);
}

uint32_t rf_sessions_remaining(const struct rf_sessions *sessions, uint32_t now_ms,
                               uint32_t limit_ms)
{
    int32_t remaining;

    if (sessions->idle_head == RF_NO_INDEX)
        return limit_ms;
    remaining = (int32_t)(rf_sessions_at(sessions, sessions->idle_head)->idle.deadline_ms - now_ms);
    if (remaining <= 0)
        return 0;
    return (uint32_t)remaining < limit_ms ? (uint32_t)remaining : limit_ms;
}
