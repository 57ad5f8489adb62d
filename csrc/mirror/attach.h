/*
 * attach.h - attaches the program to the ingress of an interface, and takes it off again.
 *
 * By a tcx link where the kernel has it: the link ends with its descriptor,
 * thus with the process. Else by a filter of clsact, see clsact.h.
 */
#ifndef RF_MIRROR_ATTACH_H
#define RF_MIRROR_ATTACH_H

#include "clsact.h"
#include "mirror.h"

struct rf_attachment {
    uint32_t ifindex;
    enum rf_mirror_how how; /* TCX or CLSACT: the part that is used of those below */
    int link_fd;
    struct rf_clsact clsact;
};

int rf_attach(int program_fd, uint32_t ifindex, enum rf_mirror_how how,
              struct rf_attachment *ret_attachment, struct rf_mirror_failure *ret_failure);

/* Takes it off, also when it fails to clean up. 0 too when the interface is gone. */
int rf_detach(struct rf_attachment *attachment);

#endif
