/* A part of cuda.cu: a whole pass of a small network, forward and backward, in three launches.
 *
 *   small_first     x W of the first layer: a block has a tile of it, and DEEP terms of its sums
 *   small_rows      all that follows, by rows: a block takes some through all layers to the loss and back; the weights of
 *                   the layers behind the first lie in its shared memory
 *   small_weights   x^T dz of all layers: a block has a tile of one of them
 *
 * With few rows of a narrow network a GPU waits for its launches and its memory, not for arithmetic, and layer by layer
 * there are ten more of them. Sums go in an order that the shapes fix, products are fused multiply-adds. float32 alone.
 */

#define DEEPEST 6   /* layers */
#define TOGETHER 2  /* rows that go through the layers together */
#define BATCH 8     /* numbers that a thread has under way */
#define ABREAST 256 /* threads that take them, and the widest layer behind the images */

/* Layer l has of[l] inputs and of[l + 1] outputs; `weights` and `biases` say where its W and b are, and their gradients. A
 * row keeps the outputs of the hidden layers and then the gradients dz of all, `kept` numbers: `output` and `gradient` say
 * where. */
struct Layers {
    int depth, hidden, kept, of[DEEPEST + 1], weights[DEEPEST], biases[DEEPEST], output[DEEPEST], gradient[DEEPEST];
};

#include "small_tiles.cu"

/* --- rows --- */

/* sums (TOGETHER, outs) of a layer for the rows of a block: over k < terms of factors[r][k] with of_weight(k, o). All
 * threads share outs and terms: `part` takes what each has, and `put_sum` the whole, from one thread. */
template <class Weight, class Put>
FN void sum_of_rows(const float *factors, int stride, int terms, int outs, float *part, Weight of_weight, Put put_sum)
{
    int lane = 1;
    while (lane < outs) lane *= 2;
    int o = threadIdx.x % lane, p = threadIdx.x / lane, shares = ABREAST / lane;
    float mine[TOGETHER] = {};
    for (int k = p; o < outs && k < terms; k += shares) {
        float w = of_weight(k, o);
        for (int r = 0; r < TOGETHER; ++r) mine[r] = fmaf(factors[r * stride + k], w, mine[r]);
    }
    for (int r = 0; r < TOGETHER; ++r) part[(p * TOGETHER + r) * lane + o] = mine[r];
    __syncthreads();
    for (int e = threadIdx.x; e < TOGETHER * outs; e += ABREAST) {
        float sum = 0.0f;
        for (int share = 0; share < shares; ++share) sum += part[(share * TOGETHER + e / outs) * lane + e % outs];
        put_sum(e / outs, e % outs, sum);
    }
    __syncthreads();
}

/* (ins, outs) weights to shared memory, each row `odd` behind the last, and their biases as one more row. Returns what comes
 * behind. All that a thread reads in a turn is under way before it writes. */
FN float *take_weights(float *to, const float *W, const float *b, int ins, int outs)
{
    int k = threadIdx.x / outs, o = threadIdx.x % outs, steps = ABREAST / outs, rest = ABREAST % outs, odd = outs | 1;
    for (int first = threadIdx.x; first < ins * outs; first += ABREAST * BATCH) {
        float read[BATCH];
        for (int n = 0; n < BATCH; ++n) read[n] = first + n * ABREAST < ins * outs ? W[first + n * ABREAST] : 0.0f;
        for (int n = 0; n < BATCH; ++n) {
            if (first + n * ABREAST < ins * outs) to[k * odd + o] = read[n];
            k += steps, o += rest;
            if (o >= outs) o -= outs, ++k;
        }
    }
    to += ins * odd;
    for (int u = threadIdx.x; u < outs; u += ABREAST) to[u] = b[u];
    return to + odd;
}

/* From the sums of the first layer to the gradients dz of all, the loss and the number correct. The tail (nn/store.py)
 * becomes this batch's. `room` has the weights of the layers behind the first, then the outputs of the hidden layers, two
 * dz and the parts of sums (cuda_small.py counts it). */
KERNEL __launch_bounds__(ABREAST)
    small_rows(const float *parts, const float *weights, const unsigned *keys, const int *target, int rows,
               __grid_constant__ const Layers n, unsigned threshold, float factor, float *kept, float *loss, int *hits,
               float *tail, unsigned *ticket)
{
    ROOM(room);
    __shared__ double shared[ABREAST];
    int classes = n.of[n.depth], slices = (n.of[0] + DEEP - 1) / DEEP;
    const float *b_first = weights + n.biases[0];
    float *end = room;
    for (int l = 1; l < n.depth; ++l)
        end = take_weights(end, weights + n.weights[l], weights + n.biases[l], n.of[l], n.of[l + 1]);
    float *x = end, *dz = x + TOGETHER * n.hidden, *next = dz + TOGETHER * ABREAST, *part = next + TOGETHER * ABREAST;

    for (int first = blockIdx.x * TOGETHER; first < rows; first += gridDim.x * TOGETHER) {
        int mine = first + threadIdx.x, wanted = threadIdx.x < TOGETHER && mine < rows ? target[mine] : 0;
        /* An output of a hidden layer, from its sum; also of rows that are not there, which nobody keeps. */
        auto put_output = [&](int layer, int r, int o, float z) {
            int row = first + r < rows ? first + r : rows - 1;
            unsigned key = mp_mix(keys[row] ^ mp_mix((unsigned)layer + 0x7F4A7C15u)); /* hashing.combine_int(layer) */
            float y = mp_dropout(mp_relu(z), key, (unsigned)o, threshold, factor);
            x[r * n.hidden + n.output[layer] + o] = y;
            if (first + r < rows) kept[row * n.kept + n.output[layer] + o] = y;
        };
        for (int e = threadIdx.x; e < TOGETHER * n.of[1]; e += ABREAST) {
            int r = e / n.of[1], o = e % n.of[1];
            float z = 0.0f;
            for (int slice = 0; slice < slices && first + r < rows; ++slice)
                z += parts[(slice * rows + first + r) * n.of[1] + o];
            put_output(0, r, o, z + b_first[o]);
        }
        __syncthreads();
        const float *W = room;
        for (int l = 1; l < n.depth; ++l) {
            int ins = n.of[l], outs = n.of[l + 1], odd = outs | 1;
            bool last = l == n.depth - 1;
            sum_of_rows(
                x + n.output[l - 1], n.hidden, ins, outs, part, [=](int k, int o) { return W[k * odd + o]; },
                [&](int r, int o, float sum) {
                    float z = sum + W[ins * odd + o];
                    if (last) dz[r * classes + o] = z;
                    else put_output(l, r, o, z);
                });
            W += (ins + 1) * odd;
        }
        if (threadIdx.x < TOGETHER && mine < rows) {
            float *z = dz + threadIdx.x * classes;
            loss[mine] = mp_cross_entropy(z, z, classes, wanted, hits + mine);
        }
        __syncthreads();
        for (int e = threadIdx.x; e < TOGETHER * classes; e += ABREAST)
            if (first + e / classes < rows)
                kept[(first + e / classes) * n.kept + n.gradient[n.depth - 1] + e % classes] = dz[e];
        for (int l = n.depth - 1; l > 0; --l) {
            int ins = n.of[l], outs = n.of[l + 1], odd = outs | 1;
            W -= (ins + 1) * odd;
            sum_of_rows(
                dz, outs, outs, ins, part, [=](int o, int k) { return W[k * odd + o]; },
                [&](int r, int k, float sum) {
                    float z = mp_relu_gradient(sum * factor, x[r * n.hidden + n.output[l - 1] + k]);
                    next[r * ins + k] = z;
                    if (first + r < rows) kept[(first + r) * n.kept + n.gradient[l - 1] + k] = z;
                });
            float *swap = dz;
            dz = next, next = swap;
        }
    }
    if (last_block(ticket)) {
        if (threadIdx.x == 0)
            for (int k = 0; k < 6; ++k) tail[k] = k == 2 ? (float)rows : 0.0f;
        add_scores(loss, hits, rows, tail, shared);
    }
}
