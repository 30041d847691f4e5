/* Matrix products of the sizes that layers have: some hundred rows or fewer, for which a BLAS is not made.
 *
 * A BLAS copies both factors into an order that suits it. With 64 rows the copy of a matrix of weights takes a third of
 * the time of the product. Here a factor is read where it lies wherever that is as quick, and of the other a panel at a
 * time is copied into the caches. All rests on one tile, six rows of a by 64 columns of b, with its sums in registers:
 *
 *     forward     y  = x W        x as it is, panels of W copied
 *     backward    dx = dz W^T     as W dz^T, turned back piece by piece: W, the large one, is read once and as it is
 *     gradient    dW = x^T dz     x as it is, panels of dz copied
 *
 * A sum goes over k in order, in blocks that depend on k alone, so other rows do not change its bits. For AVX-512 and ranks
 * of one thread; on other CPUs, for larger matrices, and with several threads, which a BLAS keeps at hand and OpenMP has to
 * wake for each product (a step of the default network in 709 us and 946), the BLAS multiplies.
 */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#define WIDE __attribute__((target("avx512f"), noinline))
#define INLINE __attribute__((target("avx512f"), always_inline)) static inline

enum {
    HIGH = 6,       /* rows of a tile */
    LANES = 16,     /* numbers in a vector */
    BROAD = 64,     /* columns of a tile: with 24 sums, 4 vectors of b and one of a, 29 of 32 registers are in use */
    DEEP = 192,     /* of k at a time, so that a panel of b stays in the first cache */
    DEEPER = 1024,  /* the same for `turned_product`, whose panel is read from the second cache as quickly */
    PAGE = 1024,    /* numbers of a page: a panel of wider rows than that is not fetched ahead by the CPU itself */
    PIECE = 48,     /* rows of a turned result that are made before they are turned back: tiles and vectors divide it */
};

/* Numbers that lie in rows: element (i, j) is at[i * down + j * right]. */
typedef struct {
    const float *at;
    long down, right;
} Factor;

#define UNROLLED _Pragma("GCC unroll 16")
#define EACH_SUM UNROLLED for (int r = 0; r < rows; ++r) UNROLLED for (int v = 0; v < vectors; ++v)

/* c (rows, vectors of columns) = a b, or c += a b; of the last vector only the columns of the mask are c's. */
INLINE void tile(Factor a, const float *b, long b_apart, float *c, long c_apart, long k, int rows, int vectors,
                 __mmask16 mask, int add, const char *ahead, long ahead_apart)
{
    __m512 sums[HIGH][BROAD / LANES];
    EACH_SUM sums[r][v] = _mm512_setzero_ps();
    for (long left = k; left > 0; left -= 8) {
        for (int line = 0; ahead && line < BROAD * 4; line += 64) __builtin_prefetch(ahead + line, 0, 2);
        ahead += ahead_apart;
        for (long at = left < 8 ? left : 8; at > 0; --at, a.at += a.right, b += b_apart) {
            __m512 columns[BROAD / LANES];
            UNROLLED for (int v = 0; v < vectors; ++v) columns[v] = _mm512_loadu_ps(b + v * LANES);
            EACH_SUM sums[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(a.at[r * a.down]), columns[v], sums[r][v]);
        }
    }
    EACH_SUM
    {
        __mmask16 its = v == vectors - 1 ? mask : 0xffff;
        float *place = c + r * c_apart + v * LANES;
        if (add) sums[r][v] = _mm512_add_ps(_mm512_maskz_loadu_ps(its, place), sums[r][v]);
        _mm512_mask_storeu_ps(place, its, sums[r][v]);
    }
}
#undef EACH_SUM

typedef void Tile(Factor, const float *, long, float *, long, long, __mmask16, int, const char *, long);

#define TILE(R, V)                                                                                                     \
    WIDE static void tile_##R##_##V(Factor a, const float *b, long b_apart, float *c, long c_apart, long k,            \
                                    __mmask16 mask, int add, const char *ahead, long ahead_apart)                      \
    {                                                                                                                  \
        tile(a, b, b_apart, c, c_apart, k, R, V, mask, add, ahead, ahead_apart);                                       \
    }
#define TILES(V) TILE(1, V) TILE(2, V) TILE(3, V) TILE(4, V) TILE(5, V) TILE(6, V)
#define LISTED_TILES(V) {tile_1_##V, tile_2_##V, tile_3_##V, tile_4_##V, tile_5_##V, tile_6_##V}
TILES(1) TILES(2) TILES(3) TILES(4)
static Tile *const tile_of[][HIGH] = {LISTED_TILES(1), LISTED_TILES(2), LISTED_TILES(3), LISTED_TILES(4)};

/* c (m, n) = a b, or c += a b, for one panel of b, n <= 64; `ahead`, k rows that far apart, will be wanted next. */
WIDE static void tall_product(Factor a, const float *b, long b_apart, float *c, long c_apart, long m, long n, long k,
                              int add, const float *ahead, long ahead_apart)
{
    long vectors = (n + LANES - 1) / LANES, told = 0;
    __mmask16 mask = (__mmask16)(0xffff >> (vectors * LANES - n));
    for (long row = 0; row < m; row += HIGH) {
        long rows = m - row < HIGH ? m - row : HIGH;
        const char *next = ahead && told < k ? (const char *)(ahead + told * ahead_apart) : NULL;
        tile_of[vectors - 1][rows - 1](a, b, b_apart, c, c_apart, k, mask, add, next, next ? 4 * ahead_apart : 0);
        a.at += rows * a.down;
        c += rows * c_apart;
        told += (k + 7) / 8;
    }
}

/* Turn 16 x 16 numbers. */
INLINE void turn(__m512 r[LANES])
{
    __m512 t[LANES];
    UNROLLED for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#define PAIRS(WHICH, I, J) _mm512_castpd_ps(_mm512_unpack##WHICH##_pd(_mm512_castps_pd(t[I]), _mm512_castps_pd(t[J])))
    UNROLLED for (int i = 0; i < LANES; i += 4) {
        r[i] = PAIRS(lo, i, i + 2);
        r[i + 1] = PAIRS(hi, i, i + 2);
        r[i + 2] = PAIRS(lo, i + 1, i + 3);
        r[i + 3] = PAIRS(hi, i + 1, i + 3);
    }
#undef PAIRS
    UNROLLED for (int i = 0; i < 4; ++i) {
        __m512 first = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), second = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        __m512 third = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        __m512 fourth = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
        t[i] = _mm512_shuffle_f32x4(first, third, 0x88);
        t[i + 8] = _mm512_shuffle_f32x4(first, third, 0xdd);
        t[i + 4] = _mm512_shuffle_f32x4(second, fourth, 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(second, fourth, 0xdd);
    }
    UNROLLED for (int i = 0; i < LANES; ++i) r[i] = t[i];
}

/* to (columns, 64) = from (rows, columns) turned, zeros behind; rows <= 64 */
WIDE static void turn_panel(const float *from, long apart, long rows, long columns, float *to)
{
    for (long column = 0; column < columns; column += LANES)
        for (long row = 0; row < rows; row += LANES) {
            long left = columns - column;
            __mmask16 mask = left < LANES ? (__mmask16)(0xffff >> (LANES - left)) : 0xffff;
            __m512 r[LANES];
            UNROLLED for (int i = 0; i < LANES; ++i)
                r[i] = row + i < rows ? _mm512_maskz_loadu_ps(mask, from + (row + i) * apart + column)
                                      : _mm512_setzero_ps();
            turn(r);
            UNROLLED for (int i = 0; i < LANES; ++i)
                if (i < left) _mm512_storeu_ps(to + (column + i) * BROAD + row, r[i]);
        }
}

/* to (rows, columns) = from (columns, 64) turned, or added; columns <= PIECE, the last 16 of from may lie beyond them */
WIDE static void turn_back(const float *from, long rows, long columns, float *to, long apart, int add)
{
    for (long column = 0; column < columns; column += LANES) {
        long left = columns - column;
        __mmask16 mask = left < LANES ? (__mmask16)(0xffff >> (LANES - left)) : 0xffff;
        for (long row = 0; row < rows; row += LANES) {
            __m512 r[LANES];
            UNROLLED for (int i = 0; i < LANES; ++i) r[i] = _mm512_loadu_ps(from + (column + i) * BROAD + row);
            turn(r);
            UNROLLED for (int i = 0; i < LANES; ++i) {
                if (row + i >= rows) break;
                float *there = to + (row + i) * apart + column;
                if (add) r[i] = _mm512_add_ps(r[i], _mm512_maskz_loadu_ps(mask, there));
                _mm512_mask_storeu_ps(there, mask, r[i]);
            }
        }
    }
}

/* to (rows, 64) = 64 columns or fewer of from, zeros behind */
WIDE static void copy_panel(const float *from, long apart, long rows, long columns, float *to)
{
    for (long row = 0; row < rows; ++row, from += apart, to += BROAD)
        for (long v = 0; v * LANES < columns; ++v) {
            long left = columns - v * LANES;
            __mmask16 mask = left < LANES ? (__mmask16)(0xffff >> (LANES - left)) : 0xffff;
            _mm512_storeu_ps(to + v * LANES, _mm512_maskz_loadu_ps(mask, from + v * LANES));
        }
}

static _Thread_local float panel[DEEPER * BROAD] __attribute__((aligned(64)));
static _Thread_local float piece[PIECE * BROAD] __attribute__((aligned(64)));

/* The first of the blocks, of at most `most`, into which k falls evenly. */
static long even(long k, long most) { return (k + (k + most - 1) / most - 1) / ((k + most - 1) / most); }

/* c (m, n) = a b, or c += a b, b (k, n) as it is, a (m, k) or turned (k, m) */
static void plain_product(const float *a, long a_apart, int a_turned, const float *b, long b_apart, float *c,
                          long c_apart, long m, long n, long k, int add)
{
    long deep = even(k, DEEP);
    for (long at = 0; at < k; at += deep, add = 1) {
        long depth = k - at < deep ? k - at : deep;
        Factor mine = {a + (a_turned ? at * a_apart : at), a_turned ? 1 : a_apart, a_turned ? a_apart : 1};
        for (long column = 0; column < n; column += BROAD) {
            long columns = n - column < BROAD ? n - column : BROAD;
            const float *from = b + at * b_apart + column, *copy = from;
            if (b_apart != BROAD) copy_panel(from, b_apart, depth, columns, panel), copy = panel;
            const float *ahead = !a_turned && b_apart > PAGE && column + 2 * BROAD <= n ? from + BROAD : NULL;
            tall_product(mine, copy, BROAD, c + column, c_apart, m, columns, depth, add, ahead, b_apart);
        }
    }
}

/* c (m, n) = a b^T, or c += a b^T, a (m, k), b (n, k), as the turned b a^T */
static void turned_product(const float *a, long a_apart, const float *b, long b_apart, float *c, long c_apart, long m,
                           long n, long k, int add)
{
    long deep = even(k, DEEPER);
    for (long row = 0; row < m; row += BROAD) {
        long rows = m - row < BROAD ? m - row : BROAD;
        for (long at = 0; at < k; at += deep) {
            long depth = k - at < deep ? k - at : deep;
            turn_panel(a + row * a_apart + at, a_apart, rows, depth, panel);
            for (long column = 0; column < n; column += PIECE) {
                long columns = n - column < PIECE ? n - column : PIECE;
                tall_product((Factor){b + column * b_apart + at, b_apart, 1}, panel, BROAD, piece, BROAD, columns,
                             (rows + LANES - 1) / LANES * LANES, depth, 0, NULL, 0);
                turn_back(piece, rows, columns, c + row * c_apart + column, c_apart, add || at > 0);
            }
        }
    }
}

/* Whether this is quicker than a BLAS: measured on an Intel Xeon with OpenBLAS 0.3.31. */
static int suits(int a_turned, int b_turned, long m, long n, long k)
{
    if (a_turned) return !b_turned && k >= 4 && k <= 512 && m * n <= 1 << 19; /* c has to stay in the second cache */
    if (b_turned) return m >= 4 && m <= 512;
    return m >= 12 && (m <= 256 || m * n <= 1 << 18);
}

/* c (m, n) = a b, or c += a b, a or b turned, if that is quicker so; else 0, and nothing is done. */
static int own_product(const float *a, long a_apart, int a_turned, const float *b, long b_apart, int b_turned, float *c,
                       long c_apart, long m, long n, long k, int add)
{
    if (omp_get_max_threads() > 1 || !suits(a_turned, b_turned, m, n, k)) return 0;
    if (b_turned)
        turned_product(a, a_apart, b, b_apart, c, c_apart, m, n, k, add);
    else
        plain_product(a, a_apart, a_turned, b, b_apart, c, c_apart, m, n, k, add);
    return 1;
}
#else
#define own_product(...) 0
#endif
