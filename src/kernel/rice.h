/* What planning, writing and reading of Golomb-Rice share. The format, and the rules by which a writer chooses, are
 * drawn in fatwood/codec/rice.py.
 *
 * Everything works on blocks of 32 gaps: 32 remainders of k bits fill 4 * k whole bytes, so a block's remainders are
 * found without reading what is before them, and only the unary quotients are read one after another.
 */
#ifndef FATWOOD_RICE_H
#define FATWOOD_RICE_H

#include "bits.h"
#include "fatwood_kernel.h"

enum { BLOCK = 32, LARGEST_K = 57, SLACK = 8 };

struct source {
    const int64_t *positions;
    const uint8_t *negative;
    int64_t count;
};

/* A flip is a place where a sign differs from the one before it. */

/* 64 places from `from` on: bit j is set when sign from + j + 1 differs from sign from + j. */
static inline uint64_t flips_from(const uint8_t *negative, int64_t from, int64_t count) {
    uint64_t word = 0;
    for (int64_t i = 0; i < 64 && from + i + 1 < count; i += 8) {
        uint64_t signs = bits_from(negative, from + i, count), next = bits_from(negative, from + i + 1, count);
        word |= (signs ^ next) << i;
    }
    int64_t places = count - 1 - from;
    return places >= 64 ? word : word & (((uint64_t)1 << places) - 1);
}

static inline int64_t varint_bytes(uint64_t value) {
    int64_t bytes = 1;
    for (; value >= 0x80; value >>= 7) {
        bytes++;
    }
    return bytes;
}

#endif
