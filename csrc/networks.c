#include "networks.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An address as a number: IPv6 whole, IPv4 in the highest bits, so that prefixes are alike. */
__extension__ typedef unsigned __int128 address_bits;

#define ADDRESS_BITS 128U

struct prefix {
    address_bits first, last;
    bool allow;
};

/* Ranges of one family: the first starts at 0, each ends where the next one starts. */
struct ranges {
    address_bits *starts;
    size_t count;
    bool first_allow; /* the verdict of the first; from range to range it alternates */
};

struct rf_networks {
    struct ranges families[2]; /* IPv4, IPv6 */
};

/* The prefixes around the place that the sweep has come to, each inside the one before. */
struct nest {
    const struct prefix *around[ADDRESS_BITS + 1];
    size_t depth;
    bool otherwise; /* the verdict outside of all */
};

static address_bits bits_of_bytes(const uint8_t *bytes, size_t count)
{
    address_bits bits = 0;

    for (size_t i = 0; i < count; i++)
        bits |= (address_bits)bytes[i] << (ADDRESS_BITS - 8 * (i + 1));
    return bits;
}

/* The same of a peer, without the loop: this is the hot path. */
static address_bits bits_of_peer(const union rf_address *peer)
{
    uint64_t words[2];

    if (peer->any.sa_family == AF_INET)
        return (address_bits)ntohl(peer->v4.sin_addr.s_addr) << (ADDRESS_BITS - 32);
    memcpy(words, &peer->v6.sin6_addr, sizeof(words));
    return (address_bits)be64toh(words[0]) << 64 | be64toh(words[1]);
}

static int parse(const struct rf_network *network, struct prefix *ret_prefix, bool *ret_v6)
{
    struct in6_addr v6;
    struct in_addr v4;
    address_bits first, rest;
    bool is_v6 = false;

    if (inet_pton(AF_INET, network->address, &v4) == 1) {
        first = bits_of_bytes((const uint8_t *)&v4, sizeof(v4));
    } else if (inet_pton(AF_INET6, network->address, &v6) == 1 && !IN6_IS_ADDR_V4MAPPED(&v6)) {
        first = bits_of_bytes(v6.s6_addr, sizeof(v6));
        is_v6 = true;
    } else {
        return -EINVAL;
    }
    if (network->length > (is_v6 ? 128 : 32))
        return -EINVAL;
    /* A shift by the whole width is undefined. */
    rest = network->length < ADDRESS_BITS ? ~(address_bits)0 >> network->length : 0;
    if (first & rest)
        return -EINVAL;
    *ret_prefix = (struct prefix){first, first | rest, network->allow};
    *ret_v6 = is_v6;
    return 0;
}

/* By first address, of those the larger network first. */
static int compare(const void *a, const void *b)
{
    const struct prefix *one = a, *other = b;

    if (one->first != other->first)
        return one->first < other->first ? -1 : 1;
    if (one->last != other->last)
        return one->last > other->last ? -1 : 1;
    return 0;
}

static bool verdict(const struct ranges *ranges, size_t i)
{
    return ranges->first_allow ^ (i & 1);
}

/* From `start` on the verdict is another, perhaps: a range begins, or is replaced, or goes on. */
static void append(struct ranges *ranges, address_bits start, bool allow)
{
    if (ranges->count > 0 && ranges->starts[ranges->count - 1] == start)
        ranges->count--;
    if (ranges->count > 0 && verdict(ranges, ranges->count - 1) == allow)
        return;
    if (ranges->count == 0)
        ranges->first_allow = allow;
    ranges->starts[ranges->count++] = start;
}

/* Leaves the innermost prefix: after its end its surroundings decide again. */
static void leave(struct ranges *ranges, struct nest *nest)
{
    const struct prefix *left = nest->around[--nest->depth];
    bool allow = nest->depth ? nest->around[nest->depth - 1]->allow : nest->otherwise;

    if (left->last != ~(address_bits)0)
        append(ranges, left->last + 1, allow);
}

/* Cuts the address space at the ends of the prefixes, which it sorts. */
static int cut(struct ranges *ranges, struct prefix *prefixes, size_t count, bool otherwise)
{
    struct nest nest = {.depth = 0, .otherwise = otherwise};

    ranges->starts = malloc((2 * count + 1) * sizeof(*ranges->starts));
    if (!ranges->starts)
        return -ENOMEM;
    qsort(prefixes, count, sizeof(*prefixes), compare);
    append(ranges, 0, otherwise);
    for (size_t i = 0; i < count; i++) {
        const struct prefix *prefix = &prefixes[i];

        if (i > 0 && compare(prefix, prefix - 1) == 0) {
            if (prefix->allow != prefix[-1].allow)
                return -EINVAL;
            continue;
        }
        while (nest.depth > 0 && nest.around[nest.depth - 1]->last < prefix->first)
            leave(ranges, &nest);
        nest.around[nest.depth++] = prefix;
        append(ranges, prefix->first, prefix->allow);
    }
    while (nest.depth > 0)
        leave(ranges, &nest);
    return 0;
}

static int make(struct rf_networks *made, const struct rf_network *networks, size_t count,
                struct prefix *prefixes)
{
    bool otherwise = true;
    int r = 0;

    for (size_t i = 0; i < count; i++)
        otherwise = otherwise && !networks[i].allow;
    for (unsigned family = 0; family < 2 && r == 0; family++) {
        size_t found = 0;

        for (size_t i = 0; i < count; i++) {
            bool is_v6;

            r = parse(&networks[i], &prefixes[found], &is_v6);
            if (r < 0)
                return r;
            found += is_v6 == family;
        }
        r = cut(&made->families[family], prefixes, found, otherwise);
    }
    return r;
}

int rf_networks_new(const struct rf_network *networks, size_t count,
                    struct rf_networks **ret_networks)
{
    struct rf_networks *made;
    struct prefix *prefixes;
    int r = -ENOMEM;

    if (count == 0) {
        *ret_networks = NULL;
        return 0;
    }
    if (count > RF_MAX_NETWORKS)
        return -EINVAL;
    made = calloc(1, sizeof(*made));
    prefixes = malloc(count * sizeof(*prefixes));
    if (made && prefixes)
        r = make(made, networks, count, prefixes);
    free(prefixes);
    if (r < 0) {
        rf_networks_free(made);
        return r;
    }
    *ret_networks = made;
    return 0;
}

void rf_networks_free(struct rf_networks *networks)
{
    if (!networks)
        return;
    free(networks->families[0].starts);
    free(networks->families[1].starts);
    free(networks);
}

bool rf_networks_allow(const struct rf_networks *networks, const union rf_address *peer)
{
    const struct ranges *ranges = &networks->families[peer->any.sa_family == AF_INET6];
    address_bits address = bits_of_peer(peer);
    size_t first = 0;
    size_t count = ranges->count;

    /* The range is one of `count` from `first` on; the first of all starts at 0. */
    while (count > 1) {
        size_t half = count / 2;

        if (ranges->starts[first + half] <= address)
            first += half;
        count -= half;
    }
    return verdict(ranges, first);
}
