/* The arithmetic of one element or one row, stated once: openmp.c loops over it with threads, cuda.cu with a grid.
 *
 * Everything is float32. Products and sums are not contracted to fused multiply-adds (the build says so), so the same
 * numbers come out whichever vector instructions run. NumPy's expressions in device/expressions.py are the oracle.
 */
#ifndef MPI_PARALLEL_MATHS_H
#define MPI_PARALLEL_MATHS_H

#ifdef __CUDACC__
#define FN __device__ __forceinline__
#else
#include <math.h>
#define FN static inline
#endif

/* x = (raw - mean) / std, with the deviation given as its inverse */
FN float mp_normalise(float raw, float mean, float inverse_std) { return (raw - mean) * inverse_std; }

/* NaN stays NaN: bad numbers must be seen in the loss */
FN float mp_relu(float z) { return z < 0.0f ? 0.0f : z; }

/* dz = dy where the output y was positive */
FN float mp_relu_gradient(float dy, float y) { return y > 0.0f ? dy : 0.0f; }

/* The bits of a number, and back */
typedef union { float number; unsigned bits; } mp_bits;

/* The nearest number whose fraction has `kept` of float32's 23 bits, ties to even; too large becomes infinite, NaN stays */
FN float mp_shortened(float a, int kept)
{
    mp_bits u;
    u.number = a;
    unsigned lost = 23 - kept, half = (1u << (lost - 1)) - 1, nan = (u.bits & 0x7FFFFFFFu) > 0x7F800000u;
    u.bits = (u.bits + half + ((u.bits >> lost) & 1u)) & ~((1u << lost) - 1);
    return nan ? a : u.number;
}

/* To the nearest bfloat16, and to what a tensor core reads of a float32 as TF32 */
FN float mp_bfloat16(float a) { return mp_shortened(a, 7); }
FN float mp_tf32(float a) { return mp_shortened(a, 10); }

/* To the nearest float16 (IEEE binary16): below 2^-14 in steps of 2^-24, which is the step of float32 around 0.75 */
FN float mp_float16(float a)
{
    float size = fabsf(a), normal = mp_shortened(a, 10), small = (size + 0.75f) - 0.75f;
    small = a < 0.0f ? -small : small;
    float finite = size < 6.103515625e-05f ? small : normal;
    float large = a < 0.0f ? -INFINITY : INFINITY;
    return size >= 65520.0f ? large : finite;
}

/* Chris Wellons' lowbias32, as in device/hashing.py */
FN unsigned mp_mix(unsigned x)
{
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

#define MP_ROUNDS 6 /* as ROUNDS there */

/* One pass of a Feistel network over words below 4^half: in each round one half is changed by a hash of the other and the
 * round's key; the keys lie `apart` words from each other. */
FN unsigned mp_permute(unsigned word, const unsigned *keys, long apart, int half)
{
    unsigned mask = (1u << half) - 1u, left = word >> half, right = word & mask;
    for (int round = 0; round < MP_ROUNDS; ++round) {
        unsigned next = left ^ (mp_mix(right ^ keys[round * apart]) & mask);
        left = right;
        right = next;
    }
    return left << half | right;
}

/* 1 for NaN and the infinities, else 0 */
FN unsigned mp_not_finite(float a)
{
    mp_bits u;
    u.number = a;
    return (u.bits & 0x7F800000u) == 0x7F800000u;
}

/* Inverted dropout of one element: `row` is the mixed key of the row and the layer */
FN float mp_dropout(float x, unsigned row, unsigned unit, unsigned threshold, float factor)
{
    return mp_mix(row + unit) >= threshold ? x * factor : 0.0f;
}

/* Softmax cross-entropy of one row: from its K logits and target the gradient dz = softmax(z) - onehot(t); returns the loss
 * log(sum exp z) - z_t and says whether the first largest logit is the target's. z and dz may be the same row. */
FN float mp_cross_entropy(const float *z, float *dz, int classes, int target, int *correct)
{
    int guess = 0;
    for (int k = 1; k < classes; ++k)
        if (z[k] > z[guess]) guess = k;
    float largest = z[guess], of_target = z[target] - largest, sum = 0.0f;
    for (int k = 0; k < classes; ++k) {
        dz[k] = expf(z[k] - largest);
        sum += dz[k];
    }
    for (int k = 0; k < classes; ++k) dz[k] /= sum;
    dz[target] -= 1.0f;
    *correct = guess == target;
    return logf(sum) - of_target;
}

/* What only decays ends at zero. Subnormal numbers slow down every instruction that meets one, and the last few would stay
 * for ever, as 0.9 of them rounds to themselves. NaN stays NaN. */
FN float mp_settled(float a) { return fabsf(a) < 1.17549435e-38f ? 0.0f : a; }

/* The update rules, in the letters of nn/optimizers.py. `l2` is the weight decay that counts as gradient. */
FN void mp_sgd(float *w, float g, float alpha, float l2) { *w -= (g + l2 * *w) * alpha; }

FN void mp_momentum(float *w, float *v, float g, float alpha, float mu, float l2)
{
    *v = mp_settled(*v * mu + (g + l2 * *w));
    *w -= *v * alpha;
}

/* `step` is alpha sqrt(1 - beta2^t) / (1 - beta1^t), `epsilon` carries the same root, `keep` is 1 - alpha decay of AdamW */
FN void mp_adam(float *w, float *m, float *v, float g, float step, float beta1, float beta2, float epsilon, float l2, float keep)
{
    g += l2 * *w;
    *m = mp_settled(*m * beta1 + g * (1.0f - beta1));
    *v = mp_settled(*v * beta2 + g * g * (1.0f - beta2));
    *w = *w * keep - *m / (sqrtf(*v) + epsilon) * step;
}

#endif
