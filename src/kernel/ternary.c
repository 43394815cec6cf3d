/* Range coding of dense masks and their signs. The format is drawn in fatwood/codec/ternary.py.
 *
 * A step of the reader must wait for a division and for what is looked up with its result; but segments do not depend
 * on each other, so some are read side by side, and the others' steps fill the time that one's waits.
 */
#include "bits.h"
#include "fatwood_kernel.h"

enum {
    SEGMENT = 8192,      /* bytes of the mask in a segment */
    LANES = 3,           /* segments read side by side */
    STEP = 3,            /* bytes that a byte of the mask and its signs can take */
    BUCKET_BITS = 3,     /* cumulative frequencies are looked up without these low bits */
    BUCKETS = 1 << (16 - BUCKET_BITS)
};

#define RARELY(condition) __builtin_expect(condition, 0)

/* How many bits are set in a byte. */
#define BITS_2(c) c, c + 1, c + 1, c + 2
#define BITS_4(c) BITS_2(c), BITS_2(c + 1), BITS_2(c + 1), BITS_2(c + 2)
#define BITS_6(c) BITS_4(c), BITS_4(c + 1), BITS_4(c + 1), BITS_4(c + 2)
static const uint8_t bits_set[256] = {BITS_6(0), BITS_6(1), BITS_6(1), BITS_6(2)};

/* Sets cumulative[x] = the sum of the frequencies below x. Returns 0, or -1 when they cannot work. */
static int accumulate(const uint32_t *frequencies, uint32_t *cumulative) {
    uint64_t sum = 0;
    for (int x = 0; x < 256; x++) {
        if (frequencies[x] == 0) {
            return -1;
        }
        cumulative[x] = (uint32_t)sum;
        sum += frequencies[x];
    }
    cumulative[256] = (uint32_t)sum;
    return sum == 65536 ? 0 : -1;
}

void fw_ternary_histogram(const int64_t *positions, int64_t count, int64_t n, int64_t *histogram9) {
    int64_t at_least[4][16] = {{0}}; /* bytes with that many bits; in four parts, so that no sum waits for the last */
    int64_t before = -1, run = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t byte = positions[i] >> 3;
        run = (run & -(int64_t)(byte == before)) + 1;
        at_least[i & 3][run & 15]++;
        before = byte;
    }
    histogram9[0] = n / 8 + (n % 8 != 0);
    for (int c = 8; c > 0; c--) {
        histogram9[c] = 0;
        for (int part = 0; part < 4; part++) {
            histogram9[c] += at_least[part][c] - at_least[part][c + 1];
        }
        histogram9[0] -= histogram9[c];
    }
}

/* How many bits a range in 2**40 ... 2**56 - 1 must be shifted up, in whole bytes, to be 2**48 or more. Taken from the
 * sign of a difference, since a branch could not be predicted, and counting leading zeros is slow on x86-64 processors
 * as old as the compiler must assume. */
static inline unsigned renormalisation_by_one(uint64_t range) {
    return (unsigned)((range - ((uint64_t)1 << 48)) >> 60) & 8;
}

/* The same for a range in 2**32 ... 2**56 - 1. */
static inline unsigned renormalisation(uint64_t range) {
    return renormalisation_by_one(range) + ((unsigned)((range - ((uint64_t)1 << 40)) >> 60) & 8);
}

/* ---- writing ---- */

struct encoder {
    uint64_t low, range;
    uint8_t *out;
};

static inline void encode(struct encoder *encoder, uint64_t below, uint64_t range) {
    uint64_t low = encoder->low + below;
    if (low >> 56 != 0) { /* never before the first byte: low + range cannot pass 2**56 there */
        uint8_t *byte = encoder->out;
        do {
            ++*--byte;
        } while (*byte == 0);
        low &= ((uint64_t)1 << 56) - 1;
    }
    unsigned bits = renormalisation(range);
    store_big(encoder->out, low << 8);
    encoder->out += bits >> 3;
    encoder->low = (low << bits) & (((uint64_t)1 << 56) - 1);
    encoder->range = range << bits;
}

/* Writes the fewest bytes that stand for a number in low ... low + range - 1 whatever follows, and no zeros at the
 * end. */
static uint8_t *end_segment(struct encoder *encoder, uint8_t *start) {
    for (unsigned m = 0; m < 8; m++) {
        uint64_t unit = (uint64_t)1 << (56 - 8 * m);
        uint64_t value = (encoder->low + unit - 1) & ~(unit - 1);
        if (value < encoder->low + encoder->range) {
            encode(encoder, value - encoder->low, (uint64_t)1 << 55);
            store_big(encoder->out, encoder->low << 8);
            encoder->out += m;
            break;
        }
    }
    uint8_t *end = encoder->out;
    while (end > start && end[-1] == 0) {
        end--;
    }
    return end;
}

/* Sets the bits of the mask at positions from `next` on, as long as they are in the segment. Returns where the next
 * segment begins, or -1 when they are not ascending. */
static int64_t mark(const int64_t *positions, int64_t next, int64_t count, int64_t first, int64_t end, uint8_t *mask) {
    int64_t before = first - 1;
    memset(mask, 0, SEGMENT);
    for (; next < count && positions[next] < end; next++) {
        int64_t bit = positions[next] - first;
        if (positions[next] <= before) {
            return -1;
        }
        before = positions[next];
        mask[bit >> 3] |= (uint8_t)(1u << (bit & 7));
    }
    return next;
}

static uint8_t *write_segment(const uint8_t *mask, int64_t bytes, const uint8_t *negative, int64_t next, int64_t count,
                              const uint32_t *cumulative, uint8_t *out) {
    struct encoder encoder = {0, (uint64_t)1 << 56, out};
    for (int64_t i = 0; i < bytes; i++) {
        unsigned x = mask[i], hits = bits_set[x];
        uint64_t unit = encoder.range >> 16;
        encode(&encoder, cumulative[x] * unit, (cumulative[x + 1] - cumulative[x]) * unit);
        uint64_t signs = bits_from(negative, next, count) & ((1u << hits) - 1);
        next += hits;
        unit = encoder.range >> hits; /* without hits, this changes nothing */
        encode(&encoder, signs * unit, unit);
    }
    return end_segment(&encoder, out);
}

int64_t fw_ternary_pack(const int64_t *positions, const uint8_t *negative, int64_t count, int64_t n,
                        const uint32_t *frequencies256, uint8_t *out, int64_t capacity) {
    uint32_t cumulative[257];
    uint8_t mask[SEGMENT], segment[STEP * SEGMENT + 16];
    if (n < 0 || count < 0 || accumulate(frequencies256, cumulative) != 0) {
        return -1;
    }
    int64_t bytes = n / 8 + (n % 8 != 0), segments = bytes / SEGMENT + (bytes % SEGMENT != 0);
    int64_t next = 0, at = segments > 1 ? 2 * (segments - 1) : 0;
    if (at > capacity) {
        return -1;
    }
    for (int64_t s = 0; s < segments; s++) {
        int64_t first = s * 8 * SEGMENT;
        int64_t after = mark(positions, next, count, first, first + smaller(8 * SEGMENT, n - first), mask);
        if (after < 0) {
            return -1;
        }
        uint8_t *end = write_segment(mask, smaller(SEGMENT, bytes - s * SEGMENT), negative, next, count, cumulative,
                                     segment);
        int64_t length = end - segment;
        if (length > capacity - at) {
            return -1;
        }
        memcpy(out + at, segment, (size_t)length);
        at += length;
        next = after;
        if (s < segments - 1) {
            out[2 * s] = (uint8_t)length;
            out[2 * s + 1] = (uint8_t)(length >> 8);
        }
    }
    return next == count ? at : -1;
}

/* ---- reading ---- */

struct symbol {
    double scale, offset; /* signs = place among the frequencies * scale - offset */
    uint32_t cumulative, frequency;
    uint32_t hits;
};

struct table {
    struct symbol symbols[256];
    uint8_t first[BUCKETS + 1]; /* the byte value that the first cumulative frequency of a bucket belongs to */
};

/* What is read from segments, before anyone knows where in the message's positions it goes. */
struct segments {
    uint8_t mask[LANES][SEGMENT + 64]; /* so that segments differ in their cache lines */
    uint8_t signs[LANES][SEGMENT + 64];
};

static __attribute__((noinline)) uint64_t last_bytes(const uint8_t *payload, int64_t next, int64_t end) {
    return next < end ? FW_BIG(FW_LITTLE(load_little_part(payload + next, end - next))) : 0;
}

static inline uint64_t next_bytes(const uint8_t *payload, int64_t next, int64_t end) {
    return end - next >= 8 ? load_big(payload + next) : last_bytes(payload, next, end);
}

/* The symbol that a code belongs to, looked for from a near one on; 256 when there is none. */
static __attribute__((noinline)) unsigned find(const struct table *table, uint64_t code, uint64_t unit, unsigned near) {
    unsigned x = near;
    while (x > 0 && code < table->symbols[x].cumulative * unit) {
        x--;
    }
    while (x < 256 && code >= (uint64_t)(table->symbols[x].cumulative + table->symbols[x].frequency) * unit) {
        x++;
    }
    return x;
}

/* Reads `bytes` bytes of mask and their signs from each of some segments; l is between ends[l] and ends[l + 1]. Returns
 * 0, or what is wrong.
 *
 * One division in floating point says where a code lies among the frequencies, and how far in its symbol's own: that is
 * the signs. Both are then checked with integers, and put right in the rare cases that need it. Each stage is done for
 * all lanes before the next one begins, since what a processor can look ahead is less than one whole step. */
static inline __attribute__((always_inline)) int read_lanes(const uint8_t *payload, const int64_t *ends, int lanes,
                                                            int64_t bytes, const struct table *table,
                                                            struct segments *to) {
    uint64_t code[LANES], range[LANES], unit[LANES], ahead[LANES], number[LANES];
    int64_t next[LANES]; /* may pass the end: zeros are read there */
    double place[LANES];
    unsigned x[LANES];
    for (int l = 0; l < lanes; l++) {
        code[l] = next_bytes(payload, ends[l], ends[l + 1]) >> 8;
        range[l] = (uint64_t)1 << 56;
        next[l] = ends[l] + 7;
    }
    for (int64_t i = 0; i < bytes; i++) {
        int wrong = 0;
        for (int l = 0; l < lanes; l++) {
            unit[l] = range[l] >> 16;
            place[l] = (double)(int64_t)code[l] / (double)(int64_t)unit[l]; /* at most 65536, since code < range */
            ahead[l] = next_bytes(payload, next[l], ends[l + 1]);
        }
        for (int l = 0; l < lanes; l++) {
            x[l] = table->first[(int)place[l] >> BUCKET_BITS];
            range[l] = table->symbols[x[l]].frequency * unit[l];
            code[l] -= table->symbols[x[l]].cumulative * unit[l];
            wrong |= code[l] >= range[l]; /* as unsigned numbers: below the symbol, too */
        }
        for (int l = 0; RARELY(wrong) && l < lanes; l++) {
            code[l] += table->symbols[x[l]].cumulative * unit[l];
            x[l] = find(table, code[l], unit[l], x[l]);
            if (x[l] == 256) {
                return FW_SYMBOL;
            }
            range[l] = table->symbols[x[l]].frequency * unit[l];
            code[l] -= table->symbols[x[l]].cumulative * unit[l];
        }
        wrong = 0;
        for (int l = 0; l < lanes; l++) {
            const struct symbol *symbol = &table->symbols[x[l]];
            unsigned bits = renormalisation(range[l]);
            code[l] = code[l] << bits | (ahead[l] >> 8) >> (56 - bits);
            ahead[l] <<= bits;
            next[l] += bits >> 3;
            unit[l] = (range[l] << bits) >> symbol->hits;
            number[l] = (uint64_t)(int)(place[l] * symbol->scale - symbol->offset);
            code[l] -= number[l] * unit[l];
            wrong |= code[l] >= unit[l];
        }
        for (int l = 0; RARELY(wrong) && l < lanes; l++) {
            code[l] += number[l] * unit[l];
            number[l] = code[l] / unit[l];
            code[l] %= unit[l];
        }
        wrong = 0;
        for (int l = 0; l < lanes; l++) {
            wrong |= number[l] >> table->symbols[x[l]].hits != 0;
            unsigned bits = renormalisation_by_one(unit[l]);
            code[l] = code[l] << bits | (ahead[l] >> 8) >> (56 - bits);
            range[l] = unit[l] << bits;
            next[l] += bits >> 3;
            to->mask[l][i] = (uint8_t)x[l];
            to->signs[l][i] = (uint8_t)number[l];
        }
        if (RARELY(wrong)) {
            return FW_SIGNS;
        }
    }
    for (int l = 0; l < lanes; l++) {
        if (ends[l + 1] > next[l]) {
            return FW_UNREAD;
        }
    }
    return FW_OK;
}

/* Where hits go. */
struct hits {
    int64_t *positions;
    uint8_t *negative;
    int64_t done, count;
};

/* Writes the hits of a segment. Returns 0, or what is wrong. */
static int emit(const uint8_t *mask, const uint8_t *signs, int64_t bytes, int64_t first, int64_t n, struct hits *to) {
    int64_t done = to->done;
    for (int64_t i = 0; i < bytes; i += 8) {
        int64_t sign = done, base = first + 8 * i;
        uint8_t last[72], *negative = to->negative, *out = negative + sign;
        int near = to->count - done < 72; /* room for all that 8 bytes can hold, and 8 more to overwrite */
        if (RARELY(near)) {
            int64_t hits = 0;
            for (int b = 0; b < 8; b++) {
                hits += bits_set[mask[i + b]];
            }
            if (hits > to->count - done) {
                return FW_HITS;
            }
            out = last;
        }
        for (uint64_t word = load_little(mask + i); word != 0; word &= word - 1) {
            to->positions[done++] = base + __builtin_ctzll(word);
        }
        for (int b = 0; b < 8; b++) {
            store_little(out, bytes_of_bits(signs[i + b]));
            out += bits_set[mask[i + b]];
        }
        if (RARELY(near)) {
            memcpy(negative + sign, last, (size_t)(done - sign));
        }
    }
    if (done > to->done && to->positions[done - 1] >= n) {
        return FW_POSITION;
    }
    to->done = done;
    return FW_OK;
}

static void fill_table(const uint32_t *cumulative, struct table *table) {
    for (unsigned x = 0; x < 256; x++) {
        uint32_t frequency = cumulative[x + 1] - cumulative[x];
        double scale = (double)(1 << bits_set[x]) / frequency;
        struct symbol symbol = {scale, cumulative[x] * scale, cumulative[x], frequency, bits_set[x]};
        table->symbols[x] = symbol;
    }
    unsigned x = 0;
    for (uint32_t bucket = 0; bucket < BUCKETS; bucket++) {
        while (cumulative[x + 1] <= bucket << BUCKET_BITS) {
            x++;
        }
        table->first[bucket] = (uint8_t)x;
    }
    table->first[BUCKETS] = 255;
}

int64_t fw_ternary_unpack(const uint8_t *payload, int64_t length, int64_t count, int64_t n,
                          const uint32_t *frequencies256, int64_t *positions, uint8_t *negative) {
    uint32_t cumulative[257];
    struct table table;
    struct segments read;
    if (length < 0 || count < 0 || count > n || accumulate(frequencies256, cumulative) != 0) {
        return FW_BAD_ARGUMENT;
    }
    int64_t bytes = n / 8 + (n % 8 != 0), segments = bytes / SEGMENT + (bytes % SEGMENT != 0);
    int64_t ends[LANES + 1] = {segments > 1 ? 2 * (segments - 1) : 0};
    if (ends[0] > length || (segments == 0 && length > 0)) {
        return FW_SEGMENTS;
    }
    fill_table(cumulative, &table);
    struct hits to = {positions, negative, 0, count};
    for (int64_t s = 0; s < segments;) {
        int together = s + LANES < segments ? LANES : 1; /* the last segment may be shorter: alone */
        int64_t mask_bytes = smaller(SEGMENT, bytes - s * SEGMENT);
        for (int l = 0; l < together; l++) {
            const uint8_t *own = payload + 2 * (s + l);
            ends[l + 1] = s + l == segments - 1 ? length : ends[l] + own[0] + 256 * own[1];
            if (ends[l + 1] > length || ends[l + 1] < ends[l]) {
                return FW_SEGMENTS;
            }
            if (ends[l + 1] > ends[l] && payload[ends[l + 1] - 1] == 0) {
                return FW_TRAILING_ZERO;
            }
        }
        memset(read.mask[0] + mask_bytes, 0, (size_t)(SEGMENT - mask_bytes));
        memset(read.signs[0] + mask_bytes, 0, (size_t)(SEGMENT - mask_bytes));
        int wrong = together == LANES ? read_lanes(payload, ends, LANES, SEGMENT, &table, &read)
                                      : read_lanes(payload, ends, 1, mask_bytes, &table, &read);
        for (int l = 0; wrong == FW_OK && l < together; l++) {
            wrong = emit(read.mask[l], read.signs[l], mask_bytes, (s + l) * 8 * SEGMENT, n, &to);
        }
        if (wrong != FW_OK) {
            return wrong;
        }
        ends[0] = ends[together];
        s += together;
    }
    return to.done == count ? FW_OK : FW_HITS;
}
