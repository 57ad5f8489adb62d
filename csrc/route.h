/*
 * route.h - asks the kernel whether an address belongs to this very host.
 */
#ifndef RF_ROUTE_H
#define RF_ROUTE_H

#include "address.h"

/*
 * True where the routing table calls the address local (rtnetlink(7),
 * RTM_GETROUTE, RTN_LOCAL): interface addresses, loopback, and ranges made
 * local by "ip route add local". Binding to it would say the same, but says
 * yes to everything under ip_nonlocal_bind. False where netlink is barred:
 * the limit per source then still bounds a loop.
 */
bool rf_route_is_local(const union rf_address *address);

#endif
