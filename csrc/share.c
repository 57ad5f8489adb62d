#include "share.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

/* What the headers of manylinux2014 do not have: of ip(7), and of linux/inet_diag.h. */
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24 /* Linux 4.2 */
#endif
#define ATTRIBUTE_V6ONLY 11
#define ATTRIBUTE_OPTIONS 22 /* Linux 5.10 */

/* struct inet_diag_sockopt; bit fields, as there, for the byte order. */
struct options {
    uint8_t first;
    uint8_t bind_address_no_port : 1, others : 7;
};

struct diag_request {
    struct nlmsghdr header;
    struct inet_diag_req_v2 body;
};

/* What the kernel says of one listener. */
struct listener {
    union rf_address address;
    bool v6only;
    bool marked;
};

void rf_share_mark(int fd)
{
    static const int one = 1;

    (void)setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
}

static void read_listener(struct nlmsghdr *header, struct listener *ret_listener)
{
    const struct inet_diag_msg *message = NLMSG_DATA(header);
    struct rtattr *attribute =
        (struct rtattr *)((char *)NLMSG_DATA(header) + NLMSG_ALIGN(sizeof(*message)));
    ssize_t left = (ssize_t)header->nlmsg_len - (ssize_t)NLMSG_LENGTH(sizeof(*message));
    struct listener found = {.v6only = false};

    found.address.any.sa_family = message->idiag_family;
    if (message->idiag_family == AF_INET) {
        memcpy(&found.address.v4.sin_addr, message->id.idiag_src, sizeof(struct in_addr));
    } else {
        memcpy(&found.address.v6.sin6_addr, message->id.idiag_src, sizeof(struct in6_addr));
        found.address.v6.sin6_scope_id = message->id.idiag_if;
    }
    for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
        if (attribute->rta_type == ATTRIBUTE_V6ONLY && RTA_PAYLOAD(attribute) >= 1)
            found.v6only = *(const uint8_t *)RTA_DATA(attribute) != 0;
        if (attribute->rta_type == ATTRIBUTE_OPTIONS &&
            RTA_PAYLOAD(attribute) >= sizeof(struct options))
            found.marked = ((const struct options *)RTA_DATA(attribute))->bind_address_no_port;
    }
    *ret_listener = found;
}

/* Whether some connection could go to either. A wildcard of ours takes IPv4 too. */
static bool overlap(const union rf_address *ours, const struct listener *other)
{
    if (ours->any.sa_family == other->address.any.sa_family)
        return rf_address_is_wildcard(ours) || rf_address_is_wildcard(&other->address) ||
               rf_address_same_host(ours, &other->address);
    if (ours->any.sa_family == AF_INET6)
        return rf_address_is_wildcard(ours);
    return rf_address_is_wildcard(&other->address) && !other->v6only;
}

/* Reads one part of the answer: 1 when more is to come, 0 at the end, -1 for "no". */
static int read_part(struct nlmsghdr *header, ssize_t length, const union rf_address *ours)
{
    for (; NLMSG_OK(header, length); header = NLMSG_NEXT(header, length)) {
        struct listener other;

        if (header->nlmsg_type == NLMSG_DONE)
            return 0;
        if (header->nlmsg_type != SOCK_DIAG_BY_FAMILY ||
            header->nlmsg_len < NLMSG_LENGTH(sizeof(struct inet_diag_msg)))
            return -1;
        read_listener(header, &other);
        if (overlap(ours, &other) && !other.marked)
            return -1;
    }
    return 1;
}

static bool ask(int fd, uint8_t family, const union rf_address *ours)
{
    struct diag_request request = {
        .header = {.nlmsg_len = sizeof(request),
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .body = {.sdiag_family = family,
                 .sdiag_protocol = IPPROTO_TCP,
                 .idiag_states = 1U << TCP_LISTEN,
                 .id = {.idiag_sport = htons(rf_address_port(ours))}},
    };
    union {
        struct nlmsghdr header;
        char bytes[16384]; /* more than a part ever has: the kernel fills 8 kB at first */
    } part;
    int r = 1;

    if (send(fd, &request, sizeof(request), 0) < 0)
        return false;
    while (r > 0) {
        ssize_t n = recv(fd, &part, sizeof(part), 0);

        if (n <= 0)
            return false;
        r = read_part(&part.header, n, ours);
    }
    return r == 0;
}

bool rf_share_allowed(const union rf_address *address)
{
    static const uint8_t families[] = {AF_INET, AF_INET6};
    bool allowed = true;

    for (unsigned i = 0; i < sizeof(families) && allowed; i++) {
        int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

        allowed = fd >= 0 && ask(fd, families[i], address);
        if (fd >= 0)
            close(fd);
    }
    return allowed;
}
