# cython: language_level=3, binding=True, embedsignature=False
"""The splice engine of csrc/, one class over one opaque handle.

Every call that can wait releases the GIL. The workers are threads of the core
that never run Python: most have a descriptor table of their own, in which
Python's descriptors do not exist.
"""

import os

from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport calloc, free
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cimport reflector._core as core


cdef object convert_error(int r, core.rf_failure *failure):
    """The one place where -errno becomes OSError, naming the system call."""
    syscall = failure.syscall.decode() if failure.syscall is not NULL else None
    message = os.strerror(-r)
    error = OSError(-r, f"{syscall}: {message}" if syscall else message)
    error.syscall = syscall
    error.mapping = failure.mapping
    return error


cdef bytes encode(object text):
    if text is None:
        return None
    if "\0" in text:
        raise ValueError("an address with a NUL in it")
    return text.encode()


cdef const char *pointer(bytes text):
    if text is None:
        return NULL
    return text


cdef class Engine:
    """Binds and listens on mappings; `start` begins to reflect.

    Each mapping is (numeric address or None for all of IPv4 and IPv6, port or 0
    for a free one, return port or 0 for the port itself). Times are in
    milliseconds; 0 workers means one per usable CPU, 0 connections as many as
    the descriptors carry. Each network is (numeric address, prefix length, whether
    its peers are served).

    Raises OSError with `syscall` and `mapping` (an index, or -1) where the
    system says no or, EINVAL, a value is out of range; OverflowError for a
    number that is not even one of 32 bits, ValueError for a NUL in an address.
    """

    cdef core.rf_engine *engine
    cdef size_t mappings_count

    def __init__(self, mappings, *, uint32_t workers=0, uint32_t max_connections=0,
                 uint32_t max_per_source=512, uint32_t connect_timeout_ms=3000,
                 uint32_t idle_timeout_ms=600000, uint32_t half_close_timeout_ms=60000,
                 return_source4=None, return_source6=None, bint share_ports=False, networks=()):
        cdef core.rf_failure failure
        cdef core.rf_options options
        cdef core.rf_mapping *table
        cdef core.rf_network *peers
        cdef bytes source4 = encode(return_source4)
        cdef bytes source6 = encode(return_source6)
        cdef size_t count
        cdef int r

        if self.engine is not NULL:
            raise RuntimeError("the engine is already initialised")
        failure.syscall = NULL
        failure.mapping = -1
        options.size = sizeof(options)
        options.workers = workers
        options.max_connections = max_connections
        options.max_per_source = max_per_source
        options.connect_timeout_ms = connect_timeout_ms
        options.idle_timeout_ms = idle_timeout_ms
        options.half_close_timeout_ms = half_close_timeout_ms
        options.share_ports = share_ports
        options.return_source4 = pointer(source4)
        options.return_source6 = pointer(source6)

        # Keep the addresses alive that the tables point to.
        encoded = [(encode(address), port, return_port) for address, port, return_port in mappings]
        filters = [(encode(address), length, allow) for address, length, allow in networks]
        count = len(encoded)
        options.networks_count = len(filters)
        table = <core.rf_mapping *>calloc(count + 1, sizeof(core.rf_mapping))
        peers = <core.rf_network *>calloc(options.networks_count + 1, sizeof(core.rf_network))
        options.networks = peers
        try:
            if table is NULL or peers is NULL:
                raise MemoryError
            for i in range(options.networks_count):
                peers[i].address = pointer(filters[i][0])
                peers[i].length = <uint8_t>filters[i][1]
                peers[i].allow = filters[i][2]
            for i in range(count):
                table[i].address = pointer(encoded[i][0])
                table[i].port = <uint16_t>encoded[i][1]
                table[i].return_port = <uint16_t>encoded[i][2]
            with nogil:
                r = core.rf_engine_new(&options, table, count, &self.engine, &failure)
        finally:
            free(table)
            free(peers)
        if r < 0:
            raise convert_error(r, &failure)
        self.mappings_count = count

    def __dealloc__(self):
        # The GIL stays held: workers need none to end.
        core.rf_engine_free(self.engine)

    cdef core.rf_engine *handle(self) except NULL:
        if self.engine is NULL:
            raise RuntimeError("the engine was not initialised")
        return self.engine

    def start(self):
        """Starts the workers. Raises OSError; EALREADY the second time."""
        cdef core.rf_engine *engine = self.handle()
        cdef core.rf_failure failure
        cdef int r

        failure.syscall = NULL
        failure.mapping = -1
        with nogil:
            r = core.rf_engine_start(engine, &failure)
        if r < 0:
            raise convert_error(r, &failure)

    @property
    def ports(self):
        """The bound ports, in the order of the mappings."""
        cdef core.rf_engine *engine = self.handle()
        return [core.rf_engine_port(engine, i) for i in range(self.mappings_count)]

    @property
    def workers(self):
        """The number of workers."""
        return core.rf_engine_workers(self.handle())

    @property
    def max_connections(self):
        """Connections at once over all workers; final once started."""
        return core.rf_engine_max_connections(self.handle())

    def stop_accepting(self):
        """Closes the listeners; each worker ends with its last connection."""
        cdef core.rf_engine *engine = self.handle()
        with nogil:
            core.rf_engine_stop_accepting(engine)

    def wait(self, double timeout):
        """Waits up to `timeout` seconds; true once all workers have ended."""
        cdef core.rf_engine *engine = self.handle()
        cdef uint32_t left_ms = <uint32_t>(min(max(timeout, 0.0), 86400.0) * 1000)
        cdef uint32_t slice_ms
        cdef int r

        # In slices, so that Ctrl-C is heard.
        while True:
            slice_ms = min(left_ms, 100)
            with nogil:
                r = core.rf_engine_wait(engine, slice_ms)
            PyErr_CheckSignals()
            left_ms -= slice_ms
            if r == 0 or left_ms == 0:
                return r == 0

    def stop(self):
        """Resets what still runs and joins the workers; safe to repeat."""
        cdef core.rf_engine *engine = self.handle()
        with nogil:
            core.rf_engine_stop(engine)

    def stats(self):
        """Every counter by name, summed over the workers."""
        cdef core.rf_engine *engine = self.handle()
        cdef core.rf_stats stats

        core.rf_engine_stats(engine, &stats)
        return {core.rf_counter_name(i).decode(): stats.value[i] for i in range(core.RF_COUNTER_MAX)}
