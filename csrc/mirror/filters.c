#include "filters.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

/* linux/pkt_sched.h, which may be older than clsact (Linux 4.5). */
#define CLSACT_INGRESS 0xfffffff2U
#define CLSACT_EGRESS 0xfffffff3U

#define BUFFER_SIZE 32768 /* as much as the kernel puts into one answer */

struct request {
    struct nlmsghdr header;
    struct tcmsg filter;
};

static int request_list(int fd, uint32_t ifindex, uint32_t parent)
{
    struct request request = {
        .header = {.nlmsg_len = sizeof(request),
                   .nlmsg_type = RTM_GETTFILTER,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .filter = {.tcm_family = AF_UNSPEC, .tcm_ifindex = (int)ifindex, .tcm_parent = parent},
    };

    return send(fd, &request, sizeof(request), 0) < 0 ? -errno : 0;
}

static void note(const struct tcmsg *filter, uint32_t parent, struct rf_filters *filters)
{
    bool is_ours = parent == CLSACT_INGRESS && filter->tcm_info >> 16 == RF_FILTER_PRIORITY;
    unsigned slot = rf_filter_slot(filter->tcm_handle);

    if (is_ours && filter->tcm_handle == 0)
        return; /* stands for all of that priority */
    if (!is_ours || slot >= RF_FILTER_SLOTS) {
        filters->others = true;
        return;
    }
    filters->handles[slot] = filter->tcm_handle;
    if (filter->tcm_handle & RF_FILTER_OWNS_QDISC)
        filters->owns_qdisc = true;
}

/* Reads one answer: 1 when more are to come. */
static int read_answer(int fd, uint32_t parent, struct rf_filters *filters)
{
    union {
        struct nlmsghdr header;
        char bytes[BUFFER_SIZE];
    } answer;
    ssize_t received = recv(fd, &answer, sizeof(answer), 0);

    if (received < 0)
        return -errno;
    unsigned left = (unsigned)received;
    for (struct nlmsghdr *at = &answer.header; NLMSG_OK(at, left);
         at = NLMSG_NEXT(at, left)) {
        if (at->nlmsg_type == NLMSG_DONE)
            return 0;
        if (at->nlmsg_type == NLMSG_ERROR) {
            const struct nlmsgerr *error = NLMSG_DATA(at);
            return error->error < 0 ? error->error : -EPROTO;
        }
        if (at->nlmsg_type == RTM_NEWTFILTER)
            note(NLMSG_DATA(at), parent, filters);
    }
    return 1;
}

int rf_filters_list(uint32_t ifindex, struct rf_filters *ret_filters)
{
    static const uint32_t PARENTS[] = {CLSACT_INGRESS, CLSACT_EGRESS};
    struct rf_filters filters = {0};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    int r = 0;

    if (fd < 0)
        return -errno;
    for (unsigned i = 0; i < 2 && r == 0; i++) {
        r = request_list(fd, ifindex, PARENTS[i]);
        for (bool more = r == 0; more; more = r > 0)
            r = read_answer(fd, PARENTS[i], &filters);
    }
    close(fd);
    if (r == -ENODEV)
        r = 0;
    if (r == 0)
        *ret_filters = filters;
    return r;
}
