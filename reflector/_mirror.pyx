# cython: language_level=3, binding=True, embedsignature=False
"""The BPF program of csrc/mirror/, one class over one opaque handle.

Addresses are 16 bytes, IPv4 ones v4-mapped; ports are numbers. The calls are
short and keep the GIL, which is the lock that the C side asks for.
"""

import os

from libc.stdlib cimport calloc, free
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport reflector._mirror as core

HOW = {"any": core.RF_MIRROR_ANY, "tcx": core.RF_MIRROR_TCX, "clsact": core.RF_MIRROR_CLSACT}


cdef object convert_error(int r, str syscall, str what=None, str reason=None):
    """The one place where -errno becomes OSError, naming the system call."""
    words = [word for word in (syscall, what, os.strerror(-r), reason) if word]
    error = OSError(-r, ": ".join(words))
    error.syscall = syscall
    return error


cdef object convert_failure(int r, const core.rf_mirror_failure *failure):
    return convert_error(
        r,
        failure.syscall.decode() if failure.syscall is not NULL else None,
        failure.what.decode() if failure.what is not NULL else None,
        failure.reason.decode(errors="replace"),
    )


cdef int copy_address(uint8_t *ret_address, object address) except -1:
    cdef bytes text = bytes(address)
    if len(text) != 16:
        raise ValueError(f"an address of {len(text)} bytes; it must have 16")
    memcpy(ret_address, <const char *>text, 16)
    return 0


cdef void *allocate(size_t count, size_t size) except NULL:
    cdef void *table = calloc(count + 1, size)
    if table is NULL:
        raise MemoryError
    return table


cdef class Mirror:
    """Loads the program for so many mappings; `attach` and `set_*` make it mirror.

    `max_sources` bounds the table of the rates per source; the one that was not
    seen for longest makes room. It refuses all connections until `set_limits`.

    Raises OSError with `syscall`: EPERM without CAP_BPF and CAP_NET_ADMIN, and
    EINVAL where a number is out of range.
    """

    cdef core.rf_mirror *mirror

    def __init__(self, uint32_t mappings, uint32_t max_sources):
        cdef core.rf_mirror_failure failure
        cdef int r

        if self.mirror is not NULL:
            raise RuntimeError("the mirror is already initialised")
        with nogil:
            r = core.rf_mirror_new(mappings, max_sources, &self.mirror, &failure)
        if r < 0:
            raise convert_failure(r, &failure)

    def __dealloc__(self):
        core.rf_mirror_free(self.mirror)

    cdef core.rf_mirror *handle(self) except NULL:
        if self.mirror is NULL:
            raise ValueError("the mirror is closed")
        return self.mirror

    def close(self):
        """Detaches from all interfaces and unloads; safe to repeat."""
        core.rf_mirror_free(self.mirror)
        self.mirror = NULL

    def attach(self, uint32_t ifindex, uint32_t link_header_length, str how="any"):
        """Attaches to an interface whose link header has so many bytes: 14 or 0.

        `how` is "tcx", "clsact", or "any": tcx where the kernel has it, else
        clsact. What is attached by clsact has to be detached from a thread in
        the same network namespace. Returns which of both it is.

        Raises OSError with `syscall`: ENODEV where there is no such interface,
        EEXIST when it is attached, EOPNOTSUPP where the kernel has no tcx,
        EBUSY when too many processes mirror the interface by clsact.
        """
        cdef core.rf_mirror *mirror = self.handle()
        cdef core.rf_mirror_failure failure
        cdef int r

        if how not in HOW:
            raise ValueError(f"how={how!r}; it may be {', '.join(HOW)}")
        r = core.rf_mirror_attach(mirror, ifindex, link_header_length, HOW[how], &failure)
        if r < 0:
            raise convert_failure(r, &failure)
        attached = core.rf_mirror_attached_by(mirror, ifindex)
        return next(name for name in HOW if HOW[name] == attached)

    def detach(self, uint32_t ifindex):
        """Detaches from an interface. Raises OSError; ENOENT when it was not attached."""
        cdef int r = core.rf_mirror_detach(self.handle(), ifindex)
        if r < 0:
            raise convert_error(r, "bpf", "detach")

    def set_routes(self, routes):
        """Replaces the routes: (protocol, port, return port, mapping, local address).

        Raises OSError; EEXIST when two have the same port or the same return
        port on an address: whose would a reply be?
        """
        cdef core.rf_mirror *mirror = self.handle()
        cdef list entries = list(routes)
        cdef size_t count = len(entries)
        cdef core.rf_mirror_route *table
        cdef int r

        table = <core.rf_mirror_route *>allocate(count, sizeof(core.rf_mirror_route))
        try:
            for i in range(count):
                protocol, port, return_port, mapping, address = entries[i]
                table[i].protocol = <uint8_t>protocol
                table[i].port = <uint16_t>port
                table[i].return_port = <uint16_t>return_port
                table[i].mapping = <uint16_t>mapping
                copy_address(table[i].address, address)
            r = core.rf_mirror_set_routes(mirror, table, count)
        finally:
            free(table)
        if r < 0:
            raise convert_error(r, "bpf", "routes")

    def set_never(self, addresses):
        """Replaces the addresses that nothing is sent to. Raises OSError."""
        cdef core.rf_mirror *mirror = self.handle()
        cdef list entries = list(addresses)
        cdef size_t count = len(entries)
        cdef uint8_t *table
        cdef int r

        table = <uint8_t *>allocate(count, 16)
        try:
            for i in range(count):
                copy_address(&table[16 * i], entries[i])
            r = core.rf_mirror_set_never(mirror, <const uint8_t (*)[16]>table, count)
        finally:
            free(table)
        if r < 0:
            raise convert_error(r, "bpf", "never")

    def set_networks(self, networks):
        """Replaces the networks: (address, prefix length of 128, allow). Raises OSError.

        The longest prefix decides. One of IPv6 is never one of IPv4 too: ::/0
        says nothing of v4-mapped addresses, whose whole is ::ffff:0:0/96.
        """
        cdef core.rf_mirror *mirror = self.handle()
        cdef list entries = list(networks)
        cdef size_t count = len(entries)
        cdef core.rf_mirror_network *table
        cdef int r

        table = <core.rf_mirror_network *>allocate(count, sizeof(core.rf_mirror_network))
        try:
            for i in range(count):
                address, prefix_length, allow = entries[i]
                copy_address(table[i].address, address)
                table[i].prefix_length = <uint8_t>prefix_length
                table[i].allow = bool(allow)
            r = core.rf_mirror_set_networks(mirror, table, count)
        finally:
            free(table)
        if r < 0:
            raise convert_error(r, "bpf", "networks")

    def set_limits(self, *, uint32_t rate=0, uint32_t rate_per_source=0, bint default_allow=True,
                   bint accepting=True):
        """Sets the limits of new connections a second (0: none). Raises OSError.

        `default_allow` is for sources in no network; `accepting` false leaves
        what is new to the stack, or the next mirror, and lets go on what is open.
        """
        cdef core.rf_mirror_limits limits
        cdef int r

        limits.rate = rate
        limits.rate_per_source = rate_per_source
        limits.default_allow = default_allow
        limits.accepting = accepting
        r = core.rf_mirror_set_limits(self.handle(), &limits)
        if r < 0:
            raise convert_error(r, "bpf", "limits")

    def keep_alive(self, uint64_t deadline_ns):
        """Mirrors until that time of CLOCK_MONOTONIC; 2**64 - 1, as it starts: for ever."""
        cdef int r = core.rf_mirror_keep_alive(self.handle(), deadline_ns)
        if r < 0:
            raise convert_error(r, "bpf", "settings")

    def stats(self, uint32_t mapping):
        """Every counter of a mapping by name. Raises OSError; ENOENT: no such mapping."""
        cdef core.rf_mirror_counters counters
        cdef int r = core.rf_mirror_stats(self.handle(), mapping, &counters)
        if r < 0:
            raise convert_error(r, "bpf", "counters")
        return {
            core.rf_mirror_counter_name(i).decode(): counters.value[i]
            for i in range(core.RF_MIRROR_COUNTER_MAX)
        }

    def histogram(self):
        """Handshakes timed, by slot: n counts 2**n up to 2**(n + 1) microseconds, 0 also below."""
        cdef core.rf_mirror_times histogram
        cdef int r = core.rf_mirror_histogram(self.handle(), &histogram)
        if r < 0:
            raise convert_error(r, "bpf", "histogram")
        return [histogram.slots[i] for i in range(core.RF_MIRROR_HISTOGRAM_SLOTS)]
