/* maths.h on a GPU: a grid of threads shares rows or elements. Compiled at run time by NVRTC, which has no headers:
 * device/cuda_kernels.py puts maths.h in place of its include. The tests compile this file for a CPU, too (cuda_shim.h).
 *
 * Every kernel is right for any grid and for no elements at all. Sums go in an order that depends on the shapes alone, so
 * the same launch gives the same bits. Numbers that change from step to step may be read from the device's memory, so a
 * captured launch can be replayed. Kernels end in _f32, _f16 or _bf16 by the type of the products' operands.
 */
#include "augment.h"
#include "maths.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef short i16;
typedef long long i64;

/* --- the three types of operands: float32, and the bits of float16 and bfloat16 --- */

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

FN float get(float a) { return a; }
FN float get(bf16 a) { return mp_unpack_bfloat16(a.bits); }
FN float get(f16 a) { return mp_unpack_float16(a.bits); }
FN void put(float &to, float a) { to = a; }
FN void put(bf16 &to, float a) { to.bits = mp_pack_bfloat16(a); }
FN void put(f16 &to, float a) { to.bits = mp_pack_float16(a); }

#define FORMATS(MAKE) MAKE(f32, float) MAKE(f16, f16) MAKE(bf16, bf16)
#define KERNEL extern "C" __global__ void

/* Loops of this thread over n elements, and of this block over n rows. */
#define EACH(i, n) for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < (n); i += (i64)gridDim.x * blockDim.x)
#define EACH_ROW(row, n) for (i64 row = blockIdx.x; row < (n); row += gridDim.x)

/* Elements first, first + apart, ... below n, where memory decides on the time: it answers late, so what belongs to several
 * of them (`load` gives that of one, and `store` is given it) is asked for before the first is worked on. */
#define AHEAD 4

template <class Loaded, class Load, class Store> FN void each_ahead(i64 first, i64 apart, i64 n, Load load, Store store)
{
    for (; first < n; first += AHEAD * apart) {
        Loaded loaded[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            if (first + k * apart < n) loaded[k] = load(first + k * apart);
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            if (first + k * apart < n) store(first + k * apart, loaded[k]);
    }
}

/* The same for this thread's of n elements */
template <class Loaded, class Load, class Store> FN void each_ahead(i64 n, Load load, Store store)
{
    each_ahead<Loaded>(blockIdx.x * (i64)blockDim.x + threadIdx.x, gridDim.x * (i64)blockDim.x, n, load, store);
}

#ifndef ROOM /* shared memory of the size that a launch asks for */
#define ROOM(name) extern __shared__ __align__(16) float name[]
#endif

#define MOST 1024   /* threads of a block */
#define SHARERS 256 /* of one in which they share elements: THREADS in device/cuda_kernels.py */

/* --- sums and maxima over the threads of a block, in an order that their number fixes --- */

template <class T> FN T block_sum(T mine, T *shared)
{
    shared[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) { /* the number of threads is a power of two */
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    T sum = shared[0];
    __syncthreads();
    return sum;
}

/* Of a NaN and a number the number, as a comparison has it; of equal values the lower place. */
FN void block_first_largest(float &value, int &place, float *values, int *places)
{
    values[threadIdx.x] = value, places[threadIdx.x] = place;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        unsigned me = threadIdx.x, other = threadIdx.x + half;
        if (me < half && (values[other] > values[me] || (values[other] == values[me] && places[other] < places[me])))
            values[me] = values[other], places[me] = places[other];
        __syncthreads();
    }
    value = values[0], place = places[0];
    __syncthreads();
}

/* Whether this block is the last of so many to get here; it sees what the others wrote before, and winds up the ticket. */
FN bool last_block(unsigned *ticket, unsigned blocks)
{
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(ticket, 1u) == blocks - 1;
        if (last) *ticket = 0;
    }
    __syncthreads();
    if (last) __threadfence(); /* what the others wrote before they took their tickets is read behind this */
    return last;
}

#include "rows.cu"

/* --- bias, relu and its gradient --- */

template <class T> struct Both { T one, other; };

template <class T> FN void bias_rows(T *y, const T *b, i64 rows, i64 width, int relu)
{
    EACH_ROW(row, rows) {
        T *mine = y + row * width;
        each_ahead<Both<T>>(
            threadIdx.x, blockDim.x, width, [=](i64 o) { return Both<T>{mine[o], b[o]}; },
            [=](i64 o, Both<T> at) {
                float z = get(at.one) + get(at.other);
                put(mine[o], relu ? mp_relu(z) : z);
            });
    }
}

template <class T> FN void relu_gradients(T *dy, const T *y, i64 n)
{
    each_ahead<Both<T>>(
        n, [=](i64 i) { return Both<T>{dy[i], y[i]}; },
        [=](i64 i, Both<T> at) { put(dy[i], mp_relu_gradient(get(at.one), get(at.other))); });
}

/* --- the sum of each column: a thread column for each of 32 columns, a partial sum in each of 32 threads of it --- */

#define TILE 32

template <class T> FN void sum_columns(const T *a, float *sums, i64 rows, i64 width, int add)
{
    __shared__ float part[TILE][TILE + 1];
    for (i64 first = blockIdx.x * (i64)TILE; first < width; first += (i64)gridDim.x * TILE) {
        i64 o = first + threadIdx.x;
        float sum = 0.0f;
        if (o < width)
            for (i64 row = threadIdx.y; row < rows; row += TILE) sum += get(a[row * width + o]);
        part[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        for (unsigned half = TILE / 2; half > 0; half /= 2) {
            if (threadIdx.y < half) part[threadIdx.y][threadIdx.x] += part[threadIdx.y + half][threadIdx.x];
            __syncthreads();
        }
        if (threadIdx.y == 0 && o < width) sums[o] = part[0][threadIdx.x] + (add ? sums[o] : 0.0f);
        __syncthreads();
    }
}

/* --- dropout: the masks of the CPU --- */

template <class T>
FN void drop_rows(const T *x, const unsigned *keys, T *y, i64 rows, i64 width, unsigned layer, unsigned threshold, float factor,
                  unsigned first)
{
    EACH_ROW(row, rows) {
        unsigned key = mp_mix(keys[row] ^ layer);
        for (i64 u = threadIdx.x; u < width; u += blockDim.x)
            put(y[row * width + u], mp_dropout(get(x[row * width + u]), key, first + (unsigned)u, threshold, factor));
    }
}

#define ROWWISE(NAME, T)                                                                                               \
    KERNEL bias_##NAME(T *y, const T *b, i64 rows, i64 width, int relu) { bias_rows(y, b, rows, width, relu); }    \
    KERNEL relu_gradient_##NAME(T *dy, const T *y, i64 n) { relu_gradients(dy, y, n); }                                \
    KERNEL __launch_bounds__(TILE * TILE)                                                                              \
        column_sums_##NAME(const T *a, float *sums, i64 rows, i64 width, int add)                                      \
    {                                                                                                                  \
        sum_columns(a, sums, rows, width, add);                                                                        \
    }                                                                                                                  \
    KERNEL dropout_##NAME(const T *x, const unsigned *keys, T *y, i64 rows, i64 width, unsigned layer,                 \
                          unsigned threshold, float factor, unsigned first)                                            \
    {                                                                                                                  \
        drop_rows(x, keys, y, rows, width, layer, threshold, factor, first);                                           \
    }
FORMATS(ROWWISE)

/* --- softmax cross-entropy: loss, number correct and gradient in one pass --- */

/* One row by all threads of a block: what mp_cross_entropy does, its sum over classes in another order. */
FN float block_cross_entropy(float *z, int classes, int target, int *correct, float *values, int *places)
{
    float largest = z[0]; /* as there: what is not greater than the first, such as NaN, is never the guess */
    int guess = 0;
    for (int k = threadIdx.x; k < classes; k += blockDim.x)
        if (z[k] > largest) largest = z[k], guess = k;
    block_first_largest(largest, guess, values, places);
    float of_target = z[target] - largest, sum = 0.0f;
    __syncthreads();
    for (int k = threadIdx.x; k < classes; k += blockDim.x) {
        z[k] = expf(z[k] - largest);
        sum += z[k];
    }
    sum = block_sum(sum, values);
    for (int k = threadIdx.x; k < classes; k += blockDim.x) {
        z[k] /= sum;
        if (k == target) z[k] -= 1.0f;
    }
    *correct = guess == target;
    return logf(sum) - of_target;
}

/* The last block adds up the rows' losses and hits, in an order that the number of rows fixes. */
FN void add_scores(const float *loss, const int *hits, i64 rows, float *sums, double *shared)
{
    double total = 0.0, correct = 0.0;
    for (i64 row = threadIdx.x; row < rows; row += blockDim.x) total += loss[row], correct += hits[row];
    total = block_sum(total, shared);
    correct = block_sum(correct, shared);
    if (threadIdx.x == 0) sums[0] += (float)total, sums[1] += (float)correct;
}

#define ROWS 512 /* threads of a block here */

/* z becomes dz. A thread takes a row: for few classes. */
KERNEL __launch_bounds__(ROWS, 1)
    cross_entropy_of_few(float *z, const int *target, float *loss, int *hits, i64 rows, int classes, float *sums, unsigned *ticket)
{
    __shared__ double shared[ROWS];
    EACH(row, rows) {
        float *mine = z + row * classes;
        loss[row] = mp_cross_entropy(mine, mine, classes, target[row], hits + row);
    }
    if (last_block(ticket, gridDim.x)) add_scores(loss, hits, rows, sums, shared);
}

/* The same; a block takes a row: for many classes */
KERNEL __launch_bounds__(ROWS, 1)
    cross_entropy_of_many(float *z, const int *target, float *loss, int *hits, i64 rows, int classes, float *sums, unsigned *ticket)
{
    __shared__ double shared[ROWS];
    __shared__ float values[ROWS];
    __shared__ int places[ROWS];
    EACH_ROW(row, rows) {
        int correct;
        float lost = block_cross_entropy(z + row * classes, classes, target[row], &correct, values, places);
        if (threadIdx.x == 0) loss[row] = lost, hits[row] = correct;
    }
    if (last_block(ticket, gridDim.x)) add_scores(loss, hits, rows, sums, shared);
}

/* --- casts, checks, sums of squares --- */

#define NARROW(NAME, T)                                                                                                \
    KERNEL narrow_##NAME(const float *a, T *out, i64 n)                                                                \
    {                                                                                                                  \
        each_ahead<float>(n, [=](i64 i) { return a[i]; }, [=](i64 i, float number) { put(out[i], number); });          \
    }
#define WIDEN(T)                                                                                                       \
    KERNEL widen_##T(const T *a, float *out, i64 n) { EACH(i, n) out[i] = get(a[i]); }
FORMATS(NARROW)
WIDEN(f16)
WIDEN(bf16)

/* *bad becomes NaN where not all numbers are finite; all who find one write the same. Where rows are to be counted, that is
 * done on the way. */
KERNEL check(const float *a, i64 n, float *bad, float *count, float rows)
{
    if (count && blockIdx.x == 0 && threadIdx.x == 0) *count += rows;
    unsigned found = 0; /* told at the end: a store within the loop would hold up the next loads */
    each_ahead<float>(n, [=](i64 i) { return a[i]; }, [&](i64, float number) { found |= mp_not_finite(number); });
    if (found) *bad = MP_NAN;
}

/* *out becomes the sum of squares; a partial sum a block, and the last one adds those up. */
KERNEL __launch_bounds__(MOST) squares(const float *a, i64 n, double *parts, double *out, unsigned *ticket)
{
    __shared__ double shared[MOST];
    double sum = 0.0;
    EACH(i, n) sum += (double)a[i] * a[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
    if (last_block(ticket, gridDim.x)) {
        sum = 0.0;
        for (unsigned k = threadIdx.x; k < gridDim.x; k += blockDim.x) sum += parts[k];
        sum = block_sum(sum, shared);
        if (threadIdx.x == 0) *out = sum;
    }
}

#include "small.cu"
#include "rules.cu"
