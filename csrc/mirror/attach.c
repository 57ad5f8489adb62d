#include "attach.h"

#include <errno.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "messages.h"

/* linux/bpf.h has it by name since Linux 6.6; headers may be older than the kernel. */
#define TCX_INGRESS ((enum bpf_attach_type)46)

/* -EOPNOTSUPP: the kernel does not know this kind of link. */
static int attach_tcx(int program_fd, uint32_t ifindex, int *ret_link_fd)
{
    int fd = bpf_link_create(program_fd, (int)ifindex, TCX_INGRESS, NULL);

    if (fd < 0)
        return fd == -EINVAL ? -EOPNOTSUPP : fd;
    *ret_link_fd = fd;
    return 0;
}

int rf_attach(int program_fd, uint32_t ifindex, enum rf_mirror_how how,
              struct rf_attachment *ret_attachment, struct rf_mirror_failure *ret_failure)
{
    struct rf_attachment attachment = {.ifindex = ifindex, .how = RF_MIRROR_TCX, .link_fd = -1};
    struct rf_messages messages;
    int r = -EOPNOTSUPP;

    ret_failure->syscall = "bpf";
    ret_failure->what = "tcx";
    rf_messages_begin(&messages);
    if (how != RF_MIRROR_CLSACT)
        r = attach_tcx(program_fd, ifindex, &attachment.link_fd);
    if (r == -EOPNOTSUPP && how != RF_MIRROR_TCX) {
        ret_failure->syscall = "netlink";
        ret_failure->what = "clsact";
        attachment.how = RF_MIRROR_CLSACT;
        r = rf_clsact_attach(program_fd, ifindex, &attachment.clsact);
    }
    rf_messages_end();
    if (r < 0)
        rf_messages_append(ret_failure->reason, messages.text);
    else
        *ret_attachment = attachment;
    return r;
}

int rf_detach(struct rf_attachment *attachment)
{
    struct rf_messages messages;
    int r = 0;

    if (attachment->how == RF_MIRROR_TCX) {
        close(attachment->link_fd);
        attachment->link_fd = -1;
        return 0;
    }
    rf_messages_begin(&messages);
    r = rf_clsact_detach(&attachment->clsact, attachment->ifindex);
    rf_messages_end();
    return r;
}
