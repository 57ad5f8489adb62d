#include "address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>

int rf_address_parse(const char *text, uint16_t port, union rf_address *ret_address)
{
    union rf_address address = {0};
    char host[INET6_ADDRSTRLEN];
    const char *scope = strchr(text, '%');
    size_t host_length = scope ? (size_t)(scope - text) : strlen(text);

    if (host_length >= sizeof(host))
        return -EINVAL;
    memcpy(host, text, host_length);
    host[host_length] = '\0';

    if (!scope && inet_pton(AF_INET, host, &address.v4.sin_addr) == 1) {
        address.v4.sin_family = AF_INET;
    } else if (inet_pton(AF_INET6, host, &address.v6.sin6_addr) == 1) {
        address.v6.sin6_family = AF_INET6;
        if (scope) {
            if (!IN6_IS_ADDR_LINKLOCAL(&address.v6.sin6_addr))
                return -EINVAL;
            address.v6.sin6_scope_id = if_nametoindex(scope + 1);
            if (address.v6.sin6_scope_id == 0)
                address.v6.sin6_scope_id = (uint32_t)strtoul(scope + 1, NULL, 10);
            if (address.v6.sin6_scope_id == 0)
                return -ENODEV;
        }
    } else {
        return -EINVAL;
    }
    rf_address_unmap(&address);
    rf_address_set_port(&address, port);
    *ret_address = address;
    return 0;
}

void rf_address_unmap(union rf_address *address)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET};

    if (address->any.sa_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr))
        return;
    memcpy(&v4.sin_addr, &address->v6.sin6_addr.s6_addr[12], sizeof(v4.sin_addr));
    v4.sin_port = address->v6.sin6_port;
    address->v4 = v4;
}

socklen_t rf_address_length(const union rf_address *address)
{
    return address->any.sa_family == AF_INET ? sizeof(address->v4) : sizeof(address->v6);
}

uint16_t rf_address_port(const union rf_address *address)
{
    return ntohs(address->any.sa_family == AF_INET ? address->v4.sin_port
                                                   : address->v6.sin6_port);
}

void rf_address_set_port(union rf_address *address, uint16_t port)
{
    if (address->any.sa_family == AF_INET)
        address->v4.sin_port = htons(port);
    else
        address->v6.sin6_port = htons(port);
}

bool rf_address_same_host(const union rf_address *a, const union rf_address *b)
{
    if (a->any.sa_family != b->any.sa_family)
        return false;
    if (a->any.sa_family == AF_INET)
        return a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
    return IN6_ARE_ADDR_EQUAL(&a->v6.sin6_addr, &b->v6.sin6_addr) &&
           a->v6.sin6_scope_id == b->v6.sin6_scope_id;
}

bool rf_address_is_wildcard(const union rf_address *address)
{
    if (address->any.sa_family == AF_INET)
        return address->v4.sin_addr.s_addr == htonl(INADDR_ANY);
    return IN6_IS_ADDR_UNSPECIFIED(&address->v6.sin6_addr);
}
