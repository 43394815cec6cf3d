/* The extraction for one instruction set; extract.c includes this once for each, after it has defined
 *
 *   FW_LEVEL(name)   the name with the instruction set's suffix
 *   FW_TARGET        the function attribute that switches it on
 *   FW_LEVEL(block)  static inline uint64_t (float *r, const float *d, float tau): r[0:64] += d[0:64], returns the
 *                    bits of the elements with !(|r| < tau), so also of those that are not numbers
 */

/* residual[i] += delta[i] for the first elements of `left`, up to FW_TILE and until FW_WORDS words have a bit; those
 * that reach tau go to positions, as first + i. Says how many elements were looked at, returns how many reached. */
static FW_TARGET int64_t FW_LEVEL(mark)(float *restrict residual, const float *restrict delta, int64_t left, float tau,
                                        int64_t first, int64_t *restrict positions, int64_t *restrict looked) {
    uint64_t words[FW_WORDS];
    int64_t starts[FW_WORDS], filled = 0, count = 0, end = least(left, FW_TILE), i = least(end, to_line(residual));
    for (int64_t head = 0; head < i; head++) {
        residual[head] += delta[head];
        positions[count] = first + head;
        count += !(fabsf(residual[head]) < tau);
    }
    for (; i + 64 <= end && filled < FW_WORDS; i += 64) {
        uint64_t word = FW_LEVEL(block)(residual + i, delta + i, tau);
        words[filled] = word; /* kept when it has a bit; no branch, since nothing could predict it */
        starts[filled] = first + i;
        filled += word != 0;
    }
    end = filled < FW_WORDS ? end : i;
    int64_t ahead = least(left, end + FW_AHEAD);
    for (int64_t next = end; next < ahead; next += FW_LINE) {
        __builtin_prefetch(residual + next);
        __builtin_prefetch(delta + next);
    }
    for (int64_t w = 0; w < filled; w++) {
        uint64_t word = words[w];
        do {
            positions[count++] = starts[w] + __builtin_ctzll(word);
            word &= word - 1;
        } while (word != 0);
    }
    for (; i < end; i++) {
        residual[i] += delta[i];
        positions[count] = first + i;
        count += !(fabsf(residual[i]) < tau);
    }
    *looked = end;
    return count;
}

static FW_TARGET void FW_LEVEL(extract)(float *residual, const float *delta, int64_t end, float tau, float clip,
                                        int64_t *positions, uint8_t *negative, int64_t capacity,
                                        struct fw_extraction *extraction) {
    int64_t first = extraction->next, count = 0, looked;
    double clipped = 0.0;
    while (first < end && capacity - count >= FW_TILE) {
        int64_t after = count + FW_LEVEL(mark)(residual + first, delta + first, end - first, tau, first,
                                               positions + count, &looked);
        for (; count < after; count++) {
            int64_t position = positions[count];
            float sum = residual[position];
            if (!(fabsf(sum) <= FLT_MAX)) {
                extraction->bad = position;
                return;
            }
            float rest = sum - copysignf(tau, sum);
            if (fabsf(rest) > clip) {
                clipped += (double)fabsf(rest) - (double)clip;
                rest = copysignf(clip, rest);
            }
            residual[position] = rest;
            negative[count] = sum < 0.0f;
        }
        first += looked;
    }
    extraction->next = first;
    extraction->count = count;
    extraction->clipped += clipped;
}

static FW_TARGET void FW_LEVEL(add)(float *restrict residual, const float *restrict delta, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        residual[i] += delta[i];
    }
}

#undef FW_LEVEL
#undef FW_TARGET
