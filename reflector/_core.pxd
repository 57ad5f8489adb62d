# Mirrors csrc/reflector.h: what is there is declared here, and nothing else.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "reflector.h" nogil:
    enum:
        RF_COUNTER_MAX

    struct rf_engine:
        pass

    struct rf_mapping:
        const char *address
        uint16_t port
        uint16_t return_port

    struct rf_network:
        const char *address
        uint8_t length
        bint allow

    struct rf_options:
        size_t size
        uint32_t workers
        uint32_t max_connections
        uint32_t max_per_source
        uint32_t connect_timeout_ms
        uint32_t idle_timeout_ms
        uint32_t half_close_timeout_ms
        bint share_ports
        const char *return_source4
        const char *return_source6
        const rf_network *networks
        size_t networks_count

    struct rf_failure:
        const char *syscall
        int mapping

    struct rf_stats:
        uint64_t value[RF_COUNTER_MAX]

    const char *rf_counter_name(unsigned counter)
    int rf_engine_new(const rf_options *options, const rf_mapping *mappings, size_t mappings_count,
                      rf_engine **ret_engine, rf_failure *ret_failure)
    int rf_engine_start(rf_engine *engine, rf_failure *ret_failure)
    uint16_t rf_engine_port(const rf_engine *engine, size_t mapping)
    uint32_t rf_engine_workers(const rf_engine *engine)
    uint32_t rf_engine_max_connections(const rf_engine *engine)
    void rf_engine_stop_accepting(rf_engine *engine)
    int rf_engine_wait(rf_engine *engine, uint32_t timeout_ms)
    void rf_engine_stop(rf_engine *engine)
    void rf_engine_stats(const rf_engine *engine, rf_stats *ret_stats)
    void rf_engine_free(rf_engine *engine)
