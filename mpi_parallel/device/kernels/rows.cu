/* A part of cuda.cu: rows by number, changed or as they are, and the batch that comes next. */

/* --- rows by number from the file's type to standardised operands, with their labels --- */

/* Four numbers that are loaded or stored at once */
template <class T> struct alignas(4 * sizeof(T)) Quad { T at[4]; };

template <class T> FN bool in_quads(const T *array, i64 width)
{
    return width % 4 == 0 && (unsigned long long)array % sizeof(Quad<T>) == 0;
}

template <class From, class To>
FN void gather_rows(const From *images, const int *labels, const i64 *index, i64 rows, i64 features, const float *mean,
                    const float *inverse_std, int scalar, To *out, int *t)
{
    i64 whole = in_quads(images, features) && in_quads(out, features) ? features : 0;
    EACH_ROW(row, rows) {
        const From *from = images + index[row] * features;
        To *to = out + row * features;
        if (labels && threadIdx.x == 0) t[row] = labels[index[row]];
        for (i64 f = 4 * threadIdx.x; f < whole; f += 4 * blockDim.x) {
            Quad<From> raw = *(const Quad<From> *)(from + f);
            Quad<To> made;
            for (int j = 0; j < 4; ++j) {
                i64 k = scalar ? 0 : f + j;
                put(made.at[j], mp_normalise((float)raw.at[j], mean[k], inverse_std[k]));
            }
            *(Quad<To> *)(to + f) = made;
        }
        for (i64 f = whole + threadIdx.x; f < features; f += blockDim.x) {
            i64 k = scalar ? 0 : f;
            put(to[f], mp_normalise((float)from[f], mean[k], inverse_std[k]));
        }
    }
}

/* The same of rows that are changed by their keys: the first thread of a block finds out how. */
template <class From, class To>
FN void augment_rows(const From *images, const int *labels, const i64 *index, const unsigned *keys, i64 rows, mp_augmentation how,
                     const float *mean, const float *inverse_std, int scalar, To *out, int *t)
{
    __shared__ mp_change change;
    int wide = how.width * how.channels, features = how.height * wide;
    EACH_ROW(row, rows) {
        const From *from = images + index[row] * features;
        To *to = out + row * features;
        if (threadIdx.x == 0) {
            change = mp_changed(keys[row], how);
            t[row] = labels[index[row]];
        }
        __syncthreads();
        for (int f = threadIdx.x; f < features; f += blockDim.x) {
            int i = f / wide, j = f % wide / how.channels, k = scalar ? 0 : f;
            mp_line line = mp_line_of(change, how, i);
            bool seen = j >= line.begin && j < line.end && (j < line.left || j >= line.stop);
            float raw = seen ? (float)from[(i64)(line.first + line.step * j) * how.channels + f % how.channels] : 0.0f;
            put(to[f], mp_normalise(raw, mean[k], inverse_std[k]));
        }
        __syncthreads();
    }
}

#define GATHER(FROM, From, TO, To)                                                                                     \
    KERNEL gather_##FROM##_##TO(const From *images, const int *labels, const i64 *index, i64 rows, i64 features,       \
                                const float *mean, const float *inverse_std, int scalar, To *out, int *t)              \
    {                                                                                                                  \
        gather_rows(images, labels, index, rows, features, mean, inverse_std, scalar, out, t);                         \
    }                                                                                                                  \
    KERNEL augmented_##FROM##_##TO(const From *images, const int *labels, const i64 *index, const unsigned *keys,      \
                                   i64 rows, int height, int width, int channels, int shift, int flip, double erase,   \
                                   const float *mean, const float *inverse_std, int scalar, To *out, int *t)           \
    {                                                                                                                  \
        mp_augmentation how = {height, width, channels, shift, flip, erase};                                           \
        augment_rows(images, labels, index, keys, rows, how, mean, inverse_std, scalar, out, t);                       \
    }
#define GATHERS(TO, To)                                                                                                \
    GATHER(u8, u8, TO, To) GATHER(u16, u16, TO, To) GATHER(i16, i16, TO, To) GATHER(f32, float, TO, To)                \
    GATHER(f64, double, TO, To)
FORMATS(GATHERS)

/* the labels alone */
KERNEL pick(const int *labels, const i64 *index, i64 rows, int *t) { EACH(row, rows) t[row] = labels[index[row]]; }

struct Dealt {
    i64 index;
    unsigned key;
};

/* The batch from place *cursor of the epoch's order on; whoever comes next stands behind it. The tail is cleared. One block. */
KERNEL __launch_bounds__(MOST) deal(const i64 *index_N, const unsigned *keys_N, i64 *cursor, i64 rows, i64 *index, unsigned *keys,
                                     float *tail, int length)
{
    i64 begin = *cursor;
    EACH(i, length) tail[i] = 0.0f;
    each_ahead<Dealt>(
        rows, [=](i64 row) { return Dealt{index_N[begin + row], keys_N[begin + row]}; },
        [=](i64 row, Dealt dealt) { index[row] = dealt.index, keys[row] = dealt.key; });
    __syncthreads();
    if (threadIdx.x == 0) *cursor = begin + rows;
}
