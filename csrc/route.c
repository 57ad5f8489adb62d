#include "route.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

struct route_request {
    struct nlmsghdr header;
    struct rtmsg route;
    struct rtattr attribute;
    uint8_t address[sizeof(struct in6_addr)];
};

static void build_request(const union rf_address *address, struct route_request *ret_request)
{
    bool v4 = address->any.sa_family == AF_INET;
    const void *bytes = v4 ? (const void *)&address->v4.sin_addr
                           : (const void *)&address->v6.sin6_addr;
    size_t length = v4 ? sizeof(struct in_addr) : sizeof(struct in6_addr);
    struct route_request request = {
        .header = {.nlmsg_len = (uint32_t)(offsetof(struct route_request, address) + length),
                   .nlmsg_type = RTM_GETROUTE,
                   .nlmsg_flags = NLM_F_REQUEST},
        .route = {.rtm_family = (unsigned char)address->any.sa_family,
                  .rtm_dst_len = (unsigned char)(length * 8)},
        .attribute = {.rta_len = (unsigned short)RTA_LENGTH(length), .rta_type = RTA_DST},
    };

    memcpy(request.address, bytes, length);
    *ret_request = request;
}

bool rf_route_is_local(const union rf_address *address)
{
    struct route_request request;
    union {
        struct nlmsghdr header;
        char bytes[2048];
    } answer;
    const struct rtmsg *route;
    ssize_t n = -1;
    int fd;

    fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        return false;
    build_request(address, &request);
    if (send(fd, &request, request.header.nlmsg_len, 0) > 0)
        n = recv(fd, &answer, sizeof(answer), 0);
    close(fd);
    if (n < (ssize_t)NLMSG_LENGTH(sizeof(*route)) || answer.header.nlmsg_type != RTM_NEWROUTE)
        return false;
    route = NLMSG_DATA(&answer.header);
    return route->rtm_type == RTN_LOCAL;
}
