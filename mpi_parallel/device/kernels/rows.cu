/* A part of cuda.cu: rows by number, changed or as they are, and the batch that comes next. */

#define AT_ONCE 4 /* numbers that a thread has under way: reads behind a write wait for those before it */

/* --- rows by number from the file's type to standardised operands, with their labels --- */

template <class From, class To>
FN void gather_rows(const From *images, const int *labels, const i64 *index, i64 rows, i64 features, const float *mean,
                    const float *inverse_std, int scalar, To *out, int *t)
{
    EACH_ROW(row, rows) {
        const From *from = images + index[row] * features;
        To *to = out + row * features;
        if (labels && threadIdx.x == 0) t[row] = labels[index[row]];
#pragma unroll 1
        for (i64 first = threadIdx.x; first < features; first += AT_ONCE * blockDim.x) {
            From raw[AT_ONCE];
            float middle[AT_ONCE], inverse[AT_ONCE];
            for (int n = 0; n < AT_ONCE; ++n) {
                i64 f = first + n * blockDim.x, here = f < features ? f : first, k = scalar ? 0 : here;
                raw[n] = from[here], middle[n] = mean[k], inverse[n] = inverse_std[k];
            }
            for (int n = 0; n < AT_ONCE; ++n) {
                i64 f = first + n * blockDim.x;
                if (f < features) put(to[f], mp_normalise((float)raw[n], middle[n], inverse[n]));
            }
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

/* The batch from place *cursor of the epoch's order on; whoever comes next stands behind it. The tail is cleared. One block. */
KERNEL __launch_bounds__(MOST) deal(const i64 *index_N, const unsigned *keys_N, i64 *cursor, i64 rows, i64 *index, unsigned *keys,
                                     float *tail, int length)
{
    i64 begin = *cursor;
    if ((int)threadIdx.x < length) tail[threadIdx.x] = 0.0f;
#pragma unroll 1
    for (i64 first = threadIdx.x; first < rows; first += AT_ONCE * blockDim.x) {
        i64 found[AT_ONCE];
        unsigned key[AT_ONCE];
        for (int n = 0; n < AT_ONCE; ++n) {
            i64 row = first + n * blockDim.x, here = begin + (row < rows ? row : first);
            found[n] = index_N[here], key[n] = keys_N[here];
        }
        for (int n = 0; n < AT_ONCE; ++n) {
            i64 row = first + n * blockDim.x;
            if (row < rows) index[row] = found[n], keys[row] = key[n];
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) *cursor = begin + rows;
}
