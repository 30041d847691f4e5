/* A part of small.cu: products by tiles, a block of threads to each; first the sums of the first layer, last all gradients.
 *
 * A tile has SIDE rows and columns. Small ones make many blocks of few rows. Of many rows there are blocks enough, and a
 * thread of a large tile takes 8 rows by 4 columns, for which it reads 12 numbers of shared memory in place of 24.
 */

#define CREW 128 /* threads that share a tile: 8 rows of them by 16 columns */
#define LOADS 8  /* of a factor by a thread */

struct alignas(16) Four { float at[4]; };

template <int SIDE> struct Tile {
    enum : int {
        CREWS = SIDE < 64 ? 4 : 2,            /* that share the terms */
        DEEP = CREW * CREWS * LOADS / SIDE,   /* terms of a sum that are at hand */
        R = SIDE / 8, C = SIDE / 16           /* rows and columns of a thread */
    };
    struct alignas(4 * C) Few { float at[C]; };
    Four left[DEEP][SIDE / 4 + 1];
    Few right[DEEP][16];
};

/* Where a thread of a crew has its rows and columns: a warp takes 4 by 8 of them */
FN int row_of_crew() { return threadIdx.x / 8 % 4 + threadIdx.x / 64 % 2 * 4; }
FN int column_of_crew() { return threadIdx.x % 8 + threadIdx.x / 32 % 2 * 8; }

/* mine (R, C) += sum over k < terms of left_of(k, i) right_of(k, o). Neighbouring threads ask for the left factor's
 * neighbours in k, by eights, or in i; what lies outside is 0. What comes next is on its way while the sums are made.
 * `each` sees what is at hand of the right factor. */
template <bool ALONG_K, int SIDE, class Left, class Right, class Each>
FN void add_tile(Tile<SIDE> &tile, int terms, Left left_of, Right right_of, Each each, float (&mine)[SIDE / 8][SIDE / 16])
{
    const int DEEP = Tile<SIDE>::DEEP, CREWS = Tile<SIDE>::CREWS, R = SIDE / 8, C = SIDE / 16, EIGHTS = DEEP / 8;
    const unsigned me = threadIdx.x, crew = me / CREW, i = row_of_crew(), o = column_of_crew();
    float a[LOADS], b[LOADS];
    auto k_of = [=](int load) { return me / SIDE + load * (DEEP / LOADS); };
    auto k_left = [=](int load) { return ALONG_K ? me / 32 % EIGHTS * 8 + me % 8 : k_of(load); };
    auto i_left = [=](int load) { return ALONG_K ? me / 32 / EIGHTS * 4 + me / 8 % 4 + load * (SIDE / LOADS) : me % SIDE; };
    auto ask = [&](int first) {
        for (int load = 0; load < LOADS; ++load) {
            a[load] = left_of(first + k_left(load), i_left(load));
            b[load] = right_of(first + k_of(load), me % SIDE);
        }
    };
    ask(0);
    for (int first = 0; first < terms; first += DEEP) {
        __syncthreads(); /* all are through with what was there */
        for (int load = 0; load < LOADS; ++load) {
            tile.left[k_left(load)][i_left(load) / 4].at[i_left(load) % 4] = a[load];
            tile.right[k_of(load)][me % SIDE / C].at[me % C] = b[load];
        }
        __syncthreads();
        if (first + DEEP < terms) ask(first + DEEP);
#pragma unroll 256 / SIDE
        for (unsigned k = crew * (DEEP / CREWS); k < (crew + 1) * (DEEP / CREWS); ++k) {
            Four left[R / 4];
            for (int part = 0; part < R / 4; ++part) left[part] = tile.left[k][i * (R / 4) + part];
            typename Tile<SIDE>::Few right = tile.right[k][o];
            for (int r = 0; r < R; ++r)
                for (int c = 0; c < C; ++c) mine[r][c] = fmaf(left[r / 4].at[r % 4], right.at[c], mine[r][c]);
        }
        each(tile, crew);
    }
}

/* The crews' sums, added up by halves: the first has them all. */
template <int COUNT, int SIDE> FN void join_crews(Tile<SIDE> &tile, float *mine)
{
    float *shared = tile.left[0][0].at;
    int crew = threadIdx.x / CREW, me = threadIdx.x % CREW;
    for (int half = Tile<SIDE>::CREWS / 2; half > 0; half /= 2) {
        __syncthreads();
        for (int c = 0; crew >= half && crew < 2 * half && c < COUNT; ++c)
            shared[((crew - half) * COUNT + c) * CREW + me] = mine[c];
        __syncthreads();
        for (int c = 0; crew < half && c < COUNT; ++c) mine[c] += shared[(crew * COUNT + c) * CREW + me];
    }
}

template <int SIDE> FN int tiles_of(int length) { return (length + SIDE - 1) / SIDE; }

/* parts (slices, rows, outputs): of x W each `length` terms, and what is left; of small tiles that are DEEP, which spares registers */
template <int SIDE> FN void first_sums(const float *x, const float *weights, int rows, const Layers &n, int length, float *parts)
{
    __shared__ Tile<SIDE> tile;
    const int R = Tile<SIDE>::R, C = Tile<SIDE>::C;
    int inputs = n.of[0], outputs = n.of[1], across = tiles_of<SIDE>(outputs), down = tiles_of<SIDE>(rows);
    int slices = (inputs + length - 1) / length;
    const float *W = weights + n.weights[0];
    for (int number = blockIdx.x; number < across * down * slices; number += gridDim.x) {
        int column = number % across * SIDE, slice = number / across % slices;
        int row = number / across / slices * SIDE;
        const float *x_here = x + row * inputs + slice * length, *W_here = W + slice * length * outputs + column;
        int most = SIDE < 64 ? (int)Tile<SIDE>::DEEP : length, left = inputs - slice * length, terms = left < most ? left : most;
        float mine[R][C] = {};
        add_tile<true>(
            tile, terms, [=](int k, int i) { return k < terms && row + i < rows ? x_here[unsigned(i * inputs + k)] : 0.0f; },
            [=](int k, int o) { return k < terms && column + o < outputs ? W_here[unsigned(k * outputs + o)] : 0.0f; },
            [](const Tile<SIDE> &, int) {}, mine);
        join_crews<R * C>(tile, mine[0]);
        int i = row + row_of_crew() * R, o = column + column_of_crew() * C;
        for (int r = 0; threadIdx.x < CREW && r < R; ++r)
            for (int c = 0; c < C; ++c)
                if (i + r < rows && o + c < outputs) parts[(slice * rows + i + r) * outputs + o + c] = mine[r][c];
    }
}

/* The sums of a tile from those of all shares of the rows, in their order, by the last of their blocks. Of each share there
 * lie the sums of the first crew, a number of all its threads after another, and then those of the bias. */
template <int COUNT, int SIDE> FN bool join_shares(float *shares, int share, int count, unsigned *ticket, float *mine, float *sum)
{
    const int APART = SIDE * SIDE + SIDE;
    int me = threadIdx.x, from = me < SIDE ? SIDE * SIDE + me : me;
    for (int c = 0; me < CREW && c < COUNT; ++c) shares[share * APART + c * CREW + me] = mine[c];
    if (me < SIDE) shares[share * APART + from] = *sum;
    if (!last_block(ticket, count)) return false;
    for (int c = 0; me < CREW && c < COUNT; ++c) mine[c] = 0.0f;
    *sum = 0.0f;
    for (int k = 0; me < CREW && k < count; ++k) {
        for (int c = 0; c < COUNT; ++c) mine[c] += shares[k * APART + c * CREW + me];
        *sum += shares[k * APART + from];
    }
    return true;
}

/* dW and db of all layers, in the order of the store; *bad becomes NaN where not all of them are finite. Blocks share a tile
 * where there are more rows than `length`, which each of them takes. */
template <int SIDE>
FN void weight_sums(const float *x, const float *kept, int rows, const Layers &n, int length, float *shares,
                    float *gradients, float *bad, unsigned *tickets)
{
    __shared__ Tile<SIDE> tile;
    const int R = Tile<SIDE>::R, C = Tile<SIDE>::C, DEEP = Tile<SIDE>::DEEP, CREWS = Tile<SIDE>::CREWS;
    int wide = n.kept, count = (rows + length - 1) / length, number = blockIdx.x, before = 0;
    for (int layer = 0; layer < n.depth; ++layer) {
        int inputs = n.of[layer], outputs = n.of[layer + 1], across = tiles_of<SIDE>(outputs);
        int tiles = across * tiles_of<SIDE>(inputs), stride = layer ? wide : inputs;
        for (; number < (before + tiles) * count; number += gridDim.x) {
            int place = number / count, share = number % count, begin = share * length;
            int column = (place - before) % across * SIDE, row = (place - before) / across * SIDE;
            int terms = rows - begin < length ? rows - begin : length;
            const float *left = (layer ? kept + n.output[layer - 1] : x) + begin * stride + row;
            const float *right = kept + n.gradient[layer] + begin * wide + column;
            float mine[R][C] = {}, sum[1] = {};
            add_tile<false>(
                tile, terms, [=](int k, int i) { return k < terms && row + i < inputs ? left[unsigned(k * stride + i)] : 0.0f; },
                [=](int k, int o) { return k < terms && column + o < outputs ? right[unsigned(k * wide + o)] : 0.0f; },
                [&](const Tile<SIDE> &at_hand, int crew) { /* the sum of the columns falls to the first tiles of them */
                    int o = threadIdx.x % CREW;
                    if (row == 0 && o < SIDE)
                        for (int k = crew * (DEEP / CREWS); k < (crew + 1) * (DEEP / CREWS); ++k)
                            sum[0] += at_hand.right[k][o / C].at[o % C];
                },
                mine);
            join_crews<R * C>(tile, mine[0]);
            if (row == 0) join_crews<1>(tile, sum);
            if (count > 1 && !join_shares<R * C, SIDE>(shares + place * count * (SIDE * SIDE + SIDE), share, count,
                                                       tickets + place, mine[0], sum))
                continue;
            int i = row + row_of_crew() * R, o = column + column_of_crew() * C, of_bias = column + threadIdx.x, fine = 1;
            for (int r = 0; threadIdx.x < CREW && r < R; ++r)
                for (int c = 0; c < C; ++c)
                    if (i + r < inputs && o + c < outputs) {
                        gradients[n.weights[layer] + (i + r) * outputs + o + c] = mine[r][c];
                        fine &= !mp_not_finite(mine[r][c]);
                    }
            if (row == 0 && threadIdx.x < SIDE && of_bias < outputs) {
                gradients[n.biases[layer] + of_bias] = sum[0];
                fine &= !mp_not_finite(sum[0]);
            }
            if (!fine) *bad = MP_NAN;
        }
        before += tiles;
    }
}

/* BLOCKS are to go at a time on a multiprocessor: so many registers a thread may have. */
#define TILES(SIDE, BLOCKS)                                                                                             \
    KERNEL __launch_bounds__(CREW *Tile<SIDE>::CREWS, 2)                                                                \
        small_first_##SIDE(const float *x, const float *weights, int rows, __grid_constant__ const Layers n,            \
                           int length, float *parts)                                                                    \
    {                                                                                                                   \
        first_sums<SIDE>(x, weights, rows, n, length, parts);                                                           \
    }                                                                                                                   \
    KERNEL __launch_bounds__(CREW *Tile<SIDE>::CREWS, BLOCKS)                                                           \
        small_weights_##SIDE(const float *x, const float *kept, int rows, __grid_constant__ const Layers n, int length, \
                             float *shares, float *gradients, float *bad, unsigned *tickets)                            \
    {                                                                                                                   \
        weight_sums<SIDE>(x, kept, rows, n, length, shares, gradients, bad, tickets);                                   \
    }
TILES(32, 1)
TILES(64, 2)
