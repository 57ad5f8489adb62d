/*
 * access.h - reads and writes packet bytes.
 *
 * In place, by a pointer, where the bytes are at the offset that most packets
 * have them at: that takes a tenth of the time of a helper. The offset has to
 * be a constant, for the verifier allows a process without CAP_PERFMON no
 * other; anywhere else, and beyond the linear part, the helpers do it.
 */
#ifndef RF_MIRROR_ACCESS_H
#define RF_MIRROR_ACCESS_H

#include <stdint.h>

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/*
 * Before a loop: without CAP_PERFMON the verifier also follows what a processor
 * may do when it guesses wrong, and in a loop it might guess so for ever.
 */
#define UNROLL _Pragma("clang loop unroll(full)")

typedef uint32_t __attribute__((may_alias)) word;

/* Copies so many bytes, a multiple of 4 or just one. */
static __always_inline void copy(void *to, const void *from, uint32_t size)
{
    if (size == 1)
        *(uint8_t *)to = *(const uint8_t *)from;
    UNROLL
    for (uint32_t i = 0; i < size / sizeof(word); i++)
        ((word *)to)[i] = ((const word *)from)[i];
}

/* Reads what is at an offset; `usual`, a constant, is the offset that it mostly is. */
static __always_inline int load(struct __sk_buff *skb, uint32_t at, const uint32_t usual, void *to,
                                const uint32_t size)
{
    if (at == usual) {
        const uint8_t *from = (const uint8_t *)(long)skb->data + usual;
        if (from + size <= (const uint8_t *)(long)skb->data_end) {
            copy(to, from, size);
            return 0;
        }
    }
    return (int)bpf_skb_load_bytes(skb, at, to, size);
}

/* Writes it. No checksum is moved along. */
static __always_inline int store(struct __sk_buff *skb, uint32_t at, const uint32_t usual,
                                 const void *from, const uint32_t size)
{
    if (at == usual) {
        uint8_t *to = (uint8_t *)(long)skb->data + usual;
        if (to + size <= (uint8_t *)(long)skb->data_end) {
            copy(to, from, size);
            return 0;
        }
    }
    return (int)bpf_skb_store_bytes(skb, at, from, size, 0);
}

#endif
