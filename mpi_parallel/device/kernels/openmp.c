/* maths.h on the cores of a rank: OpenMP threads share rows or elements, vector instructions do the rest.
 *
 * Each kernel is a loop over a part, compiled for several instruction sets (the loader picks by the CPU at hand, so one
 * binary serves a mixed cluster), and a driver that gives each thread its part. Who computes what never changes a result:
 * elements are independent, and sums go over rows in their order.
 */
#include <omp.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>

#include "augment.h"
#include "maths.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("default", "avx2", "avx512f"), noinline))
#else
#define VECTORS __attribute__((noinline))
#endif

/* Bytes become vectors of 64 bytes only with AVX-512's further parts, of which older compilers cannot ask by features. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define WIDENING __attribute__((target_clones("default", "avx2", "arch=x86-64-v4"), noinline))
#else
#define WIDENING VECTORS
#endif

/* Below this many elements a thread is not worth waking. */
#define GRAIN 32768

/* Run CALL with [begin, end) set to this thread's part of n units of `weight` elements. */
#define SHARE(n, weight, CALL)                                                                     \
    do {                                                                                           \
        int worth_it = (n) * (weight) >= 2 * GRAIN;                                                \
        _Pragma("omp parallel if (worth_it)")                                                      \
        {                                                                                          \
            long parts = omp_get_num_threads(), mine = omp_get_thread_num();                       \
            long begin = (n) * mine / parts, end = (n) * (mine + 1) / parts;                       \
            CALL;                                                                                  \
        }                                                                                          \
    } while (0)

#include "rows.c"

/* --- bias, relu and its gradient, column sums --- */

VECTORS static void bias_part(float *restrict y, const float *restrict b, long begin, long end, long width, int relu)
{
    for (long row = begin; row < end; ++row) {
        float *to = y + row * width;
        if (relu) {
            _Pragma("omp simd") for (long o = 0; o < width; ++o) to[o] = mp_relu(to[o] + b[o]);
        } else {
            _Pragma("omp simd") for (long o = 0; o < width; ++o) to[o] += b[o];
        }
    }
}

/* y += b in every row, then relu where it is asked for */
void bias(float *y, const float *b, long rows, long width, int relu)
{
    SHARE(rows, width, bias_part(y, b, begin, end, width, relu));
}

VECTORS static void relu_gradient_part(float *restrict dy, const float *restrict y, long begin, long end)
{
    _Pragma("omp simd") for (long i = begin; i < end; ++i) dy[i] = mp_relu_gradient(dy[i], y[i]);
}

/* dy becomes dz = dy where y > 0 */
void relu_gradient(float *dy, const float *y, long n) { SHARE(n, 1, relu_gradient_part(dy, y, begin, end)); }

VECTORS static void column_sums_part(const float *restrict a, float *restrict sums, long rows, long begin, long end,
                                     long width, int add)
{
    if (!add) for (long o = begin; o < end; ++o) sums[o] = 0.0f;
    for (long row = 0; row < rows; ++row) {
        const float *from = a + row * width;
        _Pragma("omp simd") for (long o = begin; o < end; ++o) sums[o] += from[o];
    }
}

/* the sum of each column of a (rows, width), rows in their order; `add` keeps what is there */
void column_sums(const float *a, float *sums, long rows, long width, int add)
{
    SHARE(width, rows, column_sums_part(a, sums, rows, begin, end, width, add));
}

/* --- rounding to the formats of kernels/maths.h --- */

#define NARROW(FORMAT)                                                                                                 \
    VECTORS static void FORMAT##_part(const float *a, float *out, long begin, long end)                                \
    {                                                                                                                  \
        _Pragma("omp simd") for (long i = begin; i < end; ++i) out[i] = mp_##FORMAT(a[i]);                             \
    }                                                                                                                  \
    /* out = a in the numbers of the format; out may be a */                                                           \
    void to_##FORMAT(const float *a, float *out, long n) { SHARE(n, 1, FORMAT##_part(a, out, begin, end)); }

NARROW(bfloat16)
NARROW(float16)
NARROW(tf32)

/* --- numbers of 16 bits, for messages --- */

#define PACK(FORMAT)                                                                                                   \
    VECTORS static void pack_##FORMAT##_part(const float *restrict a, uint16_t *restrict out, long begin, long end)    \
    {                                                                                                                  \
        _Pragma("omp simd") for (long i = begin; i < end; ++i) out[i] = mp_pack_##FORMAT(a[i]);                        \
    }                                                                                                                  \
    VECTORS static void unpack_##FORMAT##_part(const uint16_t *restrict a, float *restrict out, long begin, long end)  \
    {                                                                                                                  \
        _Pragma("omp simd") for (long i = begin; i < end; ++i) out[i] = mp_unpack_##FORMAT(a[i]);                      \
    }                                                                                                                  \
    void pack_##FORMAT(const float *a, uint16_t *out, long n) { SHARE(n, 1, pack_##FORMAT##_part(a, out, begin, end)); } \
    void unpack_##FORMAT(const uint16_t *a, float *out, long n)                                                        \
    {                                                                                                                  \
        SHARE(n, 1, unpack_##FORMAT##_part(a, out, begin, end));                                                       \
    }

PACK(bfloat16)
PACK(float16)

/* --- dropout --- */

VECTORS static void dropout_part(const float *restrict x, const uint32_t *restrict keys, float *restrict y, long begin, long end,
                                 long width, uint32_t layer, uint32_t threshold, float factor, uint32_t first)
{
    for (long row = begin; row < end; ++row) {
        const float *from = x + row * width;
        float *to = y + row * width;
        uint32_t key = mp_mix(keys[row] ^ layer);
        _Pragma("omp simd") for (long u = 0; u < width; ++u)
            to[u] = mp_dropout(from[u], key, first + (uint32_t)u, threshold, factor);
    }
}

/* y = x times the mask of these rows (named by their keys), this layer (by a hash) and the units from `first` on */
void dropout(const float *x, const uint32_t *keys, float *y, long rows, long width, uint32_t layer, uint32_t threshold,
             float factor, uint32_t first)
{
    SHARE(rows, width, dropout_part(x, keys, y, begin, end, width, layer, threshold, factor, first));
}

/* --- softmax cross-entropy: loss, number correct and gradient in one pass --- */

VECTORS static void cross_entropy_part(const float *z, const int32_t *target, float *dz, float *loss, int32_t *correct,
                                       long begin, long end, long classes)
{
    for (long row = begin; row < end; ++row) {
        int hit;
        loss[row] = mp_cross_entropy(z + row * classes, dz + row * classes, (int)classes, target[row], &hit);
        correct[row] = hit;
    }
}

/* dz (may be z), and sums[0] += the rows' losses, sums[1] += the number correct; `loss`, `correct` (rows) are scratch */
void cross_entropy(const float *z, const int32_t *target, float *dz, float *loss, int32_t *correct, long rows,
                   long classes, float *sums)
{
    SHARE(rows, 16 * classes, cross_entropy_part(z, target, dz, loss, correct, begin, end, classes));
    double total = 0.0, hits = 0.0;
    for (long row = 0; row < rows; ++row) total += loss[row], hits += correct[row];
    sums[0] += (float)total;
    sums[1] += (float)hits;
}

/* --- bad numbers --- */

VECTORS static unsigned any_bad(const float *a, long begin, long end)
{
    unsigned bad = 0;
    _Pragma("omp simd reduction(| : bad)") for (long i = begin; i < end; ++i) bad |= mp_not_finite(a[i]);
    return bad;
}

/* bad[0] becomes NaN where not all of n numbers are finite */
void check(const float *a, long n, float *bad)
{
    unsigned found = 0;
    SHARE(n, 1, if (any_bad(a, begin, end)) __atomic_store_n(&found, 1u, __ATOMIC_RELAXED));
    if (found) bad[0] = NAN;
}

#include "rules.c"

/* --- a barrier of the processes that share memory --- */

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() ((void)0)
#endif

/* Write my ticket and wait until everyone's is as high; `tickets` lie a cache line apart in shared memory. What a process
 * wrote before its ticket (release) is seen by all who have read that (acquire). First looks `spins` times for a late
 * ticket, which is fastest where each process has a core; then gives its core away `yields` times, as the late one may need
 * just that core; then returns 0: not yet, call again. */
int meet(int64_t *tickets, int rank, int size, int64_t ticket, int spins, int yields)
{
    __atomic_store_n(tickets + 8 * rank, ticket, __ATOMIC_RELEASE);
    for (int other = 0; other < size; ++other)
        while (__atomic_load_n(tickets + 8 * other, __ATOMIC_ACQUIRE) < ticket) {
            if (spins > 0) {
                --spins;
                RELAX();
            } else if (yields > 0) {
                --yields;
                sched_yield();
            } else {
                return 0;
            }
        }
    return 1;
}

/* Which of the compiled instruction sets this CPU takes. */
const char *instruction_set(void)
{
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return "AVX-512";
    if (__builtin_cpu_supports("avx2")) return "AVX2";
#endif
    return "baseline";
}
