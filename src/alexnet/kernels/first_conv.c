/* The first convolution of a network, fused with the ReLU, LRN and max pool after it.

   An image is computed line by line: the convolution's output stays in a core's cache until it is pooled, and its
   gradient until the gradient of the filters is computed from it. Written to memory are the output of the pool and, for
   the gradient, the input of LRN. Images get no gradient. With three channels, a row of a window (size * 3 values) is
   contiguous in channels-last memory, so windows are read in place. first_conv.py calls this. */

#include <omp.h>

#include "simd.h"
#include "lrn.h"

typedef struct { /* first_conv.py has the same fields in the same order */
    int64_t images, threads, height, width, channels, kernels, size, stride, padding;
    Pool pool; /* its height, width and channels are those of the convolution's output; size 0: no pool */
    Norm norm; /* window 0: no norm */
} Shape;

POOLED_LINES(f32, float)
MAX_POOL_LINE_BACKWARD(f32, float, get_f32, float, put_f32)

INLINE int64_t panel(const Shape *z) { return z->kernels % 48 == 0 ? 48 : z->kernels % 32 == 0 ? 32 : 16; }
INLINE int64_t entries(const Shape *z) { return z->size * z->size * z->channels; } /* of a filter */
INLINE int64_t padded_entries(const Shape *z) { return (entries(z) + ROWS - 1) / ROWS * ROWS; }

int first_conv_is_fast(void) { return has_avx2(); }

/* Floats per row of the padded image, and its rows, including what the last windows read beyond the image. */
INLINE int64_t row_of(const Shape *z) { return ((z->pool.width - 1) * z->stride + z->size) * z->channels; }
INLINE int64_t rows_of(const Shape *z) { return (z->pool.height - 1) * z->stride + z->size; }

INLINE int64_t line_of(const Shape *z) { return z->pool.width * z->kernels; }
INLINE int64_t padded_norm_line(const Shape *z) { return padded_line(&z->norm, z->pool.width, z->kernels); }

/* Floats of a thread's working memory: a padded image, a line of the convolution's output or its gradient, two lines of
   LRN, and the feature maps before the pool. */
int64_t first_conv_scratch_size(const Shape *z) {
    int64_t image = rows_of(z) * row_of(z) + 2 * ROWS;
    return (image + COLUMNS - 1) / COLUMNS * COLUMNS + line_of(z) + 2 * padded_norm_line(z) + z->pool.height * line_of(z);
}

typedef struct { float *image, *line, *squares, *terms, *maps; } Scratch;

INLINE Scratch thread_scratch(const Shape *z, float *scratch, int64_t thread) {
    float *line = scratch + thread * first_conv_scratch_size(z), *squares = line + line_of(z), *terms = squares + padded_norm_line(z);
    float *maps = terms + padded_norm_line(z);
    memset(squares, 0, 2 * padded_norm_line(z) * sizeof(float));
    return (Scratch){maps + z->pool.height * line_of(z), line, squares, terms, maps};
}

/* The padded image's rows [from, end). */
static void pad(const Shape *z, const float *x, float *into, int64_t from, int64_t end) {
    int64_t row = row_of(z), c = z->channels, columns = MIN(z->width, row / c - z->padding);
    memset(into + from * row, 0, ((end - from) * row + 2 * ROWS) * sizeof(float));
    for (int64_t i = from; i < end; i++)
        if (i >= z->padding && i < z->padding + z->height)
            memcpy(into + i * row + z->padding * c, x + (i - z->padding) * z->width * c, columns * c * sizeof(float));
}

/* w [panel][entry][width of the panel]; the last eight pixels of a line may be computed twice. DOWN rows of the filters
   are multiplied at a time: with AVX2 one, which stays in the first-level cache for all pixels of the line. */
#define DOWN(z) (LANES == 16 ? (z)->size : 1)
#define CONVOLVE(N)                                                                                                  \
    static void convolve_##N(const Shape *z, const float *x, const float *w, const float *bias, float *y) {          \
        int64_t deep = z->size * z->channels, row = row_of(z), wide = N * COLUMNS, step = z->stride * z->channels;   \
        float partial[(z->pool.width + ROWS - 1) / ROWS * ROWS * wide];                                              \
        for (int64_t k = 0; k < z->kernels; k += wide)                                                               \
            for (int64_t first = 0, end = DOWN(z); first < z->size; first = end, end += DOWN(z))                     \
                for (int64_t pixel = 0; pixel < z->pool.width; pixel += ROWS)                                        \
                    EACH_BLOCK(N) {                                                                                  \
                        int64_t q = MIN(pixel, z->pool.width - ROWS) + top;                                          \
                        const float *a = x + q * step + first * row;                                                 \
                        const float *b = w + k * entries(z) + first * deep * wide + left;                            \
                        float *part = partial + (pixel + top) * wide + left, *to = y + q * z->kernels + k + left;    \
                        vec sums[TALL][BROAD(N)], columns[BROAD(N)];                                                 \
                        for (int r = 0; r < TALL; r++)                                                               \
                            for (int i = 0; i < BROAD(N); i++)                                                       \
                                sums[r][i] = first ? AT(part + r * wide + i * LANES)                                 \
                                             : bias ? AT(bias + k + left + i * LANES) : (vec){0};                    \
                        for (int64_t down = first; down < end; down++, a += row)                                     \
                            for (int64_t j = 0; j < deep; j++, b += wide) {                                          \
                                LOAD(columns, b, BROAD(N))                                                           \
                                for (int r = 0; r < TALL; r++)                                                       \
                                    for (int i = 0; i < BROAD(N); i++) sums[r][i] += a[r * step + j] * columns[i];   \
                            }                                                                                        \
                        for (int r = 0; r < TALL; r++)                                                               \
                            for (int i = 0; i < BROAD(N); i++)                                                       \
                                if (end < z->size) AT(part + r * wide + i * LANES) = sums[r][i];                     \
                                else AT(to + r * z->kernels + i * LANES) = z->pool.relu ? relu_of(sums[r][i]) : sums[r][i]; \
                    }                                                                                                \
    }                                                                                                                \
    /* g: gradient of a line; offsets: of a window's entries; dw [panel][entry, padded to 8][width of the panel] */  \
    static void filters_##N(const Shape *z, const float *x, const int64_t *offsets, const float *g, float *dw) {     \
        int64_t wide = N * COLUMNS, step = z->stride * z->channels;                                                  \
        for (int64_t k = 0; k < z->kernels; k += wide)                                                               \
            for (int64_t e = 0; e < padded_entries(z); e += ROWS, dw += ROWS * wide)                                 \
                EACH_BLOCK(N) {                                                                                      \
                    const float *a[TALL], *b = g + k + left;                                                         \
                    float *to = dw + top * wide + left;                                                              \
                    vec sums[TALL][BROAD(N)], columns[BROAD(N)];                                                     \
                    for (int r = 0; r < TALL; r++) a[r] = x + offsets[e + top + r];                                  \
                    for (int r = 0; r < TALL; r++)                                                                   \
                        for (int i = 0; i < BROAD(N); i++) sums[r][i] = AT(to + r * wide + i * LANES);               \
                    for (int64_t q = 0; q < z->pool.width; q++, b += z->kernels) {                                   \
                        LOAD(columns, b, BROAD(N))                                                                   \
                        for (int r = 0; r < TALL; r++)                                                               \
                            for (int i = 0; i < BROAD(N); i++) sums[r][i] += a[r][q * step] * columns[i];            \
                    }                                                                                                \
                    for (int r = 0; r < TALL; r++)                                                                   \
                        for (int i = 0; i < BROAD(N); i++) AT(to + r * wide + i * LANES) = sums[r][i];               \
                }                                                                                                    \
    }
CONVOLVE(1)
CONVOLVE(2)
CONVOLVE(3)

/* Writes y, the argmax of a pool, and norm_input, which the gradient of LRN needs (or NULL). scratch:
   first_conv_scratch_size floats per thread. With fewer images than threads and no norm_input, several threads share an
   image. */
void first_conv_forward(const Shape *z, const float *x, const float *w, const float *bias, float *y, uint8_t *argmax,
                  float *norm_input, float *scratch) {
    const Pool *pool = &z->pool;
    int64_t in = z->height * z->width * z->channels, lines = pool->size ? pool->out_height : pool->height;
    int64_t out = lines * (pool->size ? pool->out_width : pool->width) * z->kernels;
    int64_t parts = z->images < z->threads && !norm_input ? MIN(z->threads, lines) : 1;
#pragma omp parallel for schedule(dynamic) num_threads(z->threads)
    for (int64_t part_index = 0; part_index < z->images * parts; part_index++) {
        int64_t i = part_index / parts, from = lines * (part_index % parts) / parts, end = lines * (part_index % parts + 1) / parts;
        int64_t top = pool->size ? from * pool->stride : from;
        int64_t bottom = pool->size ? MIN((end - 1) * pool->stride + pool->size, pool->height) : end;
        if (norm_input) bottom = pool->height; /* also lines that no window of the pool contains */
        Scratch own = thread_scratch(z, scratch, omp_get_thread_num());
        pad(z, x + i * in, own.image, top * z->stride, (bottom - 1) * z->stride + z->size);
        for (int64_t line = top; line < bottom; line++) {
            const float *window = own.image + line * z->stride * row_of(z);
            float *maps = own.maps + line * line_of(z), *into = pool->size ? maps : y + i * out + line * line_of(z);
            if (z->norm.window) into = norm_input ? norm_input + (i * pool->height + line) * line_of(z) : own.line;
            if (panel(z) == 48) convolve_3(z, window, w, bias, into);
            else if (panel(z) == 32) convolve_2(z, window, w, bias, into);
            else convolve_1(z, window, w, bias, into);
            if (z->norm.window) lrn_line(&z->norm, pool->width, z->kernels, into, own.squares, maps);
            if (pool->size)
                for (; from < end && MIN(from * pool->stride + pool->size, pool->height) <= line + 1; from++)
                    max_pool_line_f32(pool, own.maps, from, y + i * out, argmax + i * out);
        }
    }
}

/* g: gradient of y; with relu and without a pool, y decides where it passes. dw and db [threads] are zeros at the start;
   their sums are in the first at the end. Each thread has its own images: the same number of threads gives the same
   bits. */
void first_conv_backward(const Shape *z, const float *x, const float *g, const uint8_t *argmax, const float *y,
                   const float *norm_input, float *dw, float *db, float *scratch) {
    const Pool *pool = &z->pool;
    int64_t in = z->height * z->width * z->channels, weights = padded_entries(z) * z->kernels;
    int64_t out = z->kernels * (pool->size ? pool->out_height * pool->out_width : pool->height * pool->width);
    int64_t offsets[padded_entries(z)];
    for (int64_t e = 0; e < padded_entries(z); e++) {
        int64_t row = z->size * z->channels, entry = MIN(e, entries(z) - 1);
        offsets[e] = entry / row * row_of(z) + entry % row;
    }
#pragma omp parallel for schedule(static, 1) num_threads(z->threads)
    for (int64_t part = 0; part < z->threads; part++) {
        Scratch own = thread_scratch(z, scratch, part);
        for (int64_t i = z->images * part / z->threads; i < z->images * (part + 1) / z->threads; i++) {
            pad(z, x + i * in, own.image, 0, rows_of(z));
            for (int64_t line = 0; line < pool->height; line++) {
                const float *window = own.image + line * z->stride * row_of(z);
                const float *grad = g + i * out + line * line_of(z), *out_line = y + i * out + line * line_of(z);
                float *d = own.line;
                if (pool->size)
                    max_pool_line_backward_f32(pool, g + i * out, argmax + i * out, line, d);
                else
                    for (int64_t j = 0; j < line_of(z); j += LANES)
                        AT(d + j) = pool->relu ? choose(AT(out_line + j) <= 0, (vec){0}, AT(grad + j)) : AT(grad + j);
                if (z->norm.window)
                    lrn_line_backward(&z->norm, pool->width, z->kernels,
                                       norm_input + (i * pool->height + line) * line_of(z), own.squares, own.terms, d,
                                       pool->relu);
                for (int64_t k = 0; k < z->kernels; k += LANES) {
                    vec sum = AT(db + part * z->kernels + k);
                    for (int64_t j = k; j < line_of(z); j += z->kernels) sum += AT(d + j);
                    AT(db + part * z->kernels + k) = sum;
                }
                if (panel(z) == 48) filters_3(z, window, offsets, d, dw + part * weights);
                else if (panel(z) == 32) filters_2(z, window, offsets, d, dw + part * weights);
                else filters_1(z, window, offsets, d, dw + part * weights);
            }
        }
    }
    for (int64_t part = 1; part < z->threads; part++) {
        for (int64_t i = 0; i < weights; i += LANES) AT(dw + i) += AT(dw + part * weights + i);
        for (int64_t k = 0; k < z->kernels; k += LANES) AT(db + k) += AT(db + part * z->kernels + k);
    }
}

/* ---- blocks of stride * stride pixels, as channels of bfloat16 */

typedef struct { int64_t images, threads, height, width, channels, stride, padding, rows, columns; } Blocks;

/* x [images][height][width][channels] -> blocks [images][rows][columns][stride][stride][channels]. Pixels outside of the
   image are zeros. line: stride * columns pixels per thread. */
#define BLOCKS(NAME, T)                                                                                              \
    void blocks_##NAME(const Blocks *z, const T *x, uint16_t *blocks, uint16_t *lines) {                             \
        int64_t part = z->stride * z->channels, c = z->channels, line = z->columns * part;                           \
        int64_t count = MIN(z->width, z->columns * z->stride - z->padding) * c, before = z->padding * c;             \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t r = 0; r < z->images * z->rows * z->stride; r++) {                                              \
            int64_t image = r / (z->rows * z->stride), row = r % (z->rows * z->stride) - z->padding, i = 0;          \
            uint16_t *to = lines + omp_get_thread_num() * line, *out = blocks + r / z->stride * line * z->stride;    \
            memset(to, 0, line * sizeof(uint16_t));                                                                  \
            const T *from = x + (image * z->height + row) * z->width * c;                                            \
            if (row >= 0 && row < z->height) {                                                                       \
                for (; i + LANES <= count; i += LANES) put_bf16(to + before + i, get_##NAME(from + i));              \
                T rest[LANES] = {0};                                                                                 \
                uint16_t rounded[LANES];                                                                             \
                memcpy(rest, from + i, (count - i) * sizeof(T));                                                     \
                put_bf16(rounded, get_##NAME(rest));                                                                 \
                memcpy(to + before + i, rounded, (count - i) * sizeof(uint16_t));                                    \
            }                                                                                                        \
            out += r % z->stride * part;                                                                             \
            for (int64_t q = 0; q < z->columns; q++, to += part, out += part * z->stride)                            \
                memcpy(out, to, part * sizeof(uint16_t));                                                            \
        }                                                                                                            \
    }

BLOCKS(f32, float)
BLOCKS(bf16, uint16_t)
