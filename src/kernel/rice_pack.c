/* Golomb-Rice: writing as planned; see rice.h. */
#include "rice.h"

/* Where the remainders and the quotients of the next gap go. `word` has the quotient bits not yet written. */
struct writer {
    uint8_t *remainders, *remainders_end;
    uint8_t *quotients, *end;
    uint64_t word, fill;
};

/* Writes 32 remainders, 4 * k bytes; up to 8 more are overwritten. */
static inline void put_remainders(uint8_t *out, const uint64_t *gaps, unsigned k) {
    uint64_t mask = ((uint64_t)1 << k) - 1, word = 0;
    unsigned fill = 0;
    if (k <= 14) {
        for (int i = 0; i < BLOCK; i += 4) {
            uint64_t four = (gaps[i] & mask) | (gaps[i + 1] & mask) << k | (gaps[i + 2] & mask) << (2 * k) |
                            (gaps[i + 3] & mask) << (3 * k);
            word |= four << fill;
            fill += 4 * k;
            store_little(out, word);
            out += fill >> 3;
            word >>= fill & ~7u;
            fill &= 7;
        }
        return;
    }
    for (int i = 0; i < BLOCK; i++) {
        word |= (gaps[i] & mask) << fill;
        fill += k;
        store_little(out, word);
        out += fill >> 3;
        word = fill >= 64 ? 0 : word >> (fill & ~7u);
        fill &= 7;
    }
}

/* Writes m gaps; gaps[m ... 31] are zero. Returns 0, or -1 where there is no room. */
static inline int put_block(struct writer *to, const uint64_t *gaps, int64_t m, unsigned k) {
    int64_t bytes = bytes_for(m * k), room = to->remainders_end - to->remainders;
    if (bytes + SLACK <= room && m == BLOCK) {
        put_remainders(to->remainders, gaps, k);
    } else if (bytes <= room && bytes > 0) {
        uint8_t local[BLOCK * LARGEST_K / 8 + SLACK];
        put_remainders(local, gaps, k);
        memcpy(to->remainders, local, (size_t)bytes);
    } else if (bytes > room) {
        return -1;
    }
    to->remainders += bytes;
    uint64_t word = to->word, fill = to->fill;
    for (int64_t i = 0; i < m; i++) {
        fill += gaps[i] >> k;
        while (fill >= 64) {
            if (to->end - to->quotients < 8) {
                return -1;
            }
            store_little(to->quotients, word);
            to->quotients += 8;
            word = 0;
            fill -= 64;
        }
        word |= (uint64_t)1 << fill;
        fill++;
    }
    to->word = word;
    to->fill = fill;
    return 0;
}

/* Starts a pair of streams at `out`. Returns 0, or -1 where there is no room. */
static int start(struct writer *to, uint8_t *out, uint8_t *end, int64_t remainder_bits) {
    int64_t bytes = bytes_for(remainder_bits);
    if (bytes > end - out) {
        return -1;
    }
    to->remainders = out;
    to->remainders_end = to->quotients = out + bytes;
    to->end = end;
    to->word = to->fill = 0;
    return 0;
}

/* Writes the last quotient bits. Returns the end of the streams, or NULL where there is no room. */
static uint8_t *finish(struct writer *to) {
    int64_t bytes = bytes_for((int64_t)to->fill);
    if (bytes > to->end - to->quotients || to->remainders != to->remainders_end) {
        return NULL;
    }
    uint8_t last[8];
    store_little(last, to->word);
    memcpy(to->quotients, last, (size_t)bytes);
    return to->quotients + bytes;
}

/* Writes the head of the flips. Returns where it ends, or NULL where there is no room. */
static uint8_t *put_flips_head(const struct source *source, int64_t flips, unsigned k, uint8_t *out, uint8_t *end) {
    uint64_t value = (uint64_t)flips;
    if (end - out < 1 + varint_bytes(value)) {
        return NULL;
    }
    *out++ = (uint8_t)(k | (source->negative[0] & 1u) << 7);
    for (; value >= 0x80; value >>= 7) {
        *out++ = (uint8_t)(value | 0x80);
    }
    *out++ = (uint8_t)value;
    return out;
}

/* Writes the flips. Returns where they end, or NULL where they do not fit or are not as many as planned. */
static uint8_t *put_flips(const struct source *source, int64_t flips, unsigned k, uint8_t *out, uint8_t *end) {
    uint64_t gaps[BLOCK];
    int64_t m = 0, seen = 0, before = -1;
    struct writer to;
    if (start(&to, out, end, flips * k) != 0) {
        return NULL;
    }
    for (int64_t from = 0; from < source->count - 1; from += 64) {
        for (uint64_t word = flips_from(source->negative, from, source->count); word != 0; word &= word - 1) {
            int64_t place = from + __builtin_ctzll(word);
            gaps[m++] = (uint64_t)(place - before - 1);
            before = place;
            seen++;
            if (m == BLOCK) {
                if (put_block(&to, gaps, BLOCK, k) != 0) {
                    return NULL;
                }
                m = 0;
            }
        }
    }
    memset(gaps + m, 0, sizeof(uint64_t) * (size_t)(BLOCK - m));
    if (seen != flips || put_block(&to, gaps, m, k) != 0) {
        return NULL;
    }
    return finish(&to);
}

static uint8_t *put_signs(const struct source *source, uint8_t *out, uint8_t *end) {
    if (bytes_for(source->count) > end - out) {
        return NULL;
    }
    for (int64_t from = 0; from < source->count; from += 8) {
        *out++ = (uint8_t)bits_from(source->negative, from, source->count);
    }
    return out;
}

/* Writes zigzag(k - k of the block before) in unary. Returns where it ends, or NULL where there is no room. */
static uint8_t *put_table(const uint8_t *k, int64_t blocks, uint8_t *out, uint8_t *end) {
    uint64_t gaps[BLOCK] = {0};
    struct writer to;
    if (start(&to, out, end, 0) != 0) {
        return NULL;
    }
    for (int64_t b = 1; b < blocks; b++) {
        gaps[0] = k[b] > k[b - 1] ? 2u * (k[b] - k[b - 1]) : k[b] < k[b - 1] ? 2u * (k[b - 1] - k[b]) - 1u : 0u;
        if (put_block(&to, gaps, 1, 0) != 0) {
            return NULL;
        }
    }
    return finish(&to);
}

static uint8_t *put_gaps(const struct source *source, const uint8_t *k, int64_t blocks, uint8_t *out, uint8_t *end) {
    int64_t bits = 0, count = source->count;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t m = blocks == 1 ? count : smaller(BLOCK, count - b * BLOCK);
        bits += m * k[b];
    }
    struct writer to;
    if (start(&to, out, end, bits) != 0) {
        return NULL;
    }
    uint64_t gaps[BLOCK], before = UINT64_MAX;
    for (int64_t from = 0; from < count; from += BLOCK) {
        const int64_t *block = source->positions + from;
        int64_t m = smaller(BLOCK, count - from);
        if (m == BLOCK) {
            gaps[0] = (uint64_t)block[0] - before - 1;
            for (int i = 1; i < BLOCK; i++) {
                gaps[i] = (uint64_t)block[i] - (uint64_t)block[i - 1] - 1;
            }
            before = (uint64_t)block[BLOCK - 1];
        } else {
            memset(gaps, 0, sizeof gaps);
            for (int64_t i = 0; i < m; i++) {
                gaps[i] = (uint64_t)block[i] - before - 1;
                before = (uint64_t)block[i];
            }
        }
        if (put_block(&to, gaps, m, k[blocks == 1 ? 0 : from / BLOCK]) != 0) {
            return NULL;
        }
    }
    return finish(&to);
}

int64_t fw_rice_pack(const int64_t *positions, const uint8_t *negative, int64_t count, const uint8_t *k,
                     int64_t blocks, int64_t flips, int64_t flips_k, uint8_t *out, int64_t capacity) {
    struct source source = {positions, negative, count};
    if (count <= 0) {
        return count == 0 ? 0 : -1;
    }
    int planned = (blocks == 1 || (count > BLOCK && blocks == (count + BLOCK - 1) / BLOCK)) && flips >= -1 &&
                  flips < count && flips_k >= 0 && flips_k <= LARGEST_K && capacity >= 1;
    for (int64_t b = 0; planned && b < blocks; b++) {
        planned = k[b] <= LARGEST_K;
    }
    if (!planned) {
        return -1;
    }
    uint8_t *at = out, *end = out + capacity;
    *at++ = (uint8_t)(k[0] | (blocks > 1) << 6 | (flips >= 0) << 7);
    if (flips >= 0) {
        at = put_flips_head(&source, flips, (unsigned)flips_k, at, end);
    }
    if (at != NULL && blocks > 1) {
        at = put_table(k, blocks, at, end);
    }
    if (at != NULL) {
        at = flips < 0 ? put_signs(&source, at, end) : put_flips(&source, flips, (unsigned)flips_k, at, end);
    }
    if (at != NULL) {
        at = put_gaps(&source, k, blocks, at, end);
    }
    return at == NULL ? -1 : at - out;
}
