# Mirrors csrc/mirror/mirror.h: what is there is declared here, and nothing else.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "mirror/mirror.h" nogil:
    enum:
        RF_MIRROR_COUNTER_MAX
        RF_MIRROR_HISTOGRAM_SLOTS

    struct rf_mirror:
        pass

    enum rf_mirror_how:
        RF_MIRROR_ANY
        RF_MIRROR_TCX
        RF_MIRROR_CLSACT

    struct rf_mirror_failure:
        const char *syscall
        const char *what
        char reason[256]

    struct rf_mirror_route:
        uint8_t protocol
        uint16_t port
        uint16_t return_port
        uint16_t mapping
        uint8_t address[16]

    struct rf_mirror_network:
        uint8_t address[16]
        uint8_t prefix_length
        uint8_t allow

    struct rf_mirror_limits:
        uint32_t rate
        uint32_t rate_per_source
        uint8_t default_allow
        uint8_t accepting

    struct rf_mirror_counters:
        uint64_t value[RF_MIRROR_COUNTER_MAX]

    struct rf_mirror_times:
        uint64_t slots[RF_MIRROR_HISTOGRAM_SLOTS]

    int rf_mirror_new(uint32_t mappings, uint32_t max_sources, rf_mirror **ret_mirror,
                      rf_mirror_failure *ret_failure)
    int rf_mirror_set_routes(rf_mirror *mirror, const rf_mirror_route *routes, size_t count)
    int rf_mirror_set_never(rf_mirror *mirror, const uint8_t (*addresses)[16], size_t count)
    int rf_mirror_set_networks(rf_mirror *mirror, const rf_mirror_network *networks, size_t count)
    int rf_mirror_set_limits(rf_mirror *mirror, const rf_mirror_limits *limits)
    int rf_mirror_attach(rf_mirror *mirror, uint32_t ifindex, uint32_t link_header_length,
                         rf_mirror_how how, rf_mirror_failure *ret_failure)
    rf_mirror_how rf_mirror_attached_by(const rf_mirror *mirror, uint32_t ifindex)
    int rf_mirror_detach(rf_mirror *mirror, uint32_t ifindex)
    int rf_mirror_keep_alive(rf_mirror *mirror, uint64_t deadline_ns)
    const char *rf_mirror_counter_name(unsigned counter)
    int rf_mirror_stats(const rf_mirror *mirror, uint32_t mapping, rf_mirror_counters *ret_counters)
    int rf_mirror_histogram(const rf_mirror *mirror, rf_mirror_times *ret_histogram)
    void rf_mirror_free(rf_mirror *mirror)
