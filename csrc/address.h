/*
 * address.h - socket addresses: parse, unmap, compare, change the port.
 *
 * Inside the core an IPv4 peer is always AF_INET, also when a dual-stack
 * listener saw it as ::ffff:a.b.c.d: rf_address_unmap runs right after the
 * kernel hands an address over.
 */
#ifndef RF_ADDRESS_H
#define RF_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

union rf_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* Numeric IPv4 or IPv6, link-local with an optional %scope. -EINVAL, -ENODEV (no such scope). */
int rf_address_parse(const char *text, uint16_t port, union rf_address *ret_address);

/* Turns a v4-mapped IPv6 address into plain IPv4; leaves others alone. */
void rf_address_unmap(union rf_address *address);

socklen_t rf_address_length(const union rf_address *address);
uint16_t rf_address_port(const union rf_address *address);
void rf_address_set_port(union rf_address *address, uint16_t port);

/* Same family, address and scope; ports do not count. */
bool rf_address_same_host(const union rf_address *a, const union rf_address *b);
bool rf_address_is_wildcard(const union rf_address *address);

#endif
