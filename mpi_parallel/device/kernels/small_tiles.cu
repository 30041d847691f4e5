/* A part of small.cu: products by tiles, a block of threads to each; first the sums of the first layer, last all gradients. */

#define SIDE 32    /* of a tile */
#define DEEP 128   /* terms of a sum that are at hand */
#define CREW 128   /* threads that share a tile, 4 rows and 2 columns each */
#define CREWS 4    /* that share the terms */
#define LOADS (SIDE * DEEP / (CREW * CREWS)) /* of a factor by a thread */

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
