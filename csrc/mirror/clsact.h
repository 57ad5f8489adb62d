/*
 * clsact.h - a filter at the ingress of an interface, for kernels before Linux 6.6: tc-bpf(8).
 *
 * A filter has no owner: it stays when its process is killed. (From then on it
 * leaves all to the stack, see rf_mirror_keep_alive.) So it says by its
 * priority and handle that it is ours, and has one of a few slots of the
 * interface; whoever has a slot holds a socket of that slot's name, which the
 * kernel takes away with the process. A filter in a slot that nobody holds is
 * stale, and is removed by the next one that attaches.
 *
 * The queueing discipline that all filters of an interface hang on may have
 * been there before, or be used by others: then it stays. Whether it was made
 * here is said by the handle too, so that of several processes, in whatever
 * order they come and go, the last one removes it.
 *
 * Names of sockets and filters both are of the calling thread's network
 * namespace: it has to be the same one in both functions.
 */
#ifndef RF_MIRROR_CLSACT_H
#define RF_MIRROR_CLSACT_H

#include <stdint.h>

struct rf_clsact {
    uint32_t handle; /* of the filter: it names the slot */
    int claim_fd;    /* the socket of the slot's name */
};

/* -EBUSY: all slots are taken. */
int rf_clsact_attach(int program_fd, uint32_t ifindex, struct rf_clsact *ret_clsact);

/* 0 too when interface or filter are gone. The slot is given up in any case. */
int rf_clsact_detach(struct rf_clsact *clsact, uint32_t ifindex);

#endif
