/* A part of openmp.c: rows by number, changed or as they are, and the order that they are taken in. */

/* --- gather + normalise: rows by number, from the file's type to standardised float32 --- */

#define AHEAD 2    /* rows that are fetched while one is put together */
#define FAR 24576  /* bytes that are fetched while one is converted */
#define ROOM 256   /* numbers behind those that are written whose place is fetched */
#define START 4096 /* bytes of a row: the rest of a longer one the processor fetches by itself */

/* Fetch the start of a row. No function: of one that only fetches GCC drops the calls, as they have no effect. */
#define FETCH(ROW, BYTES, LEVEL)                                                                                      \
    for (long at = 0; at < (BYTES) && at < START; at += 64) __builtin_prefetch((const char *)(ROW) + at, 0, LEVEL)

/* one row, or a part of it */
#define SPAN(NAME, TYPE)                                                                                              \
    static inline __attribute__((always_inline)) void NAME##_span(                                                    \
        const TYPE *restrict from, float *restrict to, long features, const float *restrict mean,                     \
        const float *restrict inverse_std, int scalar)                                                                \
    {                                                                                                                 \
        if (scalar) {                                                                                                 \
            float one = mean[0], other = inverse_std[0];                                                              \
            _Pragma("omp simd") for (long f = 0; f < features; ++f) to[f] = mp_normalise((float)from[f], one, other); \
        } else {                                                                                                      \
            _Pragma("omp simd") for (long f = 0; f < features; ++f)                                                   \
                to[f] = mp_normalise((float)from[f], mean[f], inverse_std[f]);                                        \
        }                                                                                                             \
    }

/* Rows lie anywhere in memory, which takes longer to answer than it takes to convert one: so those some way ahead are
 * fetched into the second cache, where many answers may be under way at once, and the next but one from there into the first.
 * So is the place where the numbers go, which a step drives out of it. */
#define CONVERT(NAME, N)                                                                                              \
    do {                                                                                                              \
        if (f < fetched) {                                                                                            \
            __builtin_prefetch(next + f, 0, 3);                                                                       \
            __builtin_prefetch(later + f, 0, 2);                                                                      \
        }                                                                                                             \
        for (long room = ROOM; room < ROOM + line; room += 16) __builtin_prefetch(to + f + room, 1, 3);               \
        NAME##_span(from + f, to + f, N, mean + (scalar ? 0 : f), inverse_std + (scalar ? 0 : f), scalar);            \
    } while (0)

#define GATHER(NAME, TYPE)                                                                                            \
    SPAN(NAME, TYPE)                                                                                                  \
    static inline __attribute__((always_inline)) void NAME##_rows(                                                    \
        const TYPE *restrict images, const int64_t *restrict index, long begin, long end, long features,              \
        const float *restrict mean, const float *restrict inverse_std, int scalar, float *restrict out)               \
    {                                                                                                                 \
        const long bytes = features * (long)sizeof(TYPE), line = 64 / sizeof(TYPE), ahead = FAR / (bytes + 1) + 1;    \
        const long fetched = START / (long)sizeof(TYPE);                                                              \
        for (long row = begin; row < end && row < begin + ahead; ++row) FETCH(images + index[row] * features, bytes, 2);\
        for (long row = begin; row < end; ++row) {                                                                    \
            const TYPE *from = images + index[row] * features;                                                        \
            const TYPE *next = images + index[row + 2 < end ? row + 2 : row] * features;                              \
            const TYPE *later = images + index[row + ahead < end ? row + ahead : row] * features;                     \
            float *to = out + row * features;                                                                         \
            long f = 0;                                                                                               \
            for (; f + line <= features; f += line) CONVERT(NAME, line);                                              \
            if (f < features) CONVERT(NAME, features - f);                                                            \
        }                                                                                                             \
    }                                                                                                                 \
    WIDENING static void NAME##_part(const TYPE *images, const int64_t *index, long begin, long end, long features,   \
                                    const float *mean, const float *inverse_std, int scalar, float *out)              \
    {                                                                                                                 \
        if (scalar)                                                                                                   \
            NAME##_rows(images, index, begin, end, features, mean, inverse_std, 1, out);                              \
        else                                                                                                          \
            NAME##_rows(images, index, begin, end, features, mean, inverse_std, 0, out);                              \
    }                                                                                                                 \
    void NAME(const TYPE *images, const int64_t *index, long rows, long features, const float *mean,                  \
              const float *inverse_std, int scalar, float *out)                                                       \
    {                                                                                                                 \
        SHARE(rows, features, NAME##_part(images, index, begin, end, features, mean, inverse_std, scalar, out));      \
    }

GATHER(gather_u8, uint8_t)
GATHER(gather_u16, uint16_t)
GATHER(gather_f32, float)

/* --- the same of rows that are changed by their keys: an image is put together first, as lines are short --- */

#define AUGMENTED(NAME, TYPE)                                                                                         \
    /* Columns from `begin` to `end` of a line */                                                                     \
    static inline void NAME##_seen(const TYPE *restrict image, TYPE *restrict to, mp_line line, int begin, int end,   \
                                   long channels)                                                                     \
    {                                                                                                                 \
        if (begin >= end) return;                                                                                     \
        const TYPE *from = image + line.first * channels;                                                             \
        if (line.step > 0)                                                                                            \
            memcpy(to + begin * channels, from + begin * channels, (end - begin) * channels * sizeof *to);            \
        else if (channels == 1)                                                                                       \
            for (long j = begin; j < end; ++j) to[j] = from[-j];                                                      \
        else                                                                                                          \
            for (long j = begin; j < end; ++j)                                                                        \
                for (long c = 0; c < channels; ++c) to[j * channels + c] = from[c - j * channels];                    \
    }                                                                                                                 \
    WIDENING static void NAME##_augmented_part(const TYPE *images, const int64_t *index, const uint32_t *keys,        \
                                              mp_augmentation how, long begin, long end, const float *mean,           \
                                              const float *inverse_std, int scalar, float *out, TYPE *changed)        \
    {                                                                                                                 \
        long wide = (long)how.width * how.channels, features = how.height * wide;                                     \
        for (long row = begin; row < end; ++row) {                                                                    \
            FETCH(images + index[row + AHEAD < end ? row + AHEAD : row] * features, features * (long)sizeof *images, 0);\
            mp_change change = mp_changed(keys[row], how);                                                            \
            for (int i = 0; i < how.height; ++i) {                                                                    \
                mp_line line = mp_line_of(change, how, i);                                                            \
                int left = line.left < line.end ? line.left : line.end;                                               \
                int right = line.stop > line.begin ? line.stop : line.begin;                                          \
                TYPE *to = changed + i * wide;                                                                        \
                if (line.begin > 0 || left < how.width) memset(to, 0, wide * sizeof *to);                             \
                NAME##_seen(images + index[row] * features, to, line, line.begin, left, how.channels);                \
                NAME##_seen(images + index[row] * features, to, line, right, line.end, how.channels);                 \
            }                                                                                                         \
            NAME##_span(changed, out + row * features, features, mean, inverse_std, scalar);                          \
        }                                                                                                             \
    }                                                                                                                 \
    /* `changed` has room for an image a thread */                                                                    \
    void NAME##_augmented(const TYPE *images, const int64_t *index, const uint32_t *keys, mp_augmentation how,        \
                          long rows, const float *mean, const float *inverse_std, int scalar, float *out, TYPE *changed)\
    {                                                                                                                 \
        long features = (long)how.height * how.width * how.channels;                                                  \
        SHARE(rows, features,                                                                                         \
              NAME##_augmented_part(images, index, keys, how, begin, end, mean, inverse_std, scalar, out,             \
                                    changed + mine * features));                                                      \
    }

AUGMENTED(gather_u8, uint8_t)
AUGMENTED(gather_u16, uint16_t)
AUGMENTED(gather_f32, float)

/* the labels of the rows */
void pick(const int32_t *labels, const int64_t *index, long rows, int32_t *t)
{
    for (long row = 0; row < rows; ++row) t[row] = labels[index[row]];
}

enum {
    ABREAST = 64, /* permutations at a time, so that their keys are at hand */
    DOWN = 4      /* places of each of them at a time: with a single one each round waits for the one before */
};

/* `rows` places, from `first` on, of so many permutations; their keys, ABREAST from each other, are mixed. */
static inline __attribute__((always_inline)) void permute_some(int64_t *restrict to, int rows, long columns, long apart,
                                                               unsigned first, unsigned n, int half,
                                                               const unsigned *restrict keys,
                                                               const int64_t *restrict starts)
{
    unsigned outside = 0;
    _Pragma("omp simd reduction(| : outside)") for (long c = 0; c < columns; ++c)
        _Pragma("GCC unroll 4") for (int r = 0; r < rows; ++r) {
            unsigned place = mp_permute(first + r, keys + c, ABREAST, half);
            outside |= place >= n;
            to[r * apart + c] = place;
        }
    while (outside) { /* permuted again until they fall inside */
        outside = 0;
        _Pragma("omp simd reduction(| : outside)") for (long c = 0; c < columns; ++c)
            _Pragma("GCC unroll 4") for (int r = 0; r < rows; ++r) {
                unsigned before = (unsigned)to[r * apart + c], place = mp_permute(before, keys + c, ABREAST, half);
                place = before >= n ? place : before;
                outside |= place >= n;
                to[r * apart + c] = place;
            }
    }
    for (int r = 0; r < rows; ++r)
        _Pragma("omp simd") for (long c = 0; c < columns; ++c) to[r * apart + c] += starts[c];
}

VECTORS static void permute_part(int64_t *restrict image, long begin, long end, long columns, long apart, long first,
                                 unsigned n, int half, const uint32_t *restrict keys, const int64_t *restrict starts)
{
    unsigned mixed[MP_ROUNDS * ABREAST];
    for (long c = 0; c < columns; c += ABREAST) {
        long some = columns - c < ABREAST ? columns - c : ABREAST, row = begin;
        for (int round = 0; round < MP_ROUNDS; ++round)
            _Pragma("omp simd") for (long i = 0; i < some; ++i)
                mixed[round * ABREAST + i] = mp_mix(keys[c + i] ^ (round + 1) * 0x9E3779B9u);
        for (; row + DOWN <= end; row += DOWN)
            permute_some(image + row * apart + c, DOWN, some, apart, (unsigned)(first + row), n, half, mixed, starts + c);
        for (; row < end; ++row)
            permute_some(image + row * apart + c, 1, some, apart, (unsigned)(first + row), n, half, mixed, starts + c);
    }
}

/* The images of the places first, first + 1, ... (a row each, `apart` numbers from the next) under permutations of range(n),
 * one a column, by its key, each counted from its start; see device/hashing.py. */
void permute(int64_t *image, long rows, long columns, long apart, long first, long n, int half, const uint32_t *keys,
             const int64_t *starts)
{
    SHARE(rows, 8 * columns, permute_part(image, begin, end, columns, apart, first, (unsigned)n, half, keys, starts));
}

VECTORS static void name_part(uint32_t *restrict keys, long begin, long end, long columns, long first, long of,
                              const int64_t *restrict shards, unsigned salt)
{
    for (long row = begin; row < end; ++row) {
        unsigned place = (unsigned)((first + row) * of) + salt;
        _Pragma("omp simd") for (long c = 0; c < columns; ++c)
            keys[row * columns + c] = mp_mix(place + (unsigned)shards[c]);
    }
}

/* The keys of the places first, first + 1, ... (a row each) of these of so many shards, by their positions in the epoch */
void name_positions(uint32_t *keys, long rows, long columns, long first, long of, const int64_t *shards, unsigned salt)
{
    SHARE(rows, columns, name_part(keys, begin, end, columns, first, of, shards, salt));
}
