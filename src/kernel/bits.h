/* Words of bits, and what a reader can find wrong. Shared by the coders; needs GCC or Clang.
 *
 * Every load and store goes through memcpy, so no address need be aligned and the byte order of the machine is not
 * seen.
 */
#ifndef FATWOOD_BITS_H
#define FATWOOD_BITS_H

#include <stdint.h>
#include <string.h>

/* What unpacking returns; fatwood/codec/native_coders.py has a sentence for each. */
enum {
    FW_OK = 0,
    FW_BAD_ARGUMENT = 1,
    FW_TOO_SHORT = 2,
    FW_TOO_LONG = 3,
    FW_PADDING = 4,
    FW_POSITION = 5,
    FW_PARAMETER = 6,
    FW_BLOCKS = 7,
    FW_FLIPS_BYTE = 8,
    FW_VARINT = 9,
    FW_FLIPS = 10,
    FW_SEGMENTS = 11,
    FW_TRAILING_ZERO = 12,
    FW_UNREAD = 13,
    FW_SYMBOL = 14,
    FW_SIGNS = 15,
    FW_HITS = 16
};

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define FW_LITTLE(word) __builtin_bswap64(word)
#define FW_BIG(word) (word)
#else
#define FW_LITTLE(word) (word)
#define FW_BIG(word) __builtin_bswap64(word)
#endif

/* Eight bytes, the first one lowest. */
static inline uint64_t load_little(const uint8_t *bytes) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return FW_LITTLE(word);
}

static inline void store_little(uint8_t *bytes, uint64_t word) {
    word = FW_LITTLE(word);
    memcpy(bytes, &word, sizeof word);
}

/* Eight bytes, the first one highest. */
static inline uint64_t load_big(const uint8_t *bytes) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return FW_BIG(word);
}

static inline void store_big(uint8_t *bytes, uint64_t word) {
    word = FW_BIG(word);
    memcpy(bytes, &word, sizeof word);
}

/* The first `length` bytes, 0 to 7 of them, and zeros after them; the first one lowest. */
static inline uint64_t load_little_part(const uint8_t *bytes, int64_t length) {
    uint64_t word = 0;
    for (int64_t i = 0; i < length; i++) {
        word |= (uint64_t)bytes[i] << (8 * i);
    }
    return word;
}

/* Eight booleans, one a byte, to eight bits, the first one lowest; and back. */
static inline uint64_t bits_of_bytes(uint64_t bytes) {
    return ((bytes & 0x0101010101010101u) * 0x0102040810204080u) >> 56;
}

static inline uint64_t bytes_of_bits(uint64_t bits) {
    uint64_t spread = ((bits & 0xff) * 0x0101010101010101u) & 0x8040201008040201u;
    return ((spread + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
}

/* Eight booleans from `from` on, to bits; what lies behind `count` reads as zero. */
static inline uint64_t bits_from(const uint8_t *booleans, int64_t from, int64_t count) {
    return bits_of_bytes(from + 8 <= count ? load_little(booleans + from)
                                           : load_little_part(booleans + from, count - from));
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t bytes_for(int64_t bits) { return (bits + 7) >> 3; }

#endif
