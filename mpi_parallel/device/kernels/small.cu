/* A part of cuda.cu: a whole pass of a small network, forward and backward, in three launches.
 *
 *   small_first     x W of the first layer: a block has a tile of it, and a slice of its sums' terms
 *   small_rows      all that follows, by rows: a block takes some through all layers to the loss and back; the weights of
 *                   the layers behind the first lie in its shared memory
 *   small_weights   x^T dz of all layers: a block has a tile of one of them, and some or all rows
 *
 * With few rows of a narrow network a GPU waits for its launches and its memory, not for arithmetic, and layer by layer
 * there are ten more of them. Sums go in an order that the shapes fix, products are fused multiply-adds. float32 alone.
 */

#define DEEPEST 6   /* layers */
#define BATCH 16    /* numbers that a thread has under way */
#define ABREAST 256 /* threads that take rows through the layers, and the widest layer behind the images */

/* Layer l has of[l] inputs and of[l + 1] outputs; `weights` and `biases` say where its W and b are, and their gradients. A
 * row keeps the outputs of the hidden layers and then the gradients dz of all, `kept` numbers: `output` and `gradient` say
 * where. */
struct Layers {
    int depth, hidden, kept, of[DEEPEST + 1], weights[DEEPEST], biases[DEEPEST], output[DEEPEST], gradient[DEEPEST];
};

#include "small_tiles.cu"

/* --- rows: R of them go through the layers together, number by number: of unit u lie those of all rows side by side --- */

template <int R> struct alignas(4 * R) Rows { float at[R]; };

/* sums (outs, R) of a layer for the rows of a block: over k < terms of factors[k][r] with of_weight(k, o). All threads
 * share outs and terms: `part` takes what each has, and `put_sum` the whole, from one thread. */
template <int R, class Weight, class Put>
FN void sum_of_rows(const Rows<R> *factors, int terms, int outs, float *part, Weight of_weight, Put put_sum)
{
    int power = 0;
    while (1 << power < outs) ++power;
    int lane = 1 << power, o = threadIdx.x & (lane - 1), p = threadIdx.x >> power, shares = ABREAST >> power;
    int turns = (terms - p + shares - 1) * lane / ABREAST; /* as often as p, p + shares, ... is below terms */
    float mine[R] = {};
#pragma unroll 4
    for (int turn = 0; turn < turns; ++turn) {
        int k = p + turn * shares;
        Rows<R> x = factors[k];
        float w = of_weight(k, o < outs ? o : 0);
        for (int r = 0; r < R; ++r) mine[r] = fmaf(x.at[r], w, mine[r]);
    }
    for (int r = 0; r < R; ++r) part[(p * R + r) * lane + o] = mine[r];
    __syncthreads();
    for (int e = threadIdx.x; e < R * outs; e += ABREAST) {
        int r = e / outs, u = e % outs;
        float sum = 0.0f;
#pragma unroll 4
        for (int share = 0; share < shares; ++share) sum += part[(share * R + r) * lane + u];
        put_sum(r, u, sum);
    }
    __syncthreads();
}

/* (ins, outs) weights to shared memory, each row `odd` behind the last, and their biases as one more row. Returns what comes
 * behind. All that a thread reads in a turn is under way before it writes. */
FN float *take_weights(float *to, const float *W, const float *b, int ins, int outs)
{
    int k = threadIdx.x / outs, o = threadIdx.x % outs, steps = ABREAST / outs, rest = ABREAST % outs, odd = outs | 1;
    float bias = (int)threadIdx.x < outs ? b[threadIdx.x] : 0.0f; /* no layer is wider than the block */
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
    if ((int)threadIdx.x < outs) to[threadIdx.x] = bias;
    return to + odd;
}

/* What mp_cross_entropy does, of the R rows of a block: z (classes, R) becomes dz. A thread takes what goes through a row
 * in turn, and all threads the rest. `seen` has room for three numbers a row, `put` gets each dz as well. */
template <int R, class Put>
FN void cross_entropy_of_rows(float *z, int classes, const int *target, int rows, float *loss, int *hits, float *seen, Put put)
{
    int r = threadIdx.x, wanted = r < R && r < rows ? target[r] : 0, guess = 0, *aim = (int *)(seen + 2 * R);
    float of_target = 0.0f;
    if (r < R) {
        float largest = z[r];
        for (int k = 1; k < classes; ++k)
            if (z[k * R + r] > largest) largest = z[k * R + r], guess = k;
        of_target = z[wanted * R + r] - largest;
        seen[r] = largest, aim[r] = wanted;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < R * classes; e += ABREAST) z[e] = expf(z[e] - seen[e % R]);
    __syncthreads();
    if (r < R) {
        float sum = 0.0f;
        for (int k = 0; k < classes; ++k) sum += z[k * R + r];
        seen[R + r] = sum;
        if (r < rows) loss[r] = logf(sum) - of_target, hits[r] = guess == wanted;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < R * classes; e += ABREAST) {
        z[e] = z[e] / seen[R + e % R] - (e / R == aim[e % R] ? 1.0f : 0.0f);
        put(e % R, e / R, z[e]);
    }
    __syncthreads();
}

/* From the sums of the first layer, in slices, to the gradients dz of all, the loss and the number correct. The tail
 * (nn/store.py) becomes this batch's. `room` has the weights of the layers behind the first, then the outputs of the hidden
 * layers, two dz and the parts of sums (cuda_small.py counts it). */
template <int R>
FN void rows_through(const float *parts, const float *weights, const unsigned *keys, const int *target, int rows, const Layers &n,
                     int slices, unsigned threshold, float factor, float *kept, float *loss, int *hits, float *tail,
                     unsigned *ticket)
{
    ROOM(room);
    __shared__ double shared[ABREAST];
    __shared__ float seen[3 * R];
    int classes = n.of[n.depth];
    const float *b_first = weights + n.biases[0];
    float *end = room;
    for (int l = 1; l < n.depth; ++l)
        end = take_weights(end, weights + n.weights[l], weights + n.biases[l], n.of[l], n.of[l + 1]);
    Rows<R> *x = (Rows<R> *)(room + (end - room + 3) / 4 * 4), *dz = x + n.hidden, *next = dz + ABREAST;
    float *part = next[ABREAST].at;

    for (int first = blockIdx.x * R; first < rows; first += gridDim.x * R) {
        /* An output of a hidden layer, from its sum; also of rows that are not there, which nobody keeps. */
        auto put_output = [&](int layer, int r, int o, float z) {
            int row = first + r < rows ? first + r : rows - 1;
            unsigned key = mp_mix(keys[row] ^ mp_mix((unsigned)layer + 0x7F4A7C15u)); /* hashing.combine_int(layer) */
            float y = mp_dropout(mp_relu(z), key, (unsigned)o, threshold, factor);
            x[n.output[layer] + o].at[r] = y;
            if (first + r < rows) kept[row * n.kept + n.output[layer] + o] = y;
        };
        for (int e = threadIdx.x; e < R * n.of[1]; e += ABREAST) {
            int r = e / n.of[1], o = e % n.of[1], row = first + r < rows ? first + r : rows - 1;
            float z = 0.0f, bias = b_first[o];
            for (int slice = 0; slice < slices; slice += BATCH / 2) {
                float read[BATCH / 2];
                for (int k = 0; k < BATCH / 2; ++k)
                    read[k] = slice + k < slices ? parts[((slice + k) * rows + row) * n.of[1] + o] : 0.0f;
                for (int k = 0; k < BATCH / 2; ++k) z += read[k];
            }
            put_output(0, r, o, z + bias);
        }
        __syncthreads();
        const float *W = room;
        for (int l = 1; l < n.depth; ++l) {
            int ins = n.of[l], outs = n.of[l + 1], odd = outs | 1;
            bool last = l == n.depth - 1;
            sum_of_rows<R>(
                x + n.output[l - 1], ins, outs, part, [=](int k, int o) { return W[k * odd + o]; },
                [&](int r, int o, float sum) {
                    float z = sum + W[ins * odd + o];
                    if (last) dz[o].at[r] = z;
                    else put_output(l, r, o, z);
                });
            W += (ins + 1) * odd;
        }
        cross_entropy_of_rows<R>(dz[0].at, classes, target + first, rows - first, loss + first, hits + first, seen,
                                 [&](int r, int k, float z) {
                                     if (first + r < rows) kept[(first + r) * n.kept + n.gradient[n.depth - 1] + k] = z;
                                 });
        for (int l = n.depth - 1; l > 0; --l) {
            int ins = n.of[l], outs = n.of[l + 1], odd = outs | 1;
            W -= (ins + 1) * odd;
            sum_of_rows<R>(
                dz, outs, ins, part, [=](int o, int k) { return W[k * odd + o]; },
                [&](int r, int k, float sum) {
                    float z = mp_relu_gradient(sum * factor, x[n.output[l - 1] + k].at[r]);
                    next[k].at[r] = z;
                    if (first + r < rows) kept[(first + r) * n.kept + n.gradient[l - 1] + k] = z;
                });
            Rows<R> *swap = dz;
            dz = next, next = swap;
        }
    }
    if (last_block(ticket, gridDim.x)) {
        if (threadIdx.x == 0)
            for (int k = 0; k < 6; ++k) tail[k] = k == 2 ? (float)rows : 0.0f;
        add_scores(loss, hits, rows, tail, shared);
    }
}

#define SMALL_ROWS(R)                                                                                                    \
    KERNEL __launch_bounds__(ABREAST)                                                                                    \
        small_rows_##R(const float *parts, const float *weights, const unsigned *keys, const int *target, int rows,      \
                       __grid_constant__ const Layers n, int slices, unsigned threshold, float factor, float *kept,      \
                       float *loss, int *hits, float *tail, unsigned *ticket)                                            \
    {                                                                                                                    \
        rows_through<R>(parts, weights, keys, target, rows, n, slices, threshold, factor, kept, loss, hits, tail, ticket); \
    }
SMALL_ROWS(2)
SMALL_ROWS(4)
