/* Golomb-Rice: the form with the fewest bytes; see rice.h. */
#include "rice.h"

/* Up to 32 gaps, the rest zero; as 32-bit numbers where they and their sum fit, for twice the lanes. */
struct gaps {
    uint64_t wide[BLOCK];
    uint32_t narrow[BLOCK];
    int fits;
};

/* Gaps, or quotients of gaps, summed after a shift. */
typedef uint64_t (*shifted_sum)(const void *source, unsigned k);

static void load_gaps(struct gaps *gaps, const int64_t *positions, int64_t from, int64_t length) {
    uint64_t before = from == 0 ? UINT64_MAX : (uint64_t)positions[from - 1];
    const int64_t *block = positions + from;
    gaps->fits = (uint64_t)block[length - 1] - before <= UINT32_MAX;
    if (gaps->fits && length == BLOCK) {
        gaps->narrow[0] = (uint32_t)block[0] - (uint32_t)before - 1;
        for (int i = 1; i < BLOCK; i++) {
            gaps->narrow[i] = (uint32_t)block[i] - (uint32_t)block[i - 1] - 1;
        }
        return;
    }
    memset(gaps->narrow, 0, sizeof gaps->narrow);
    memset(gaps->wide, 0, sizeof gaps->wide);
    for (int64_t i = 0; i < length; i++) {
        gaps->wide[i] = (uint64_t)block[i] - before - 1;
        gaps->narrow[i] = (uint32_t)gaps->wide[i];
        before = (uint64_t)block[i];
    }
}

static uint64_t block_sum(const void *source, unsigned k) {
    const struct gaps *gaps = source;
    if (!gaps->fits) {
        uint64_t sum = 0;
        for (int i = 0; i < BLOCK; i++) {
            sum += gaps->wide[i] >> k;
        }
        return sum;
    }
    uint32_t sum = 0;
    for (int i = 0; i < BLOCK && k < 32; i++) {
        sum += gaps->narrow[i] >> k;
    }
    return sum;
}

/* The smallest k that minimises sum(gap >> k) + length * k, from sums = those for guess - 1, guess, guess + 1. The sum
 * falls by ever less as k grows, so it is the first k from which it falls by no more than length. */
static inline unsigned settle(unsigned guess, const uint64_t *sums, uint64_t length, shifted_sum sum,
                              const void *source, uint64_t *least) {
    unsigned k = guess - 1;
    uint64_t here = sums[0], after = sums[1];
    if (here - after <= length) {
        for (; k > 0; k--) {
            uint64_t before = sum(source, k - 1);
            if (before - here > length) {
                break;
            }
            here = before;
        }
    } else {
        k = guess;
        here = sums[1];
        after = sums[2];
        for (; k < LARGEST_K && here - after > length; k++) {
            here = after;
            after = sum(source, k + 2);
        }
    }
    *least = here;
    return k;
}

/* A k near the best for geometric gaps of this mean, log2(0.96 * mean) (Kiely, "Selecting the Golomb parameter in Rice
 * coding", 2004), in 1 ... 56. */
static unsigned guess_parameter(uint64_t sum, uint64_t length) {
    uint64_t mean = sum / length;
    uint64_t scaled = mean - mean / 26;
    unsigned k = scaled == 0 ? 0 : 63 - (unsigned)__builtin_clzll(scaled);
    return k < 1 ? 1 : k > LARGEST_K - 1 ? LARGEST_K - 1 : k;
}

static uint64_t gap_sum(const void *opaque, unsigned k) {
    const struct source *source = opaque;
    uint64_t before = UINT64_MAX, sum = 0;
    for (int64_t i = 0; i < source->count; i++) {
        sum += ((uint64_t)source->positions[i] - before - 1) >> k;
        before = (uint64_t)source->positions[i];
    }
    return sum;
}

/* Fills k and sets the bits of the one-block and of the many-block form to what table, remainders, quotients take. */
static void plan_gaps(const struct source *source, uint8_t *k, int64_t *bytes, int64_t *blocks) {
    int64_t count = source->count;
    uint64_t length = (uint64_t)count, total[3] = {0, 0, 0};
    uint64_t table_bits = 0, remainder_bits = 0, quotient_bits = length;
    unsigned guess = guess_parameter((uint64_t)source->positions[count - 1] + 1 - length, length);
    for (int64_t from = 0; from < count; from += BLOCK) {
        struct gaps gaps;
        int64_t m = smaller(BLOCK, count - from);
        load_gaps(&gaps, source->positions, from, m);
        uint64_t least, sums[3];
        for (unsigned i = 0; i < 3; i++) {
            sums[i] = block_sum(&gaps, guess - 1 + i);
            total[i] += sums[i];
        }
        unsigned own = settle(guess, sums, (uint64_t)m, block_sum, &gaps, &least);
        if (from > 0) {
            unsigned before = k[from / BLOCK - 1];
            table_bits += 1 + (own > before ? 2 * (own - before) : own < before ? 2 * (before - own) - 1 : 0);
        }
        k[from / BLOCK] = (uint8_t)own;
        remainder_bits += own * (uint64_t)m;
        quotient_bits += least;
    }
    uint64_t least;
    unsigned common = settle(guess, total, length, gap_sum, source, &least);
    int64_t one = bytes_for((int64_t)(common * length)) + bytes_for((int64_t)(least + length));
    int64_t many = bytes_for((int64_t)table_bits) + bytes_for((int64_t)remainder_bits) +
                   bytes_for((int64_t)quotient_bits);
    *blocks = many < one ? (count + BLOCK - 1) / BLOCK : 1;
    *bytes = many < one ? many : one;
    if (*blocks == 1) {
        k[0] = (uint8_t)common;
    }
}

static uint64_t flip_gap_sum(const void *opaque, unsigned k) {
    const struct source *source = opaque;
    int64_t before = -1;
    uint64_t sum = 0;
    for (int64_t from = 0; from < source->count - 1; from += 64) {
        for (uint64_t word = flips_from(source->negative, from, source->count); word != 0; word &= word - 1) {
            int64_t place = from + __builtin_ctzll(word);
            sum += (uint64_t)(place - before - 1) >> k;
            before = place;
        }
    }
    return sum;
}

struct flip_counts {
    int64_t flips; /* how many */
    int64_t apart; /* how many of them do not follow another flip or the start at once */
    int64_t last;  /* the place of the last one, or -1 */
};

static struct flip_counts count_flips(const uint8_t *negative, int64_t count) {
    struct flip_counts counts = {0, 0, -1};
    int64_t i = 1, before = 1;
    const uint64_t ones = 0x0101010101010101u;
    while (i + 8 <= count) { /* 8 places at a time, in sums of one byte that cannot overflow in 255 rounds */
        uint64_t flips = 0, apart = 0;
        for (int round = 0; round < 255 && i + 8 <= count; round++, i += 8) {
            uint64_t signs = load_little(negative + i), earlier = load_little(negative + i - 1);
            uint64_t flip = (signs ^ earlier) & ones;
            uint64_t follows = flip << 8 | (uint64_t)before;
            flips += flip;
            apart += flip & ~follows;
            before = (int64_t)(flip >> 56);
        }
        for (int byte = 0; byte < 64; byte += 8) {
            counts.flips += (int64_t)(flips >> byte & 0xff);
            counts.apart += (int64_t)(apart >> byte & 0xff);
        }
    }
    for (; i < count; i++) {
        int64_t flip = (negative[i] ^ negative[i - 1]) & 1;
        counts.flips += flip;
        counts.apart += flip & ~before;
        before = flip;
    }
    for (i = count - 1; counts.flips > 0 && counts.last < 0; i--) {
        counts.last = ((negative[i] ^ negative[i - 1]) & 1) != 0 ? i - 1 : -1;
    }
    return counts;
}

/* Sets how signs are written; returns the bytes that takes. */
static int64_t plan_signs(const struct source *source, int64_t *flips, int64_t *flips_k) {
    int64_t plain = bytes_for(source->count);
    struct flip_counts counts = count_flips(source->negative, source->count);
    uint64_t gaps = (uint64_t)(counts.last + 1 - counts.flips), length = (uint64_t)counts.flips;
    *flips = -1;
    *flips_k = 0;
    /* No k needs fewer bits than this, since g >> 1 is at least (g - 1) / 2; signs by chance end here. */
    int64_t halves = ((int64_t)gaps - counts.apart) / 2;
    int64_t bound = smaller(counts.last + 1, counts.flips * 2 + smaller(counts.flips, halves));
    int64_t head = 1 + varint_bytes(length);
    if (head + bytes_for(bound) >= plain) {
        return plain;
    }
    int64_t bytes = head;
    unsigned k = 0;
    if (length > 0) {
        uint64_t least, sums[3];
        unsigned guess = guess_parameter(gaps, length);
        for (unsigned i = 0; i < 3; i++) {
            sums[i] = guess - 1 + i == 0 ? gaps : flip_gap_sum(source, guess - 1 + i);
        }
        k = settle(guess, sums, length, flip_gap_sum, source, &least);
        bytes += bytes_for((int64_t)(length * k)) + bytes_for((int64_t)(least + length));
    }
    if (bytes >= plain) {
        return plain;
    }
    *flips = counts.flips;
    *flips_k = k;
    return bytes;
}

void fw_rice_plan(const int64_t *positions, const uint8_t *negative, int64_t count, uint8_t *k, int64_t *out4) {
    struct source source = {positions, negative, count};
    out4[0] = 0;
    out4[1] = -1;
    out4[2] = 0;
    out4[3] = 1;
    if (count <= 0) {
        return;
    }
    int64_t gap_bytes;
    plan_gaps(&source, k, &gap_bytes, &out4[3]);
    out4[0] = 1 + plan_signs(&source, &out4[1], &out4[2]) + gap_bytes;
}
