#include "mirror.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <bpf/bpf.h>

#include "attach.h"
#include "load.h"
#include "sieve.h"
#include "table.h"

#define NS_PER_S 1000000000ULL
#define SIEVE_ROUTES (2 * 65536 / 64) /* words of the sieve */
#define SIEVE_NEVER (65536 / 64)
#define BURST_MIN 10 /* connections, however low the rate */

struct rf_mirror {
    struct rf_loaded loaded;
    uint32_t mappings;
    struct rf_mirror_settings settings;
    struct rf_table routes, never, networks;
    struct rf_sieve sieve;
    struct rf_attachment *attachments;
    size_t attachments_count;
};

/* Records of the tables: the value stands right behind the key. Padding is zero (calloc). */
struct route_record {
    struct rf_mirror_route_key key;
    struct rf_mirror_route_value value;
};

struct never_record {
    union rf_mirror_address key;
    uint8_t value;
};

struct network_record {
    struct rf_mirror_network_key key;
    uint8_t value;
};

static int store_settings(const struct rf_mirror *mirror)
{
    const uint32_t index = 0;

    return bpf_map_update_elem(mirror->loaded.maps[RF_MIRROR_MAP_SETTINGS], &index,
                               &mirror->settings, BPF_ANY);
}

static int load(struct rf_mirror *mirror, uint32_t max_sources, struct rf_mirror_failure *failure)
{
    const int *maps = mirror->loaded.maps;
    int r = rf_load(mirror->mappings, max_sources, &mirror->loaded, failure);

    if (r < 0)
        return r;
    rf_table_init(&mirror->routes, maps[RF_MIRROR_MAP_ROUTES], sizeof(struct rf_mirror_route_key),
                  sizeof(struct route_record), RF_MIRROR_ROUTES_MAX);
    rf_table_init(&mirror->never, maps[RF_MIRROR_MAP_NEVER], sizeof(union rf_mirror_address),
                  sizeof(struct never_record), RF_MIRROR_NEVER_MAX);
    rf_table_init(&mirror->networks, maps[RF_MIRROR_MAP_NETWORKS],
                  sizeof(struct rf_mirror_network_key), sizeof(struct network_record),
                  RF_MIRROR_NETWORKS_MAX);
    mirror->sieve.map_fd = maps[RF_MIRROR_MAP_SIEVE];
    mirror->settings.deadline_ns = UINT64_MAX;
    mirror->settings.only_ethernet = 1;
    failure->what = "settings";
    return store_settings(mirror);
}

int rf_mirror_new(uint32_t mappings, uint32_t max_sources, struct rf_mirror **ret_mirror,
                  struct rf_mirror_failure *ret_failure)
{
    struct rf_mirror_failure failure = {0};
    struct rf_mirror *mirror;
    int r = -EINVAL;

    if (mappings == 0 || mappings > RF_MIRROR_MAPPINGS_MAX || max_sources > RF_MIRROR_SOURCES_MAX)
        goto fail;
    /* Of a smaller table each CPU would keep most entries for itself. */
    if (max_sources < RF_MIRROR_SOURCES_MIN)
        max_sources = RF_MIRROR_SOURCES_MIN;
    mirror = calloc(1, sizeof(*mirror));
    r = -ENOMEM;
    if (!mirror)
        goto fail;
    mirror->mappings = mappings;
    r = load(mirror, max_sources, &failure);
    if (r < 0) {
        rf_mirror_free(mirror);
        goto fail;
    }
    *ret_mirror = mirror;
    return 0;

fail:
    if (ret_failure)
        *ret_failure = failure;
    return r;
}

/* Replaces a table whose keys are in the sieve, where it has the words from `first` on. */
static int replace_sifted(struct rf_mirror *mirror, struct rf_table *table, void *records,
                          size_t count, uint32_t first, const uint64_t *bits, uint32_t words)
{
    int r = rf_sieve_add(&mirror->sieve, first, bits, words);

    if (r == 0)
        r = rf_table_replace(table, records, count);
    return r == 0 ? rf_sieve_replace(&mirror->sieve, first, bits, words) : r;
}

int rf_mirror_set_routes(struct rf_mirror *mirror, const struct rf_mirror_route *routes,
                         size_t count)
{
    uint64_t bits[SIEVE_ROUTES] = {0};
    struct route_record *records;
    int r;

    if (count > RF_MIRROR_ROUTES_MAX / 2)
        return -E2BIG;
    records = calloc(2 * count + 1, sizeof(*records));
    if (!records)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        const struct rf_mirror_route *route = &routes[i];
        struct route_record *request = &records[2 * i], *reply = &records[2 * i + 1];
        r = -EINVAL;
        if (route->mapping >= mirror->mappings || route->port == 0 || route->return_port == 0)
            goto end;
        request->key.direction = RF_MIRROR_REQUEST;
        request->key.protocol = route->protocol;
        request->key.port = htons(route->port);
        memcpy(request->key.local.bytes, route->address, sizeof(route->address));
        request->value.port = htons(route->return_port);
        request->value.mapping = route->mapping;
        *reply = *request;
        reply->key.direction = RF_MIRROR_REPLY;
        reply->key.port = request->value.port;
        reply->value.port = request->key.port;
        rf_sieve_mark(bits, RF_MIRROR_SIEVE_ROUTE(RF_MIRROR_REQUEST, request->key.port));
        rf_sieve_mark(bits, RF_MIRROR_SIEVE_ROUTE(RF_MIRROR_REPLY, reply->key.port));
    }
    r = replace_sifted(mirror, &mirror->routes, records, 2 * count, 0, bits, SIEVE_ROUTES);
end:
    free(records);
    return r;
}

int rf_mirror_set_never(struct rf_mirror *mirror, const uint8_t (*addresses)[16], size_t count)
{
    struct never_record *records = calloc(count + 1, sizeof(*records));
    uint64_t bits[SIEVE_NEVER] = {0};
    int r;

    if (!records)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        memcpy(records[i].key.bytes, addresses[i], sizeof(addresses[i]));
        records[i].value = 1;
        rf_sieve_mark(bits, rf_mirror_hash(&records[i].key, 0) >> 16);
    }
    r = replace_sifted(mirror, &mirror->never, records, count, SIEVE_ROUTES, bits, SIEVE_NEVER);
    free(records);
    return r;
}

/* Clears the bits behind the prefix, so that a network has one form. */
static void mask(uint8_t address[16], unsigned prefix_length)
{
    for (unsigned i = 0; i < 16; i++) {
        unsigned bits = prefix_length <= 8 * i ? 0 : prefix_length - 8 * i;
        if (bits < 8)
            address[i] &= (uint8_t)(0xff00U >> bits);
    }
}

/* The network of all IPv4: one of IPv6 that is as wide as to hold it does not mean it. */
static void describe_ipv4(struct network_record *ret_record)
{
    ret_record->key.prefix_length = 96;
    ret_record->value = RF_MIRROR_DEFAULT;
    ret_record->key.address.bytes[10] = 0xff;
    ret_record->key.address.bytes[11] = 0xff;
}

int rf_mirror_set_networks(struct rf_mirror *mirror, const struct rf_mirror_network *networks,
                           size_t count)
{
    struct network_record *records = calloc(count + 1, sizeof(*records));
    size_t used = count + 1;
    int r;

    if (!records)
        return -ENOMEM;
    describe_ipv4(&records[count]);
    for (size_t i = 0; i < count; i++) {
        r = -EINVAL;
        if (networks[i].prefix_length > 128)
            goto end;
        records[i].key.prefix_length = networks[i].prefix_length;
        memcpy(records[i].key.address.bytes, networks[i].address, sizeof(networks[i].address));
        mask(records[i].key.address.bytes, networks[i].prefix_length);
        records[i].value = networks[i].allow ? RF_MIRROR_ALLOW : RF_MIRROR_DENY;
        if (memcmp(&records[i].key, &records[count].key, sizeof(records[i].key)) == 0)
            used = count; /* said in so many words */
    }
    r = rf_table_replace(&mirror->networks, (uint8_t *)records, used);
    if (r == 0) {
        mirror->settings.networks = count > 0;
        r = store_settings(mirror);
    }
end:
    free(records);
    return r;
}

int rf_mirror_set_limits(struct rf_mirror *mirror, const struct rf_mirror_limits *limits)
{
    struct rf_mirror_settings *settings = &mirror->settings;
    uint32_t rates[2] = {limits->rate, limits->rate_per_source};
    uint64_t intervals_ns[2] = {0}, tolerances_ns[2] = {0};

    for (unsigned i = 0; i < 2; i++) {
        if (rates[i] == 0)
            continue;
        uint64_t burst = rates[i] < BURST_MIN ? BURST_MIN : rates[i];
        intervals_ns[i] = NS_PER_S / rates[i] > 0 ? NS_PER_S / rates[i] : 1;
        tolerances_ns[i] = (burst - 1) * intervals_ns[i];
    }
    settings->interval_ns = intervals_ns[0];
    settings->tolerance_ns = tolerances_ns[0];
    settings->source_interval_ns = intervals_ns[1];
    settings->source_tolerance_ns = tolerances_ns[1];
    settings->accepting = limits->accepting != 0;
    settings->default_allow = limits->default_allow != 0;
    return store_settings(mirror);
}

static struct rf_attachment *find_attachment(const struct rf_mirror *mirror, uint32_t ifindex)
{
    for (size_t i = 0; i < mirror->attachments_count; i++)
        if (mirror->attachments[i].ifindex == ifindex)
            return &mirror->attachments[i];
    return NULL;
}

/* Attaches, with the room for the attachment there already. */
static int attach(struct rf_mirror *mirror, uint32_t ifindex, uint32_t link_header_length,
                  enum rf_mirror_how how, struct rf_mirror_failure *failure)
{
    int interfaces = mirror->loaded.maps[RF_MIRROR_MAP_INTERFACES];
    struct rf_attachment *attachment = &mirror->attachments[mirror->attachments_count];
    int r = bpf_map_update_elem(interfaces, &ifindex, &link_header_length, BPF_ANY);

    if (r == 0 && link_header_length == 0 && mirror->settings.only_ethernet) {
        mirror->settings.only_ethernet = 0;
        r = store_settings(mirror);
    }
    if (r < 0) {
        failure->syscall = "bpf";
        failure->what = "interfaces";
        return r;
    }
    r = rf_attach(mirror->loaded.program, ifindex, how, attachment, failure);
    if (r < 0) {
        bpf_map_delete_elem(interfaces, &ifindex);
        return r;
    }
    mirror->attachments_count++;
    return 0;
}

int rf_mirror_attach(struct rf_mirror *mirror, uint32_t ifindex, uint32_t link_header_length,
                     enum rf_mirror_how how, struct rf_mirror_failure *ret_failure)
{
    struct rf_mirror_failure failure = {.syscall = "bpf", .what = "attach"};
    struct rf_attachment *grown;
    int r = -EINVAL;

    if (ifindex == 0 || ifindex > INT32_MAX || (link_header_length && link_header_length != 14))
        goto end;
    r = -EEXIST;
    if (find_attachment(mirror, ifindex))
        goto end;
    r = -ENOMEM;
    grown = realloc(mirror->attachments, (mirror->attachments_count + 1) * sizeof(*grown));
    if (!grown)
        goto end;
    mirror->attachments = grown;
    r = attach(mirror, ifindex, link_header_length, how, &failure);
end:
    if (r < 0 && ret_failure)
        *ret_failure = failure;
    return r;
}

enum rf_mirror_how rf_mirror_attached_by(const struct rf_mirror *mirror, uint32_t ifindex)
{
    const struct rf_attachment *attachment = find_attachment(mirror, ifindex);

    return attachment ? attachment->how : RF_MIRROR_ANY;
}

int rf_mirror_detach(struct rf_mirror *mirror, uint32_t ifindex)
{
    struct rf_attachment *attachment = find_attachment(mirror, ifindex);
    int r, gone;

    if (!attachment)
        return -ENOENT;
    r = rf_detach(attachment);
    *attachment = mirror->attachments[--mirror->attachments_count];
    gone = bpf_map_delete_elem(mirror->loaded.maps[RF_MIRROR_MAP_INTERFACES], &ifindex);
    return r == 0 && gone != -ENOENT ? gone : r;
}

int rf_mirror_keep_alive(struct rf_mirror *mirror, uint64_t deadline_ns)
{
    mirror->settings.deadline_ns = deadline_ns;
    return store_settings(mirror);
}

const char *rf_mirror_counter_name(unsigned counter)
{
    static const char *const names[RF_MIRROR_COUNTER_MAX] = {
#define NAME(id, name, what) name,
        RF_MIRROR_COUNTERS(NAME)
#undef NAME
    };

    return counter < RF_MIRROR_COUNTER_MAX ? names[counter] : NULL;
}

/* Reads so many entries of a per-CPU map of numbers, each summed over the CPUs. */
static int sum_cpus(const struct rf_mirror *mirror, unsigned map, uint32_t first, uint32_t count,
                    uint64_t *ret_sums)
{
    uint64_t *values = calloc(mirror->loaded.cpus, sizeof(*values));
    int r = values ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < count && r == 0; i++) {
        uint32_t index = first + i;
        r = bpf_map_lookup_elem(mirror->loaded.maps[map], &index, values);
        ret_sums[i] = 0;
        for (unsigned cpu = 0; cpu < mirror->loaded.cpus && r == 0; cpu++)
            ret_sums[i] += values[cpu];
    }
    free(values);
    return r;
}

int rf_mirror_stats(const struct rf_mirror *mirror, uint32_t mapping,
                    struct rf_mirror_counters *ret_counters)
{
    struct rf_mirror_counters counters;
    int r;

    if (mapping >= mirror->mappings)
        return -ENOENT;
    r = sum_cpus(mirror, RF_MIRROR_MAP_COUNTERS, mapping * RF_MIRROR_COUNTER_MAX,
                 RF_MIRROR_COUNTER_MAX, counters.value);
    if (r == 0)
        *ret_counters = counters;
    return r;
}

int rf_mirror_histogram(const struct rf_mirror *mirror, struct rf_mirror_times *ret_histogram)
{
    struct rf_mirror_times times;
    int r = sum_cpus(mirror, RF_MIRROR_MAP_HISTOGRAM, 0, RF_MIRROR_HISTOGRAM_SLOTS, times.slots);

    if (r == 0)
        *ret_histogram = times;
    return r;
}

void rf_mirror_free(struct rf_mirror *mirror)
{
    if (!mirror)
        return;
    for (size_t i = 0; i < mirror->attachments_count; i++)
        rf_detach(&mirror->attachments[i]);
    free(mirror->attachments);
    rf_table_free(&mirror->routes);
    rf_table_free(&mirror->never);
    rf_table_free(&mirror->networks);
    rf_unload(&mirror->loaded);
    free(mirror);
}
