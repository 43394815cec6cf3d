/* Golomb-Rice: reading what anyone may have sent; see rice.h. */
#include "rice.h"

/* The ones of a unary stream, in order. */
struct ones {
    const uint8_t *bytes;
    int64_t length; /* nothing is read behind this many bytes */
    int64_t next;   /* offset of the first byte not yet in `word` */
    uint64_t word;  /* the ones not yet taken */
    int64_t base;   /* place of the word's lowest bit in the stream */
};

static struct ones ones_of(const uint8_t *bytes, int64_t length) {
    struct ones ones = {bytes, length, 0, 0, 0};
    return ones;
}

/* Takes m of them and writes their places in the stream. Returns 0, or -1 where there are too few. */
static inline int take(struct ones *from, int64_t m, int64_t *places) {
    uint64_t word = from->word;
    int64_t base = from->base;
    for (int64_t i = 0; i < m; i++) {
        while (word == 0) {
            int64_t left = from->length - from->next;
            if (left <= 0) {
                return -1;
            }
            base = 8 * from->next;
            word = left >= 8 ? load_little(from->bytes + from->next) : load_little_part(from->bytes + from->next, left);
            from->next += 8;
        }
        places[i] = base + __builtin_ctzll(word);
        word &= word - 1;
    }
    from->word = word;
    from->base = base;
    return 0;
}

/* Sets the bytes of a stream that ends behind a bit. Returns 0, or what is wrong with the rest of its last byte. */
static int end_of(const uint8_t *bytes, int64_t bits, int64_t *length) {
    *length = bytes_for(bits);
    return (bits & 7) != 0 && bytes[*length - 1] >> (bits & 7) != 0 ? FW_PADDING : FW_OK;
}

/* Where the next gap is read, and the position it leads to. */
struct reader {
    const uint8_t *remainders, *end;
    struct ones quotients;
    int64_t before; /* place of the last quotient's one, or -1 */
    uint64_t next;  /* the position after the last one */
    uint64_t limit; /* positions are below this, at most INT64_MAX */
};

/* Reads m positions, at most 32, of gaps with k. Returns 0, or what is wrong. */
static inline int read_block(struct reader *from, int64_t m, unsigned k, int64_t *positions) {
    int64_t places[BLOCK], bytes = bytes_for(m * k), first = from->before + 1;
    if (take(&from->quotients, m, places) != 0) {
        return FW_TOO_SHORT;
    }
    from->before = places[m - 1];
    /* Bounds all sums below: 2**63 and at most 32 remainders of 57 bits. */
    uint64_t quotients = (uint64_t)(from->before + 1 - first - m);
    if (quotients > (from->limit - from->next) >> k) {
        return FW_POSITION;
    }
    const uint8_t *remainders = from->remainders;
    uint8_t local[BLOCK * LARGEST_K / 8 + SLACK];
    if (from->end - remainders < bytes + SLACK) {
        memcpy(local, remainders, (size_t)bytes);
        memset(local + bytes, 0, SLACK);
        remainders = local;
    }
    uint64_t mask = ((uint64_t)1 << k) - 1, sum = from->next;
    for (int64_t i = 0; i < m; i++) {
        unsigned bit = (unsigned)i * k;
        sum += (load_little(remainders + (bit >> 3)) >> (bit & 7)) & mask;
        positions[i] = (int64_t)(sum + ((uint64_t)(places[i] - first - i) << k) + (uint64_t)i);
    }
    from->remainders += bytes;
    from->next = (uint64_t)positions[m - 1] + 1;
    return from->next > from->limit ? FW_POSITION : FW_OK;
}

/* What stands before the streams of a payload. */
struct head {
    unsigned k, flips_k, negative;
    int blocks; /* 1: every block has its own k */
    int64_t flips; /* -1: plain signs */
    int64_t table; /* offset of the table */
    int64_t bytes; /* offset of the signs */
    int64_t remainder_bits;
};

static int read_varint(const uint8_t *payload, int64_t length, int64_t *at, uint64_t *value) {
    *value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (*at >= length) {
            return FW_TOO_SHORT;
        }
        uint64_t byte = payload[(*at)++];
        if ((shift == 63 && byte > 1) || (shift > 0 && byte == 0)) {
            return FW_VARINT;
        }
        *value |= (byte & 0x7f) << shift;
        if (byte < 0x80) {
            return FW_OK;
        }
    }
    return FW_VARINT;
}

/* Takes the next block's k from a table. Returns 0, or what is wrong. */
static inline int next_parameter(struct ones *table, int64_t *before, unsigned *k) {
    int64_t place;
    if (take(table, 1, &place) != 0) {
        return FW_TOO_SHORT;
    }
    int64_t zigzag = place - *before - 1;
    int64_t value = (int64_t)*k + ((zigzag & 1) != 0 ? -((zigzag + 1) >> 1) : zigzag >> 1);
    *before = place;
    if (value < 0 || value > LARGEST_K) {
        return FW_PARAMETER;
    }
    *k = (unsigned)value;
    return FW_OK;
}

/* Checks the whole table, so that it can be read again, block by block. */
static int read_table(const uint8_t *payload, int64_t length, int64_t count, struct head *head) {
    struct ones table = ones_of(payload + head->table, length - head->table);
    unsigned k = head->k;
    int64_t before = -1, bytes, bits = BLOCK * (int64_t)k;
    for (int64_t from = BLOCK; from < count; from += BLOCK) {
        int wrong = next_parameter(&table, &before, &k);
        if (wrong != FW_OK) {
            return wrong;
        }
        bits += smaller(BLOCK, count - from) * k;
    }
    head->remainder_bits = bits;
    int wrong = end_of(payload + head->table, before + 1, &bytes);
    head->bytes = head->table + bytes;
    return wrong;
}

static int read_head(const uint8_t *payload, int64_t length, int64_t count, struct head *head) {
    int64_t at = 1;
    head->k = payload[0] & 63;
    head->blocks = payload[0] >> 6 & 1;
    head->flips = -1;
    head->flips_k = head->negative = 0;
    if (head->k > LARGEST_K) {
        return FW_PARAMETER;
    }
    if (head->blocks && count <= BLOCK) {
        return FW_BLOCKS;
    }
    if (payload[0] >> 7) {
        if (at >= length) {
            return FW_TOO_SHORT;
        }
        uint64_t flips;
        head->flips_k = payload[at] & 63;
        head->negative = payload[at] >> 7;
        if ((payload[at++] >> 6 & 1) != 0) {
            return FW_FLIPS_BYTE;
        }
        if (head->flips_k > LARGEST_K) {
            return FW_PARAMETER;
        }
        int wrong = read_varint(payload, length, &at, &flips);
        if (wrong != FW_OK) {
            return wrong;
        }
        if (flips > (uint64_t)(count - 1)) {
            return FW_FLIPS;
        }
        head->flips = (int64_t)flips;
    }
    head->table = head->bytes = at;
    head->remainder_bits = count * head->k;
    return head->blocks ? read_table(payload, length, count, head) : FW_OK;
}

/* Starts reading a pair of streams at an offset. Returns 0, or what is wrong. */
static int open_streams(struct reader *from, const uint8_t *payload, int64_t length, int64_t at,
                        int64_t remainder_bits, int64_t limit) {
    int64_t bytes = bytes_for(remainder_bits);
    if (bytes > length - at) {
        return FW_TOO_SHORT;
    }
    from->remainders = payload + at;
    from->end = payload + length;
    from->quotients = ones_of(payload + at + bytes, length - at - bytes);
    from->before = -1;
    from->next = 0;
    from->limit = (uint64_t)limit;
    return end_of(payload + at, remainder_bits, &bytes);
}

/* Marks the flips with ones and turns them into signs: each is the parity of the ones up to it. */
static int read_flips(const uint8_t *payload, int64_t length, int64_t count, const struct head *head, uint8_t *negative,
                      int64_t *at) {
    struct reader from;
    int64_t places[BLOCK], bytes;
    int wrong = open_streams(&from, payload, length, *at, head->flips * head->flips_k, count - 1);
    memset(negative, 0, (size_t)count);
    negative[0] = (uint8_t)head->negative;
    for (int64_t done = 0; wrong == FW_OK && done < head->flips; done += BLOCK) {
        int64_t m = smaller(BLOCK, head->flips - done);
        wrong = read_block(&from, m, head->flips_k, places);
        for (int64_t i = 0; wrong == FW_OK && i < m; i++) {
            negative[places[i] + 1] = 1;
        }
    }
    if (wrong != FW_OK) {
        return wrong == FW_POSITION ? FW_FLIPS : wrong;
    }
    int64_t i = 0;
    uint64_t sign = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t word = load_little(negative + i) ^ sign;
        word ^= word << 8;
        word ^= word << 16;
        word ^= word << 32;
        store_little(negative + i, word);
        sign = word >> 56;
    }
    for (; i < count; i++) {
        negative[i] ^= (uint8_t)sign;
        sign = negative[i];
    }
    wrong = end_of(from.quotients.bytes, from.before + 1, &bytes);
    *at = (from.quotients.bytes - payload) + bytes;
    return wrong;
}

static int read_signs(const uint8_t *payload, int64_t length, int64_t count, uint8_t *negative, int64_t *at) {
    int64_t bytes;
    if (bytes_for(count) > length - *at) {
        return FW_TOO_SHORT;
    }
    const uint8_t *bits = payload + *at;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        store_little(negative + i, bytes_of_bits(bits[i >> 3]));
    }
    for (; i < count; i++) {
        negative[i] = bits[i >> 3] >> (i & 7) & 1;
    }
    int wrong = end_of(bits, count, &bytes);
    *at += bytes;
    return wrong;
}

int64_t fw_rice_unpack(const uint8_t *payload, int64_t length, int64_t count, int64_t n, int64_t *positions,
                       uint8_t *negative) {
    if (length < 0 || count < 0 || count > n) {
        return FW_BAD_ARGUMENT;
    }
    if (count == 0) {
        return length == 0 ? FW_OK : FW_TOO_LONG;
    }
    if ((count - 1) / 8 >= length) { /* count > 8 * length */
        return FW_TOO_SHORT;
    }
    struct head head;
    int wrong = read_head(payload, length, count, &head);
    if (wrong != FW_OK) {
        return wrong;
    }
    int64_t at = head.bytes;
    wrong = head.flips < 0 ? read_signs(payload, length, count, negative, &at)
                           : read_flips(payload, length, count, &head, negative, &at);
    if (wrong != FW_OK) {
        return wrong;
    }
    struct reader from;
    wrong = open_streams(&from, payload, length, at, head.remainder_bits, n);
    struct ones table = ones_of(payload + head.table, head.bytes - head.table);
    int64_t before = -1;
    unsigned k = head.k;
    for (int64_t done = 0; wrong == FW_OK && done < count; done += BLOCK) {
        if (head.blocks && done > 0) {
            wrong = next_parameter(&table, &before, &k);
        }
        if (wrong == FW_OK) {
            wrong = read_block(&from, smaller(BLOCK, count - done), k, positions + done);
        }
    }
    if (wrong != FW_OK) {
        return wrong;
    }
    int64_t bytes;
    wrong = end_of(from.quotients.bytes, from.before + 1, &bytes);
    return wrong != FW_OK ? wrong : bytes == from.quotients.length ? FW_OK : FW_TOO_LONG;
}
