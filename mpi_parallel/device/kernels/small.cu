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

#define DEEPEST 6  /* layers */
#define SIDE 32    /* of a tile */
#define DEEP 128   /* terms of a sum that are at hand */
#define CREW 128   /* threads that share a tile, 4 rows and 2 columns each */
#define CREWS 4    /* that share the terms */
#define LOADS (SIDE * DEEP / (CREW * CREWS)) /* of a factor by a thread */
#define TOGETHER 2 /* rows that go through the layers together */
#define BATCH 8    /* numbers that a thread has under way */
#define ABREAST 256 /* threads that take them, and the widest layer behind the images */

/* Layer l has of[l] inputs and of[l + 1] outputs; `weights` and `biases` say where its W and b are, and their gradients. A
 * row keeps the outputs of the hidden layers and then the gradients dz of all, `kept` numbers: `output` and `gradient` say
 * where. */
struct Layers {
    int depth, hidden, kept, of[DEEPEST + 1], weights[DEEPEST], biases[DEEPEST], output[DEEPEST], gradient[DEEPEST];
};

/* --- tiles --- */

struct alignas(16) Four { float at[4]; };
struct alignas(8) Two { float at[2]; };

struct Tile {
    Four left[DEEP][SIDE / 4 + 1];
    Two right[DEEP][SIDE / 2];
};

/* mine (4, 2) += sum over k < terms of left_of(k, i) right_of(k, o). Neighbouring threads ask for the left factor's
 * neighbours in k, or in i; what lies outside is 0. `each` sees what is at hand of the right factor. */
template <bool ALONG_K, class Left, class Right, class Each>
FN void add_tile(Tile &tile, int terms, Left left_of, Right right_of, Each each, float (&mine)[4][2])
{
    int me = threadIdx.x, crew = me / CREW, i = me % CREW / 16, o = me % 16;
    for (int first = 0; first < terms; first += DEEP) {
        float a[LOADS], b[LOADS];
        for (int load = 0; load < LOADS; ++load) {
            int k = me / SIDE + load * (DEEP / LOADS);
            a[load] = ALONG_K ? left_of(first + me % DEEP, me / DEEP + load * CREWS) : left_of(first + k, me % SIDE);
            b[load] = right_of(first + k, me % SIDE);
        }
        __syncthreads(); /* all are through with what was there */
        for (int load = 0; load < LOADS; ++load) {
            int k = me / SIDE + load * (DEEP / LOADS), place = ALONG_K ? me / DEEP + load * CREWS : me % SIDE;
            tile.left[ALONG_K ? me % DEEP : k][place / 4].at[place % 4] = a[load];
            tile.right[k][me % SIDE / 2].at[me % 2] = b[load];
        }
        __syncthreads();
#pragma unroll 8
        for (int k = crew * (DEEP / CREWS); k < (crew + 1) * (DEEP / CREWS); ++k) {
            Four left = tile.left[k][i];
            Two right = tile.right[k][o];
            for (int r = 0; r < 4; ++r)
                for (int c = 0; c < 2; ++c) mine[r][c] = fmaf(left.at[r], right.at[c], mine[r][c]);
        }
        each(tile, crew);
    }
}

/* The crews' sums, added up in their order by the first. */
template <int COUNT> FN void join_crews(Tile &tile, float *mine)
{
    float *shared = tile.left[0][0].at;
    int crew = threadIdx.x / CREW, me = threadIdx.x % CREW;
    __syncthreads();
    for (int c = 0; crew > 0 && c < COUNT; ++c) shared[((crew - 1) * COUNT + c) * CREW + me] = mine[c];
    __syncthreads();
    for (int other = 0; crew == 0 && other < CREWS - 1; ++other)
        for (int c = 0; c < COUNT; ++c) mine[c] += shared[(other * COUNT + c) * CREW + me];
}

FN int tiles_of(int length) { return (length + SIDE - 1) / SIDE; }

/* parts (slices, rows, outputs): of x W each DEEP terms */
KERNEL __launch_bounds__(CREW *CREWS) small_first(const float *x, const float *weights, int rows, __grid_constant__ const Layers n, float *parts)
{
    __shared__ Tile tile;
    int inputs = n.of[0], outputs = n.of[1], across = tiles_of(outputs), down = tiles_of(rows);
    int slices = (inputs + DEEP - 1) / DEEP;
    const float *W = weights + n.weights[0];
    for (int number = blockIdx.x; number < across * down * slices; number += gridDim.x) {
        int column = number % across * SIDE, slice = number / across % slices;
        int row = number / across / slices * SIDE;
        const float *x_here = x + row * inputs + slice * DEEP, *W_here = W + slice * DEEP * outputs + column;
        int terms = inputs - slice * DEEP < DEEP ? inputs - slice * DEEP : DEEP;
        float mine[4][2] = {};
        add_tile<true>(
            tile, terms, [=](int k, int i) { return k < terms && row + i < rows ? x_here[i * inputs + k] : 0.0f; },
            [=](int k, int o) { return k < terms && column + o < outputs ? W_here[k * outputs + o] : 0.0f; },
            [](const Tile &, int) {}, mine);
        join_crews<8>(tile, mine[0]);
        int i = row + threadIdx.x / 16 * 4;
        int o = column + threadIdx.x % 16 * 2;
        for (int r = 0; threadIdx.x < CREW && r < 4; ++r)
            for (int c = 0; c < 2; ++c)
                if (i + r < rows && o + c < outputs) parts[(slice * rows + i + r) * outputs + o + c] = mine[r][c];
    }
}

/* dW and db of all layers, in the order of the store; *bad becomes NaN where not all of them are finite */
KERNEL __launch_bounds__(CREW *CREWS)
    small_weights(const float *x, const float *kept, int rows, __grid_constant__ const Layers n, float *gradients, float *bad)
{
    __shared__ Tile tile;
    int wide = n.kept, number = blockIdx.x, before = 0;
    for (int layer = 0; layer < n.depth; ++layer) {
        int inputs = n.of[layer], outputs = n.of[layer + 1], across = tiles_of(outputs), count = across * tiles_of(inputs);
        int stride = layer ? wide : inputs;
        const float *left = layer ? kept + n.output[layer - 1] : x, *right = kept + n.gradient[layer];
        float *dW = gradients + n.weights[layer], *db = gradients + n.biases[layer];
        for (; number < before + count; number += gridDim.x) {
            int column = (number - before) % across * SIDE, row = (number - before) / across * SIDE;
            float mine[4][2] = {}, sum[1] = {};
            add_tile<false>(
                tile, rows, [=](int k, int i) { return k < rows && row + i < inputs ? left[k * stride + row + i] : 0.0f; },
                [=](int k, int o) { return k < rows && column + o < outputs ? right[k * wide + column + o] : 0.0f; },
                [&](const Tile &at_hand, int crew) { /* the sum of the columns falls to the first tiles of them */
                    int o = threadIdx.x % CREW;
                    if (row == 0 && o < SIDE)
                        for (int k = crew * (DEEP / CREWS); k < (crew + 1) * (DEEP / CREWS); ++k)
                            sum[0] += at_hand.right[k][o / 2].at[o % 2];
                },
                mine);
            join_crews<8>(tile, mine[0]);
            if (row == 0) join_crews<1>(tile, sum);
            int i = row + threadIdx.x / 16 * 4, o = column + threadIdx.x % 16 * 2, fine = 1;
            for (int r = 0; threadIdx.x < CREW && r < 4; ++r)
                for (int c = 0; c < 2; ++c)
                    if (i + r < inputs && o + c < outputs) {
                        dW[(i + r) * outputs + o + c] = mine[r][c];
                        fine &= !mp_not_finite(mine[r][c]);
                    }
            if (row == 0 && threadIdx.x < SIDE && column + threadIdx.x < outputs) {
                db[column + threadIdx.x] = sum[0];
                fine &= !mp_not_finite(sum[0]);
            }
            if (!fine) *bad = MP_NAN;
        }
        before += count;
    }
}

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
