#include "datagram.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* Above the 65,507 bytes of IPv4 and the 65,527 of IPv6. */
#define DATAGRAM_SIZE 65536U

/* Room for what an IPv6 socket on all addresses tells of a datagram, of either family. */
union control {
    struct cmsghdr header; /* aligns it */
    char bytes[CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(struct in_pktinfo)) +
               CMSG_SPACE(sizeof(int))];
};

struct rf_datagrams {
    struct mmsghdr messages[RF_DATAGRAM_BATCH];
    struct iovec parts[RF_DATAGRAM_BATCH];
    union rf_address senders[RF_DATAGRAM_BATCH];
    union control controls[RF_DATAGRAM_BATCH];
    union control source; /* of those that are sent */
    char data[RF_DATAGRAM_BATCH][DATAGRAM_SIZE];
};

int rf_datagrams_new(struct rf_datagrams **ret_datagrams)
{
    struct rf_datagrams *d = malloc(sizeof(*d));

    if (!d)
        return -ENOMEM;
    memset(d, 0, offsetof(struct rf_datagrams, data));
    for (unsigned i = 0; i < RF_DATAGRAM_BATCH; i++) {
        d->parts[i].iov_base = d->data[i];
        d->messages[i].msg_hdr.msg_iov = &d->parts[i];
        d->messages[i].msg_hdr.msg_iovlen = 1;
    }
    *ret_datagrams = d;
    return 0;
}

void rf_datagrams_free(struct rf_datagrams *datagrams)
{
    free(datagrams);
}

int rf_datagrams_receive(struct rf_datagrams *datagrams, int fd, bool notes)
{
    int n;

    for (unsigned i = 0; i < RF_DATAGRAM_BATCH; i++) {
        struct msghdr *header = &datagrams->messages[i].msg_hdr;

        datagrams->parts[i].iov_len = DATAGRAM_SIZE;
        header->msg_name = &datagrams->senders[i];
        header->msg_namelen = sizeof(datagrams->senders[i]);
        header->msg_control = notes ? &datagrams->controls[i] : NULL;
        header->msg_controllen = notes ? sizeof(datagrams->controls[i]) : 0;
    }
    n = recvmmsg(fd, datagrams->messages, RF_DATAGRAM_BATCH, MSG_DONTWAIT, NULL);
    if (n < 0)
        return -errno;
    for (int i = 0; i < n; i++)
        datagrams->parts[i].iov_len = datagrams->messages[i].msg_len;
    return n;
}

const union rf_address *rf_datagrams_sender(const struct rf_datagrams *datagrams, unsigned i)
{
    return &datagrams->senders[i];
}

unsigned rf_datagrams_hops(struct rf_datagrams *datagrams, unsigned i)
{
    struct msghdr *header = &datagrams->messages[i].msg_hdr;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        bool v4 = c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL;
        bool v6 = c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_HOPLIMIT;
        int hops;

        if (!v4 && !v6)
            continue;
        memcpy(&hops, CMSG_DATA(c), sizeof(hops));
        return (unsigned)hops;
    }
    return 0;
}

static bool read_v4(const struct cmsghdr *control, union rf_address *ret_dialled)
{
    struct in_pktinfo info;

    memcpy(&info, CMSG_DATA(control), sizeof(info));
    *ret_dialled = (union rf_address){.v4 = {.sin_family = AF_INET, .sin_addr = info.ipi_addr}};
    /* The address that the kernel would answer from: another one where this is a broadcast. */
    return info.ipi_addr.s_addr == info.ipi_spec_dst.s_addr;
}

static bool read_v6(const struct cmsghdr *control, union rf_address *ret_dialled)
{
    struct in6_pktinfo info;

    memcpy(&info, CMSG_DATA(control), sizeof(info));
    *ret_dialled =
        (union rf_address){.v6 = {.sin6_family = AF_INET6, .sin6_addr = info.ipi6_addr}};
    if (IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr))
        ret_dialled->v6.sin6_scope_id = info.ipi6_ifindex;
    return !IN6_IS_ADDR_MULTICAST(&info.ipi6_addr);
}

bool rf_datagrams_dialled(struct rf_datagrams *datagrams, unsigned i,
                          union rf_address *ret_dialled)
{
    struct msghdr *header = &datagrams->messages[i].msg_hdr;
    bool v6 = false;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        /* Both are told of an IPv4 datagram on an IPv6 socket; this one says more. */
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO)
            return read_v4(c, ret_dialled);
        if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO)
            v6 = read_v6(c, ret_dialled);
    }
    return v6;
}

/* Writes where datagrams shall leave from; the length of it. */
static size_t write_source(union control *control, const union rf_address *source)
{
    bool v4 = source->any.sa_family == AF_INET;
    struct in_pktinfo info4 = {.ipi_spec_dst = source->v4.sin_addr};
    struct in6_pktinfo info6 = {0};

    if (!v4)
        info6 = (struct in6_pktinfo){.ipi6_addr = source->v6.sin6_addr,
                                     .ipi6_ifindex = source->v6.sin6_scope_id};
    control->header = (struct cmsghdr){
        .cmsg_len = v4 ? CMSG_LEN(sizeof(info4)) : CMSG_LEN(sizeof(info6)),
        .cmsg_level = v4 ? IPPROTO_IP : IPPROTO_IPV6,
        .cmsg_type = v4 ? IP_PKTINFO : IPV6_PKTINFO,
    };
    if (v4)
        memcpy(CMSG_DATA(&control->header), &info4, sizeof(info4));
    else
        memcpy(CMSG_DATA(&control->header), &info6, sizeof(info6));
    return v4 ? CMSG_SPACE(sizeof(info4)) : CMSG_SPACE(sizeof(info6));
}

static void address_all(struct rf_datagrams *d, unsigned first, unsigned count,
                        const union rf_address *peer, const union rf_address *source)
{
    size_t source_length = source ? write_source(&d->source, source) : 0;
    union rf_address *to = &d->senders[first]; /* one of the batch, and already used */

    if (peer)
        *to = *peer;
    for (unsigned i = first; i < first + count; i++) {
        struct msghdr *header = &d->messages[i].msg_hdr;

        header->msg_name = peer ? to : NULL;
        header->msg_namelen = peer ? rf_address_length(peer) : 0;
        header->msg_control = source ? &d->source : NULL;
        header->msg_controllen = source_length;
    }
}

struct rf_sent rf_datagrams_send(struct rf_datagrams *datagrams, unsigned first, unsigned count,
                                 int fd, const union rf_address *peer,
                                 const union rf_address *source)
{
    struct rf_sent sent = {0};
    unsigned i = first, tried = 0; /* tried: how often the datagram at i was refused */

    address_all(datagrams, first, count, peer, source);
    while (i < first + count) {
        int n = sendmmsg(fd, &datagrams->messages[i], first + count - i, MSG_DONTWAIT);

        if (n < 0) {
            sent.error = sent.error ? sent.error : errno;
            /* It may be what ICMP said of an earlier datagram: told once, in place of sending. */
            if (tried++ == 0 && errno != EMSGSIZE && errno != EAGAIN)
                continue;
            if (errno != EMSGSIZE) /* which is of that datagram; what else there is, of all */
                break;
            n = 1;
        } else {
            sent.datagrams += (uint32_t)n;
            for (int k = 0; k < n; k++)
                sent.bytes += datagrams->parts[i + (unsigned)k].iov_len;
        }
        i += (unsigned)n;
        tried = 0;
    }
    return sent;
}
