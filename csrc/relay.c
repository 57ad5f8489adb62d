/*
 * relay.c - one function for either direction.
 *
 * A round passes on what the half holds, then reads once. Reading stops while
 * the sink is full, so a half never holds more than one buffer or one pipe:
 * that is the back-pressure.
 *
 * A stream starts out copied: below a few kB a splice costs more than a recv
 * and a send. Two reads in a row that fill the buffer promote it to splice; a
 * run of small ones demotes it.
 *
 * There are three reasons for what looks like the end or the lack of input:
 *   - recv gives 0: the end, and nothing else says so. splice gives 0 also when
 *     an urgent byte stands at the head of the queue, so it is never believed.
 *   - splice gives EAGAIN: the socket is empty, since we splice in only when
 *     the pipe is empty; or an urgent byte stands at the head. Its EPOLLPRI
 *     brings the half back to copying.
 *   - recv gives less than was asked for: the queue is empty (edge-triggered
 *     epoll tells of the next byte), unless it stopped at an urgent byte.
 */
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "sys.h"
#include "worker.h"

/*
 * What one half may do in one turn before the others get theirs: so many
 * rounds, and no more once this much has gone through, some 0.2 ms of splicing.
 */
#define ROUNDS 4
#define TURN_BYTES (1024U * 1024U)

#define PROMOTE_FULL_READS 2
#define DEMOTE_SMALL_READS 8
#define SMALL_READ 4096

/* One direction, with its parts named: what the functions below work on. */
struct relay {
    struct rf_worker *worker;
    struct rf_conn *conn;
    struct rf_half *half;
    int source;
    int sink;
    enum rf_side side;
    size_t passed; /* bytes, in this turn */
};

enum step {
    STEP_ON,    /* go on with this round */
    STEP_WAIT,  /* the source is empty or the sink full */
    STEP_LATER, /* memory is short: try again in a later turn */
    STEP_COPY,  /* this cannot be spliced */
    STEP_SINK_LOST,
};

static void count_passed(struct relay *r, size_t n, enum rf_counter how)
{
    r->conn->flags |= RF_CONN_MOVED;
    r->passed += n;
    rf_count(r->worker, how, n);
    rf_count(r->worker, r->side == RF_PEER ? RF_BYTES_TO_SERVICE : RF_BYTES_TO_PEER, n);
}

/*
 * The client inherits TCP_NODELAY from the listener. The return leg cannot, and
 * needs it only from its second write on: Nagle holds nothing back while all
 * is acknowledged. A check that is one line long saves the call.
 */
static void set_nodelay(struct relay *r)
{
    static const int on = 1;

    if (r->side == RF_PEER && (r->half->flags & RF_HALF_WRITTEN) &&
        !(r->half->flags & RF_HALF_NODELAY)) {
        setsockopt(r->sink, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        r->half->flags |= RF_HALF_NODELAY;
    }
    r->half->flags |= RF_HALF_WRITTEN;
}

/* The sink takes no more now; EPOLLOUT tells when it does. */
static enum step sink_full(struct relay *r)
{
    r->half->flags &= (uint16_t)~RF_HALF_WRITABLE;
    if (r->half->flags & RF_HALF_WATCHED)
        return STEP_WAIT;
    r->half->flags |= RF_HALF_WATCHED;
    if (rf_sys_watch_writable(r->worker->epoll_fd, r->sink,
                              rf_conn_token(r->conn, rf_other(r->side))) < 0)
        return STEP_SINK_LOST; /* not seen: changing a registration takes no memory */
    return STEP_WAIT;
}

static enum step write_failed(struct relay *r)
{
    return errno == EAGAIN ? sink_full(r) : STEP_SINK_LOST;
}

/* The source has failed: there is no more to read. */
static void read_failed(struct relay *r)
{
    r->conn->flags |= (uint8_t)RF_CONN_LOST(r->side);
    r->half->flags |= RF_HALF_EOF;
}

static enum step flush_buffer(struct relay *r)
{
    struct rf_buffer *buffer = r->half->buffer;
    uint32_t length = buffer->end - buffer->start;
    ssize_t n;

    set_nodelay(r);
    n = send(r->sink, buffer->data + buffer->start, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0)
        return write_failed(r);
    count_passed(r, (size_t)n, RF_BYTES_COPIED);
    if ((uint32_t)n < length) {
        buffer->start += (uint32_t)n;
        return sink_full(r);
    }
    rf_buffer_put(&r->worker->buffers, buffer);
    r->half->buffer = NULL;
    return STEP_ON;
}

static enum step flush_pipe(struct relay *r)
{
    struct rf_pipe *pipe = r->half->pipe;

    set_nodelay(r);
    /* No SPLICE_F_MORE: it holds the tail of a stream back for 200 ms. */
    while (pipe->bytes) {
        ssize_t n = splice(pipe->read_fd, NULL, r->sink, NULL, pipe->bytes,
                           SPLICE_F_NONBLOCK | SPLICE_F_MOVE);

        if (n < 0)
            return write_failed(r);
        if (n == 0)
            return STEP_SINK_LOST; /* not seen: a pipe with bytes always gives some */
        pipe->bytes -= (uint32_t)n;
        count_passed(r, (size_t)n, RF_BYTES_SPLICED);
    }
    rf_pipe_put(&r->worker->pipes, pipe);
    r->half->pipe = NULL;
    r->half->flags &= (uint16_t)~RF_HALF_PIPED;
    return STEP_ON;
}

static enum step flush(struct relay *r)
{
    if (!(r->half->flags & RF_HALF_WRITABLE))
        return STEP_WAIT;
    return r->half->flags & RF_HALF_PIPED ? flush_pipe(r) : flush_buffer(r);
}

/* One splice into a pipe of our own. */
static enum step fill_pipe(struct relay *r)
{
    struct rf_half *half = r->half;
    struct rf_pipe *pipe = rf_pipe_get(&r->worker->pipes, r->worker->now_ms);
    ssize_t n;

    if (!pipe)
        return STEP_COPY;
    n = splice(r->source, NULL, pipe->write_fd, NULL, pipe->capacity,
               SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    if (n > 0) {
        pipe->bytes = (uint32_t)n;
        half->pipe = pipe;
        half->flags |= RF_HALF_PIPED;
        half->small_reads = n < SMALL_READ ? (uint8_t)(half->small_reads + 1) : 0;
        if (half->small_reads >= DEMOTE_SMALL_READS)
            half->flags &= (uint16_t)~RF_HALF_SPLICE;
        return STEP_ON;
    }
    rf_pipe_put(&r->worker->pipes, pipe);
    if (n < 0 && errno == EAGAIN && !(half->flags & RF_HALF_FIN_SEEN)) {
        half->flags &= (uint16_t)~RF_HALF_READABLE;
        return STEP_WAIT;
    }
    if (n < 0 && errno != EAGAIN && errno != EINVAL && errno != ENOMEM) {
        read_failed(r); /* the socket has told its error and will not tell recv */
        return STEP_ON;
    }
    /* The end, or an urgent byte in the way: recv knows which. */
    half->flags &= (uint16_t)~RF_HALF_SPLICE;
    half->full_reads = 0;
    return STEP_COPY;
}

/* Passes on what lies in the scratch buffer; what the sink leaves stays with the half. */
static enum step send_scratch(struct relay *r, uint32_t length)
{
    struct rf_worker *worker = r->worker;
    ssize_t n;

    set_nodelay(r);
    n = send(r->sink, worker->scratch->data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
        if (errno != EAGAIN)
            return STEP_SINK_LOST;
        n = 0;
    }
    count_passed(r, (size_t)n, RF_BYTES_COPIED);
    if ((uint32_t)n == length)
        return STEP_ON;
    r->half->buffer = worker->scratch;
    r->half->buffer->start = (uint32_t)n;
    r->half->buffer->end = length;
    worker->scratch = rf_buffer_get(&worker->buffers);
    return sink_full(r);
}

static void promote(struct rf_half *half, uint32_t length)
{
    if (length < RF_BUFFER_SIZE) {
        half->full_reads = 0;
        return;
    }
    if (++half->full_reads < PROMOTE_FULL_READS || (half->flags & RF_HALF_COPY))
        return;
    half->flags |= RF_HALF_SPLICE;
    half->full_reads = half->small_reads = 0;
}

static enum step copy(struct relay *r)
{
    struct rf_half *half = r->half;
    ssize_t n;

    if (!r->worker->scratch)
        r->worker->scratch = rf_buffer_get(&r->worker->buffers);
    if (!r->worker->scratch)
        return STEP_LATER;
    n = recv(r->source, r->worker->scratch->data, RF_BUFFER_SIZE, MSG_DONTWAIT);
    if (n < 0) {
        if (errno != EAGAIN) {
            read_failed(r);
            return STEP_ON;
        }
        half->flags &= (uint16_t) ~(RF_HALF_READABLE | RF_HALF_URGENT);
        return STEP_WAIT;
    }
    if (n == 0) {
        half->flags |= RF_HALF_EOF;
        return STEP_ON;
    }
    if ((uint32_t)n < RF_BUFFER_SIZE && !(half->flags & RF_HALF_COPY)) {
        half->flags &= (uint16_t)~RF_HALF_READABLE;
        /* Nothing can follow a FIN that had arrived before this read emptied the queue. */
        if (half->flags & RF_HALF_FIN_SEEN)
            half->flags |= RF_HALF_EOF;
    }
    if (r->side == RF_SERVICE)
        r->conn->leg_bytes += (uint32_t)n;
    promote(half, (uint32_t)n);
    return send_scratch(r, (uint32_t)n);
}

/*
 * Carries an urgent byte as one, at its place in the stream (tcp(7), RFC 6093):
 * reading stops in front of it by itself, so at the mark all before it is
 * passed on. Both sockets have SO_OOBINLINE, so one that comes unannounced, or
 * is overtaken by the next, is still read, as an ordinary byte. STEP_WAIT: the
 * sink must take it before anything behind it.
 */
static enum step carry_urgent(struct relay *r)
{
    int at_mark = 0;
    ssize_t n;
    char byte;

    if (ioctl(r->source, SIOCATMARK, &at_mark) < 0 || !at_mark)
        return STEP_ON;
    n = recv(r->source, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN)
        read_failed(r);
    if (n != 1)
        return STEP_ON; /* the byte is still under way */
    set_nodelay(r);
    if (send(r->sink, &byte, 1, MSG_OOB | MSG_NOSIGNAL | MSG_DONTWAIT) != 1)
        return write_failed(r);
    (void)!recv(r->source, &byte, 1, MSG_DONTWAIT);
    r->half->flags &= (uint16_t)~RF_HALF_URGENT;
    rf_count(r->worker, RF_URGENT_BYTES, 1);
    count_passed(r, 1, RF_BYTES_COPIED);
    return STEP_ON;
}

static enum step read_once(struct relay *r)
{
    enum step step;

    /* A full sink would only make us hold the bytes. */
    if (!(r->half->flags & RF_HALF_WRITABLE) || !(r->half->flags & RF_HALF_READABLE))
        return STEP_WAIT;
    if (r->half->flags & RF_HALF_URGENT) {
        step = carry_urgent(r);
        if (step != STEP_ON || (r->half->flags & RF_HALF_EOF))
            return step;
    }
    if ((r->half->flags & (RF_HALF_SPLICE | RF_HALF_COPY)) == RF_HALF_SPLICE) {
        step = fill_pipe(r);
        if (step != STEP_COPY)
            return step;
    }
    return copy(r);
}

/* All is passed on: what remains is the FIN. The reset of a lost source is conn.c's. */
static enum rf_relay_result pass_end(struct relay *r)
{
    const struct rf_half *other = &r->conn->halves[rf_other(r->side)];

    r->half->flags |= RF_HALF_ENDED;
    if (r->conn->flags & RF_CONN_LOST(r->side))
        return RF_RELAY_WAIT;
    /*
     * When this was the last half, closing says the same as shutdown would;
     * unless a forked child may hold the socket too, in a shared table.
     */
    if ((other->flags & RF_HALF_ENDED) && r->worker->own_table)
        return RF_RELAY_WAIT;
    return shutdown(r->sink, SHUT_WR) < 0 ? RF_RELAY_SINK_LOST : RF_RELAY_WAIT;
}

enum rf_relay_result rf_relay_run(struct rf_worker *worker, struct rf_conn *conn,
                                  enum rf_side side)
{
    struct relay r = {
        .worker = worker,
        .conn = conn,
        .half = &conn->halves[side],
        .source = conn->fd[side],
        .sink = conn->fd[rf_other(side)],
        .side = side,
    };

    for (int round = 0; round < ROUNDS && r.passed < TURN_BYTES; round++) {
        enum step step = STEP_ON;

        if (r.half->buffer)
            step = flush(&r);
        if (step == STEP_ON && (r.half->flags & RF_HALF_EOF))
            return pass_end(&r);
        if (step == STEP_ON)
            step = read_once(&r);
        if (step == STEP_WAIT)
            return RF_RELAY_WAIT;
        if (step == STEP_LATER)
            return RF_RELAY_AGAIN;
        if (step == STEP_SINK_LOST)
            return RF_RELAY_SINK_LOST;
    }
    return RF_RELAY_AGAIN;
}

void rf_relay_drop(struct rf_worker *worker, struct rf_half *half)
{
    if (half->flags & RF_HALF_PIPED)
        rf_pipe_kill(&worker->pipes, half->pipe);
    else if (half->buffer)
        rf_buffer_put(&worker->buffers, half->buffer);
    half->buffer = NULL;
    half->flags &= (uint16_t)~RF_HALF_PIPED;
}
