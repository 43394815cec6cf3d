/* The extraction for one instruction set; extract.c includes this once for each, after it has defined
 *
 *   FW_LEVEL(name)   the name with the instruction set's suffix
 *   FW_TARGET        the function attribute that switches it on
 *   FW_LEVEL(block)  static inline uint64_t (float *r, const float *d, float tau): r[0:64] += d[0:64], returns the
 *                    bits of the elements with !(|r| < tau), so also of those that are not numbers
 */

/* Takes tau out of the sums at `count` positions, notes their signs, and clips. */
static FW_TARGET void FW_LEVEL(send)(float *restrict residual, const int64_t *restrict positions, int64_t count,
                                     uint8_t *restrict negative, float tau, float clip,
                                     struct fw_extraction *restrict extraction) {
    for (int64_t h = 0; h < count; h++) {
        int64_t position = positions[h];
        float sum = residual[position], rest = sum - copysignf(tau, sum);
        negative[h] = sum < 0.0f;
        if (!(fabsf(sum) <= FLT_MAX)) {
            if (extraction->bad < 0 || position < extraction->bad) {
                extraction->bad = position;
            }
            continue;
        }
        if (fabsf(rest) > clip) {
            extraction->clipped += (double)fabsf(rest) - (double)clip;
            rest = copysignf(clip, rest);
        }
        residual[position] = rest;
    }
}

/* The positions of the bits that are set in `filled` words. Returns how many. */
static inline FW_TARGET int64_t FW_LEVEL(walk)(const uint64_t *restrict words, const int64_t *restrict starts,
                                               int64_t filled, int64_t *restrict positions) {
    int64_t count = 0;
    for (int64_t w = 0; w < filled; w++) {
        uint64_t word = words[w];
        do {
            positions[count++] = starts[w] + __builtin_ctzll(word);
            word &= word - 1;
        } while (word != 0);
    }
    return count;
}

/* What is to be added to 64 elements from `at` on: where they are, or their difference in `room`. */
static inline FW_TARGET const float *FW_LEVEL(update)(struct fw_update update, int64_t at, float *restrict room) {
    float *restrict delta = update.delta + at;
    if (update.base == NULL) {
        return delta;
    }
    const float *restrict base = update.base + at;
    for (int i = 0; i < 64; i++) {
        room[i] = delta[i] - base[i];
    }
    if (update.put_back) {
        memcpy(delta, base, 64 * sizeof *delta);
    }
    return room;
}

/* Element by element, for the few at the ends of a tile. Returns how many reached tau. */
static FW_TARGET int64_t FW_LEVEL(few)(float *restrict residual, struct fw_update update, int64_t first, int64_t end,
                                       float tau, int64_t *restrict positions) {
    int64_t count = 0;
    for (int64_t i = first; i < end; i++) {
        residual[i] += update.base == NULL ? update.delta[i] : update.delta[i] - update.base[i];
        if (update.put_back) {
            update.delta[i] = update.base[i];
        }
        positions[count] = i;
        count += !(fabsf(residual[i]) < tau);
    }
    return count;
}

/* Extracts from elements [first, end), at most FW_TILE. The outputs have room for all of them. Returns how many reached
 * tau. */
static FW_TARGET int64_t FW_LEVEL(tile)(float *residual, struct fw_update update, int64_t first, int64_t end, float tau,
                                        float clip, int64_t *positions, uint8_t *negative,
                                        struct fw_extraction *extraction) {
    float room[64];
    uint64_t words[FW_LANES][FW_WORDS];
    int64_t starts[FW_LANES][FW_WORDS];
    int64_t head = least(end, first + to_line(residual + first)), half = (end - head) / 128 * 64;
    int64_t from[FW_LANES] = {head, head + half}, out[FW_LANES] = {0, from[1] - first}, count[FW_LANES];
    count[0] = FW_LEVEL(few)(residual, update, first, head, tau, positions);
    count[1] = 0;
    FW_LEVEL(send)(residual, positions, count[0], negative, tau, clip, extraction);
    for (int64_t i = 0; i < half;) {
        int64_t filled[FW_LANES] = {0, 0};
        for (; i < half && filled[0] < FW_WORDS && filled[1] < FW_WORDS; i += 64) {
            for (int l = 0; l < FW_LANES; l++) {
                const float *added = FW_LEVEL(update)(update, from[l] + i, room);
                uint64_t word = FW_LEVEL(block)(residual + from[l] + i, added, tau);
                words[l][filled[l]] = word; /* kept when it has a bit; no branch, since nothing could predict it */
                starts[l][filled[l]] = from[l] + i;
                filled[l] += word != 0;
            }
        }
        for (int l = 0; l < FW_LANES; l++) {
            int64_t *to = positions + out[l] + count[l];
            int64_t hits = FW_LEVEL(walk)(words[l], starts[l], filled[l], to);
            FW_LEVEL(send)(residual, to, hits, negative + out[l] + count[l], tau, clip, extraction);
            count[l] += hits;
        }
    }
    int64_t *to = positions + out[1] + count[1];
    int64_t hits = FW_LEVEL(few)(residual, update, from[1] + half, end, tau, to);
    FW_LEVEL(send)(residual, to, hits, negative + out[1] + count[1], tau, clip, extraction);
    count[1] += hits;
    memmove(positions + count[0], positions + out[1], sizeof *positions * (size_t)count[1]);
    memmove(negative + count[0], negative + out[1], (size_t)count[1]);
    return count[0] + count[1];
}

static FW_TARGET void FW_LEVEL(extract)(float *residual, struct fw_update update, int64_t end, float tau, float clip,
                                        int64_t *positions, uint8_t *negative, int64_t capacity,
                                        struct fw_extraction *extraction) {
    int64_t first = extraction->next, count = 0;
    while (first < end && capacity - count >= least(end - first, FW_TILE) && extraction->bad < 0) {
        int64_t last = first + least(end - first, FW_TILE);
        count += FW_LEVEL(tile)(residual, update, first, last, tau, clip, positions + count,
                                negative + count, extraction);
        first = last;
    }
    extraction->next = first;
    extraction->count = count;
}

static FW_TARGET void FW_LEVEL(add)(float *restrict residual, const float *restrict delta, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        residual[i] += delta[i];
    }
}

#undef FW_LEVEL
#undef FW_TARGET
