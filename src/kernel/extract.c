/* Threshold extraction and the sum of several messages; see fatwood_kernel.h. */
#include "fatwood_kernel.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define FW_X86 1
#include <immintrin.h>
#else
#define FW_X86 0
#endif

/* One pass goes in steps: sums and bits of a stretch of elements, which is what memory limits, then the positions of the
 * few bits that are set. A stretch ends with the eighth word that has a bit, so that the work between is always about as
 * long. A tile is worked on in two lanes, its halves, in turns: two places of each vector at once were measured to get
 * about a tenth more out of the memory than one (and asking for what comes next, by prefetches, less). */
#define FW_WORDS 8
#define FW_LANES 2
#define FW_LINE 16 /* elements in a cache line */

/* What is added to the residual: delta, or where there is a base their difference, after which delta may become base. */
struct fw_update {
    float *delta;
    const float *base;
    int put_back;
};

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* How many elements there are before the next cache line begins: NumPy's arrays begin in the middle of one. */
static inline int64_t to_line(const float *vector) {
    return (int64_t)(-((uintptr_t)vector / sizeof *vector) % FW_LINE);
}

/* ---- portable: SSE2 or NEON come from the compiler's vectoriser ---- */

#define FW_LEVEL(name) name##_portable
#define FW_TARGET

/* For numbers without a sign, the order of the bits is the order of the values, and NaN is above them all. */
static inline uint32_t half_block(float *restrict r, const float *restrict d, int32_t tau_bits) {
    static const int32_t bit[32] = {
        1 << 0,  1 << 1,  1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,  1 << 8,  1 << 9,  1 << 10,
        1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21,
        1 << 22, 1 << 23, 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30, INT32_MIN};
    int32_t word = 0;
    for (int i = 0; i < 32; i++) {
        float sum = r[i] + d[i];
        int32_t bits;
        memcpy(&bits, &sum, sizeof bits);
        r[i] = sum;
        word |= -(int32_t)((bits & INT32_MAX) >= tau_bits) & bit[i];
    }
    return (uint32_t)word;
}

static inline uint64_t block_portable(float *restrict r, const float *restrict d, float tau) {
    int32_t tau_bits;
    memcpy(&tau_bits, &tau, sizeof tau_bits);
    uint64_t low = half_block(r, d, tau_bits);
    return low | (uint64_t)half_block(r + 32, d + 32, tau_bits) << 32;
}

#include "extract_tile.h"

#if FW_X86

/* ---- AVX2 ---- */

#define FW_LEVEL(name) name##_avx2
#define FW_TARGET __attribute__((target("avx2,bmi,bmi2,popcnt")))

/* r[0:8] += d[0:8]; all bits of the lanes that reach tau. */
static inline FW_TARGET __m256i lanes_avx2(float *restrict r, const float *restrict d, __m256 threshold) {
    __m256 sum = _mm256_add_ps(_mm256_loadu_ps(r), _mm256_loadu_ps(d));
    _mm256_storeu_ps(r, sum);
    __m256 reached = _mm256_cmp_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), sum), threshold, _CMP_NLT_UQ);
    return _mm256_castps_si256(reached);
}

static inline FW_TARGET uint32_t half_block_avx2(float *restrict r, const float *restrict d, __m256 threshold) {
    __m256i low = _mm256_packs_epi32(lanes_avx2(r, d, threshold), lanes_avx2(r + 8, d + 8, threshold));
    __m256i high = _mm256_packs_epi32(lanes_avx2(r + 16, d + 16, threshold), lanes_avx2(r + 24, d + 24, threshold));
    /* Packing goes by halves of a register, so four bytes at a time are out of order. */
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    return (uint32_t)_mm256_movemask_epi8(bytes);
}

static inline FW_TARGET uint64_t block_avx2(float *restrict r, const float *restrict d, float tau) {
    const __m256 threshold = _mm256_set1_ps(tau);
    uint64_t low = half_block_avx2(r, d, threshold);
    return low | (uint64_t)half_block_avx2(r + 32, d + 32, threshold) << 32;
}

#include "extract_tile.h"

/* ---- AVX-512 ---- */

#define FW_LEVEL(name) name##_avx512
#define FW_TARGET __attribute__((target("avx512f,avx512dq,avx2,bmi,bmi2,popcnt")))

static inline FW_TARGET uint64_t block_avx512(float *restrict r, const float *restrict d, float tau) {
    const __m512 threshold = _mm512_set1_ps(tau), sign = _mm512_set1_ps(-0.0f);
    uint64_t word = 0;
    for (int i = 0; i < 64; i += 16) {
        __m512 sum = _mm512_add_ps(_mm512_loadu_ps(r + i), _mm512_loadu_ps(d + i));
        _mm512_storeu_ps(r + i, sum);
        word |= (uint64_t)_mm512_cmp_ps_mask(_mm512_andnot_ps(sign, sum), threshold, _CMP_NLT_UQ) << i;
    }
    return word;
}

#include "extract_tile.h"

#endif

/* ---- what is exported ---- */

int32_t fw_abi(void) { return FW_ABI; }

int32_t fw_tile(void) { return FW_TILE; }

int32_t fw_supports(int32_t level) {
#if FW_X86
    if (level == FW_AVX2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    }
    if (level == FW_AVX512) {
        return fw_supports(FW_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    }
#endif
    return level == FW_PORTABLE;
}

void fw_extract(int32_t level, float *residual, float *delta, const float *base, int32_t put_back, int64_t end,
                float tau, float clip, int64_t *positions, uint8_t *negative, int64_t capacity,
                struct fw_extraction *extraction) {
    struct fw_update update = {delta, base, put_back != 0};
#if FW_X86
    if (level == FW_AVX512) {
        extract_avx512(residual, update, end, tau, clip, positions, negative, capacity, extraction);
        return;
    }
    if (level == FW_AVX2) {
        extract_avx2(residual, update, end, tau, clip, positions, negative, capacity, extraction);
        return;
    }
#endif
    (void)level;
    extract_portable(residual, update, end, tau, clip, positions, negative, capacity, extraction);
}

void fw_add(int32_t level, float *residual, const float *delta, int64_t n) {
#if FW_X86
    if (level == FW_AVX512) {
        add_avx512(residual, delta, n);
        return;
    }
    if (level == FW_AVX2) {
        add_avx2(residual, delta, n);
        return;
    }
#endif
    (void)level;
    add_portable(residual, delta, n);
}

void fw_weighted(const float *restrict first, const float *restrict second, float a, const float *restrict third, float b,
                 int64_t n, float *restrict out, float *restrict also) {
    for (int64_t i = 0; i < n; i++) {
        float sum = first[i] + a * second[i];
        sum += b * third[i];
        out[i] = sum;
        also[i] = sum;
    }
}

#define FW_GATHER_AHEAD 128 /* places between prefetch and use: every one may be in a page of its own */

int64_t fw_gather(const float *vector, int64_t n, const int64_t *places, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++) {
        int64_t ahead = places[least(i + FW_GATHER_AHEAD, count - 1)];
        __builtin_prefetch((const void *)((uintptr_t)vector + (uintptr_t)ahead * sizeof *vector), 0);
        if ((uint64_t)places[i] >= (uint64_t)n) {
            return i;
        }
        out[i] = vector[places[i]];
    }
    return count;
}

#define FW_SUM_TILE 4096 /* elements of the target that all messages are added to before the next, at least */
#define FW_SUM_PARTS 64  /* additions in a tile, at least, on average */
#define FW_SUM_AHEAD 32  /* positions of a message between prefetch and use */

void fw_add_signed(float *target, int64_t begin, int64_t end, struct fw_signed *messages, int64_t message_count) {
    int64_t parts = 1;
    for (int64_t m = 0; m < message_count; m++) {
        parts += messages[m].count;
    }
    int64_t tile = (end - begin) / parts * FW_SUM_PARTS;
    tile = tile < FW_SUM_TILE ? FW_SUM_TILE : tile;
    for (int64_t first = begin; first < end; first += tile) {
        uint64_t length = (uint64_t)least(end - first, tile);
        for (int64_t m = 0; m < message_count; m++) {
            const int64_t *positions = messages[m].positions;
            const uint8_t *negative = messages[m].negative;
            int64_t i = messages[m].done, last = messages[m].count - 1;
            uint32_t value;
            memcpy(&value, &messages[m].value, sizeof value);
            /* one unsigned comparison, so that no position outside the tile is ever touched */
            for (; i <= last && (uint64_t)positions[i] - (uint64_t)first < length; i++) {
                int64_t ahead = positions[least(i + FW_SUM_AHEAD, last)];
                __builtin_prefetch((const void *)((uintptr_t)target + (uintptr_t)ahead * sizeof *target), 1);
                uint32_t bits = value ^ (uint32_t)negative[i] << 31;
                float part;
                memcpy(&part, &bits, sizeof part);
                target[positions[i]] += part;
            }
            messages[m].done = i;
        }
    }
}
