/* A part of cuda.cu: what becomes of gradients, and the pace of steps. The arithmetic of an element is maths.h's. */

/* --- merging sums and update rules: the gradient is the sum of slots, in their order, scaled --- */

struct Slots { const float *first; i64 stride; int count; };

/* The sum of the slots, of which the first holds `sum` */
FN float summed(const Slots &slots, i64 i, float sum)
{
#pragma unroll 1 /* registers are for what is loaded ahead */
    for (int slot = 1; slot < slots.count; ++slot) sum += slots.first[slot * slots.stride + i];
    return sum;
}

KERNEL sum_slots(float *out, const float *first, i64 stride, int count, i64 n)
{
    Slots slots = {first, stride, count};
    EACH(i, n) out[i] = summed(slots, i, first[i]);
}

/* What a rule is told: from a pace array where there is one (see device/interface.py), else by value */
struct Pace { float scale, alpha, correction, root; };

FN Pace pace_of(const double *from, float scale, float alpha, float correction, float root)
{
    Pace given = {scale, alpha, correction, root};
    if (from) {
        Pace kept = {(float)from[0], (float)from[1], (float)from[2], (float)from[3]};
        given = kept;
    }
    return given;
}

/* SLOTS and PACE begin the parameters of every rule; HEED leaves everything as it is where the step is not to be taken. */
#define SLOTS_AND_PACE                                                                                                 \
    const float *first, i64 stride, int count, i64 n, const double *from, float scale, float alpha, float correction,  \
        float root
#define HEED                                                                                                           \
    Slots slots = {first, stride, count};                                                                              \
    Pace pace = pace_of(from, scale, alpha, correction, root);                                                         \
    if (pace.scale != pace.scale) return;

/* What a rule changes of an element, and the first slot of its gradient */
template <int COUNT> struct Element { float of[COUNT], g; };

/* Where the weights go as operands, too: as float16, or bfloat16 if not `half`; nowhere without an address */
struct Factors { u16 *to; int half; };

/* The rule for every element: `rule(of, g)` changes the numbers that it has in these arrays, of which the weights are first. */
template <int COUNT, class Rule>
FN void update(float *const (&arrays)[COUNT], const Slots &slots, float scale, i64 n, const Factors &factors, Rule rule)
{
    each_ahead<Element<COUNT>>(
        n,
        [&](i64 i) {
            Element<COUNT> element;
            for (int k = 0; k < COUNT; ++k) element.of[k] = arrays[k][i];
            element.g = slots.first[i];
            return element;
        },
        [&](i64 i, Element<COUNT> &element) {
            rule(element.of, summed(slots, i, element.g) * scale);
            for (int k = 0; k < COUNT; ++k) arrays[k][i] = element.of[k];
            if (factors.to)
                factors.to[i] = factors.half ? mp_pack_float16(element.of[0]) : mp_pack_bfloat16(element.of[0]);
        });
}

KERNEL sgd(float *w, SLOTS_AND_PACE, float l2, u16 *to, int half)
{
    HEED
    float *arrays[] = {w};
    update(arrays, slots, pace.scale, n, Factors{to, half}, [=](float *of, float g) { mp_sgd(of, g, pace.alpha, l2); });
}

KERNEL momentum(float *w, float *v, SLOTS_AND_PACE, float mu, float l2, u16 *to, int half)
{
    HEED
    float *arrays[] = {w, v};
    update(arrays, slots, pace.scale, n, Factors{to, half}, [=](float *of, float g) { mp_momentum(of, of + 1, g, pace.alpha, mu, l2); });
}

KERNEL __launch_bounds__(SHARERS)
    adam(float *w, float *m, float *v, SLOTS_AND_PACE, float beta1, float beta2, float epsilon, float l2, float decay, u16 *to,
         int half)
{
    HEED
    float step = pace.alpha * pace.correction, keep = 1.0f - pace.alpha * decay;
    epsilon *= pace.root;
    float *arrays[] = {w, m, v};
    update(arrays, slots, pace.scale, n, Factors{to, half}, [=](float *of, float g) {
        mp_adam(of, of + 1, of + 2, g, step, beta1, beta2, epsilon, l2, keep);
    });
}

KERNEL lamb(float *r, const float *w, float *m, float *v, SLOTS_AND_PACE, float beta1, float beta2, float epsilon, float decay)
{
    HEED
    epsilon *= pace.root;
    EACH(i, n) {
        r[i] = w[i] * decay; /* Adam's step of size 1, upwards from the decay */
        mp_adam(r + i, m + i, v + i, summed(slots, i, first[i]) * pace.scale, -pace.correction, beta1, beta2, epsilon, 0.0f, 1.0f);
    }
}

/* w -= alpha |w| / |r| r */
KERNEL trust(float *w, float *r, i64 n, const double *squares_2, const double *from, float scale, float alpha)
{
    Pace pace = pace_of(from, scale, alpha, 0.0f, 0.0f);
    if (pace.scale != pace.scale) return;
    float ratio = pace.alpha * mp_trust(squares_2[0], squares_2[1]);
    EACH(i, n) {
        r[i] *= ratio;
        w[i] -= r[i];
    }
}

/* The pace of the step with this merged tail, by the first thread; tail and pace go to its row of the host's memory. One block */
KERNEL advance(double *pace, const float *tail, int last, const double *squares, int terms, double base, int cosine, double warmup, double total,
               double clip, double beta1, double beta2, double growth, double *told, int rows, int width)
{
    double *row = told + ((long long)pace[7] % rows) * width;
    int from = pace[8] != 0.0 ? width : threadIdx.x;
    __shared__ double powers[4];
    if (threadIdx.x < 4) powers[threadIdx.x] = mp_power(threadIdx.x, pace[6], beta1, beta2);
    __syncthreads();
    if (threadIdx.x == 0) mp_advance(pace, tail, last, squares, terms, base, cosine, warmup, total, clip, powers, growth);
    __syncthreads();
    for (int k = from; k < width; k += blockDim.x) row[k] = k <= last ? (double)tail[k] : pace[k - last - 1];
}
