/* The arithmetic of one element or one row, stated once: openmp.c loops over it with threads, cuda.cu with a grid.
 *
 * Everything is float32. Products and sums are not contracted to fused multiply-adds (the build says so), so the same
 * numbers come out whichever vector instructions run. NumPy's expressions in device/expressions.py are the oracle.
 */
#ifndef MPI_PARALLEL_MATHS_H
#define MPI_PARALLEL_MATHS_H

#ifdef __CUDACC__
#define FN __device__ __forceinline__
#ifndef INFINITY
#define INFINITY __int_as_float(0x7F800000)
#endif
#define MP_COS_PI cospi
#else
#include <math.h>
#define FN static inline
#define MP_COS_PI(x) cos((x) * 3.14159265358979323846)
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

/* The 16 bits of a number in bfloat16 or float16, to its nearest, and back; NaN stays NaN */
FN unsigned short mp_pack_bfloat16(float a)
{
    mp_bits u;
    u.number = mp_bfloat16(a);
    return (unsigned short)(u.bits >> 16 | (a != a ? 0x40u : 0u));
}

FN float mp_unpack_bfloat16(unsigned short a)
{
    mp_bits u;
    u.bits = (unsigned)a << 16;
    return u.number;
}

FN unsigned short mp_pack_float16(float a)
{
    mp_bits u, size;
    u.number = a;
    size.number = fabsf(mp_float16(a));
    unsigned small = (unsigned)(int)(size.bits < 0x38800000u ? size.number * 16777216.0f : 0.0f);
    unsigned large = size.bits >= 0x7F800000u ? 0x7C00u | (a != a ? 0x200u : 0u) : (size.bits - 0x38000000u) >> 13;
    return (unsigned short)((u.bits >> 16 & 0x8000u) | (size.bits < 0x38800000u ? small : large));
}

FN float mp_unpack_float16(unsigned short a)
{
    mp_bits u;
    unsigned size = a & 0x7FFFu;
    u.bits = size >= 0x7C00u ? (size << 13) + 0x70000000u : (size << 13) + 0x38000000u;
    float small = (float)(int)size * 5.9604644775390625e-08f, number = size < 0x400u ? small : u.number;
    return a & 0x8000u ? -number : number;
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
    float largest = z[0], sum = 0.0f;
    for (int k = 1; k < classes; ++k)
        if (z[k] > largest) largest = z[k], guess = k;
    float of_target = z[target] - largest;
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

/* --- what only a GPU needs: with a CPU the pace is kept in Python --- */

#define MP_NAN mp_number(0x7FC00000u)

FN float mp_number(unsigned bits)
{
    mp_bits u;
    u.bits = bits;
    return u.number;
}

/* |w| / |r| of LAMB from both squares, 1 where one is 0 */
FN float mp_trust(double of_w, double of_r) { return of_w > 0.0 && of_r > 0.0 ? (float)sqrt(of_w / of_r) : 1.0f; }

/* The learning rate of a step, as nn/learning_rate.py has it */
FN double mp_rate(double step, double base, int cosine, double warmup, double total)
{
    if (step < warmup) return base * (step + 1.0) / warmup;
    if (!cosine) return base;
    double progress = (step - warmup) / (total - warmup > 1.0 ? total - warmup : 1.0);
    return base * 0.5 * (1.0 + MP_COS_PI(progress < 1.0 ? progress : 1.0));
}

/* beta1^t and beta2^t of the step behind `taken`, then of the one before it where this one is not taken: the four are
 * worked out by a thread each */
FN double mp_power(int which, double taken, double beta1, double beta2)
{
    double t = which < 2 ? taken + 1.0 : taken;
    return pow(which % 2 ? beta2 : beta1, t > 1.0 ? t : 1.0);
}

/* The pace of a step: Expressions.advance in device/expressions.py says what, device/interface.py where it stands.
 * `powers` are the four of mp_power. */
FN void mp_advance(double *pace, const float *tail, int last, const double *squares, int terms, double base, int cosine, double warmup, double total,
                   double clip, const double *powers, double growth)
{
    double loss_scale = pace[4], good = pace[5], taken = pace[6], begun = pace[7];
    if (pace[8] != 0.0) {
        pace[0] = MP_NAN;
        return;
    }
    double count = tail[2] > 1.0f ? tail[2] : 1.0, mean = 1.0 / (count * loss_scale), square = 0.0;
    for (int k = 0; k < terms; k++) square += squares[k];
    int finite = !mp_not_finite(tail[0] + tail[last]) && square - square == 0.0;
    if (clip > 0.0 && terms && finite) {
        double norm = sqrt(square) * mean, allowed = clip / (norm > 1e-30 ? norm : 1e-30);
        mean *= allowed < 1.0 ? allowed : 1.0;
    }
    taken += finite;
    double root = sqrt(1.0 - powers[finite ? 1 : 3]);
    good = finite ? good + 1.0 : 0.0;
    pace[0] = finite ? mean : MP_NAN;
    pace[1] = mp_rate(begun, base, cosine, warmup, total);
    pace[2] = root / (1.0 - powers[finite ? 0 : 2]);
    pace[3] = root;
    pace[8] = !finite && !(growth > 0.0 && !mp_not_finite(tail[0]) && loss_scale > 1.0);
    if (growth > 0.0 && !finite) loss_scale = loss_scale > 2.0 ? loss_scale / 2.0 : 1.0;
    if (growth > 0.0 && good >= growth) loss_scale = loss_scale < 8388608.0 ? loss_scale * 2.0 : 16777216.0, good = 0.0;
    pace[4] = loss_scale, pace[5] = good, pace[6] = taken, pace[7] = begun + 1.0;
}

#endif
