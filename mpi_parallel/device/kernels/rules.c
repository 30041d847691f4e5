/* A part of openmp.c: what becomes of gradients. The arithmetic of an element is maths.h's. */

/* --- merging sums: the slots of several ranks lie `stride` floats apart and are summed in the order of the ranks --- */

#define BLOCK 1024 /* elements whose sum stays in the first cache */

#define EACH_BLOCK(FROM, N)                                                                                            \
    for (long FROM = begin, N; (N = end - FROM < BLOCK ? end - FROM : BLOCK) > 0; FROM += BLOCK)

/* the sum of n elements of the slots: the only slot itself, or in `buffer` */
static inline const float *summed(const float *slots, long stride, int count, long n, float *buffer)
{
    if (count == 1) return slots;
    const float *second = slots + stride;
    _Pragma("omp simd") for (long i = 0; i < n; ++i) buffer[i] = slots[i] + second[i];
    for (int slot = 2; slot < count; ++slot) {
        const float *from = slots + slot * stride;
        _Pragma("omp simd") for (long i = 0; i < n; ++i) buffer[i] += from[i];
    }
    return buffer;
}

VECTORS static void sum_slots_part(float *out, const float *slots, long stride, int count, long begin, long end)
{
    float buffer[BLOCK];
    EACH_BLOCK(from, n) {
        const float *g = summed(slots + from, stride, count, n, buffer);
        if (g != out + from) memcpy(out + from, g, n * sizeof *g);
    }
}

/* out[i] = slots[0][i] + slots[1][i] + ...; out may be a slot */
void sum_slots(float *out, const float *slots, long stride, int count, long n)
{
    SHARE(n, count, sum_slots_part(out, slots, stride, count, begin, end));
}

/* --- update rules: the gradient is the sum of slots, scaled (by one over the rows, times what clipping leaves) --- */

VECTORS static void sgd_part(float *restrict w, const float *restrict slots, long stride, int count, long begin, long end,
                             float scale, float alpha, float l2)
{
    float buffer[BLOCK];
    EACH_BLOCK(from, n) {
        const float *g = summed(slots + from, stride, count, n, buffer);
        float *x = w + from;
        _Pragma("omp simd") for (long i = 0; i < n; ++i) mp_sgd(x + i, g[i] * scale, alpha, l2);
    }
}

void sgd(float *w, const float *slots, long stride, int count, long n, float scale, float alpha, float l2)
{
    SHARE(n, 1, sgd_part(w, slots, stride, count, begin, end, scale, alpha, l2));
}

VECTORS static void momentum_part(float *restrict w, float *restrict v, const float *restrict slots, long stride, int count,
                                  long begin, long end, float scale, float alpha, float mu, float l2)
{
    float buffer[BLOCK];
    EACH_BLOCK(from, n) {
        const float *g = summed(slots + from, stride, count, n, buffer);
        float *x = w + from, *y = v + from;
        _Pragma("omp simd") for (long i = 0; i < n; ++i) mp_momentum(x + i, y + i, g[i] * scale, alpha, mu, l2);
    }
}

void momentum(float *w, float *v, const float *slots, long stride, int count, long n, float scale, float alpha, float mu,
              float l2)
{
    SHARE(n, 1, momentum_part(w, v, slots, stride, count, begin, end, scale, alpha, mu, l2));
}

VECTORS static void adam_part(float *restrict w, float *restrict m, float *restrict v, const float *restrict slots,
                              long stride, int count, long begin, long end, float scale, float step, float beta1,
                              float beta2, float epsilon, float l2, float keep)
{
    float buffer[BLOCK];
    EACH_BLOCK(from, n) {
        const float *g = summed(slots + from, stride, count, n, buffer);
        float *x = w + from, *first = m + from, *second = v + from;
        _Pragma("omp simd") for (long i = 0; i < n; ++i)
            mp_adam(x + i, first + i, second + i, g[i] * scale, step, beta1, beta2, epsilon, l2, keep);
    }
}

void adam(float *w, float *m, float *v, const float *slots, long stride, int count, long n, float scale, float step,
          float beta1, float beta2, float epsilon, float l2, float keep)
{
    SHARE(n, 1, adam_part(w, m, v, slots, stride, count, begin, end, scale, step, beta1, beta2, epsilon, l2, keep));
}
