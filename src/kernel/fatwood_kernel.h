/* The codec's loops over parameters and positions, as plain C functions on plain buffers.
 *
 * What they do is said once, in Python: fatwood/codec/kernel.py (extract, add_signed), fatwood/codec/rice.py and
 * fatwood/codec/ternary.py (the two packings). fatwood/codec/native.py calls them and checks every argument first.
 *
 * No function allocates memory, keeps state or calls back, so all are safe in any number of threads as long as
 * the buffers they write differ. Indices are 64-bit. The arithmetic is IEEE float32 with subnormals, in the order
 * that NumPy has, so results have NumPy's bits; the library is compiled without contraction to fused operations.
 */
#ifndef FATWOOD_KERNEL_H
#define FATWOOD_KERNEL_H

#include <stdint.h>

#if defined(__GNUC__)
#define FW_EXPORT __attribute__((visibility("default")))
#else
#define FW_EXPORT
#endif

/* Raised whenever a prototype or a structure below changes; native.py refuses a library with another number. */
#define FW_ABI 2

/* The most elements that one step of the extraction looks at, and so the room that an output must have for one more. */
#define FW_TILE 131072

/* Instruction sets, the argument `level` of some functions. */
enum { FW_PORTABLE = 0, FW_AVX2 = 1, FW_AVX512 = 2 };

FW_EXPORT int32_t fw_abi(void);

FW_EXPORT int32_t fw_tile(void);

/* 1 when this processor and operating system can run a level, else 0. */
FW_EXPORT int32_t fw_supports(int32_t level);

/* Where an extraction stands. */
struct fw_extraction {
    int64_t next;   /* in: the first element to look at; out: the first that was not looked at */
    int64_t count;  /* out: how many positions were written */
    int64_t bad;    /* out: the first element whose sum is not finite, or -1 */
    double clipped; /* in and out: mass lost to clipping is added */
};

/* Extracts from elements [next, end): see Kernel.extract. Ends early when the output has no room for FW_TILE more, or for
 * all that are left; the caller then calls again, with more room. After a sum that is not finite nothing holds but
 * `bad`, which must be -1 before. What is added is delta, or delta - base where base is not NULL; with put_back, delta
 * becomes base then, else it is only read. */
FW_EXPORT void fw_extract(int32_t level, float *residual, float *delta, const float *base, int32_t put_back, int64_t end,
                          float tau, float clip, int64_t *positions, uint8_t *negative, int64_t capacity,
                          struct fw_extraction *extraction);

/* residual[0:n] += delta[0:n]: what any encoder must do at least, the floor that benchmarks compare with. */
FW_EXPORT void fw_add(int32_t level, float *residual, const float *delta, int64_t n);

/* out[i] = also[i] = (first[i] + a * second[i]) + b * third[i]. */
FW_EXPORT void fw_weighted(const float *first, const float *second, float a, const float *third, float b, int64_t n,
                           float *out, float *also);

/* out[i] = vector[places[i]]. Returns how many were copied; below count when a place is not in 0 ... n - 1. */
FW_EXPORT int64_t fw_gather(const float *vector, int64_t n, const int64_t *places, int64_t count, float *out);

/* One message's part of a sum. */
struct fw_signed {
    const int64_t *positions; /* (count,) ascending, unique */
    const uint8_t *negative;  /* (count,) 1 where -value is to be added */
    int64_t count;
    int64_t done; /* in: 0; out: how many were added; below count when positions were not as they should */
    float value;
};

/* Adds messages, in the order given, to the elements [begin, end) of target, where all their positions lie. */
FW_EXPORT void fw_add_signed(float *target, int64_t begin, int64_t end, struct fw_signed *messages,
                             int64_t message_count);

/* Golomb-Rice, see fatwood/codec/rice.py. `k` has room for ceil(count / 32) numbers; out4 = bytes of the payload,
 * flips (-1: plain signs), flips_k, blocks (1 or ceil(count / 32)). */
FW_EXPORT void fw_rice_plan(const int64_t *positions, const uint8_t *negative, int64_t count, uint8_t *k,
                            int64_t *out4);

/* Returns the number of bytes written, or -1 when they are too many for the capacity or the arguments cannot be right. */
FW_EXPORT int64_t fw_rice_pack(const int64_t *positions, const uint8_t *negative, int64_t count, const uint8_t *k,
                               int64_t blocks, int64_t flips, int64_t flips_k, uint8_t *out, int64_t capacity);

/* Returns 0, or a number above 0 that says what is wrong with the payload. */
FW_EXPORT int64_t fw_rice_unpack(const uint8_t *payload, int64_t length, int64_t count, int64_t n, int64_t *positions,
                                 uint8_t *negative);

/* Range-coded mask, see fatwood/codec/ternary.py. */
FW_EXPORT void fw_ternary_histogram(const int64_t *positions, int64_t count, int64_t n, int64_t *histogram9);

/* Returns the number of bytes written, or -1 when they are too many for the capacity or the arguments cannot be right. */
FW_EXPORT int64_t fw_ternary_pack(const int64_t *positions, const uint8_t *negative, int64_t count, int64_t n,
                                  const uint32_t *frequencies256, uint8_t *out, int64_t capacity);

/* Returns 0, or a number above 0 that says what is wrong with the payload. */
FW_EXPORT int64_t fw_ternary_unpack(const uint8_t *payload, int64_t length, int64_t count, int64_t n,
                                    const uint32_t *frequencies256, int64_t *positions, uint8_t *negative);

#endif
