/* Pooling, response normalization across pixels, and LRN fused with the max pool after it, with their gradients, in
   channels-last memory.

   Windows are those of the 2012 code: the last one may stick out, and covers the pixels that exist. Sums are in the order
   of rows and columns, in float32 for every input type, so float32 pools and their gradients equal PyTorch's bit for bit.
   The number of channels is a multiple of 16. pool_norm.py calls this; layers.py has the reference implementations. */

#include <omp.h>

#include "simd.h"
#include "lrn.h"

typedef struct { /* pool_norm.py has the same fields in the same order */
    int64_t images, threads;
    Pool pool;
    Norm norm; /* across channels */
} Shape;

POOLED_LINES(f32, float)
MAX_POOL_LINE_BACKWARD(f32, float, get_f32, float, put_f32)
POOLED_LINES(bf16, uint16_t)
MAX_POOL_LINE_BACKWARD(bf16, uint16_t, get_bf16, uint16_t, put_bf16)
MAX_POOL_LINE_BACKWARD(bf16_to_f32, uint16_t, get_bf16, float, put_f32)

/* y: maximum of each window; argmax: its pixel in the window, counted row by row, the first of equal ones. With relu,
   values that are not positive become 0 and have no argmax. avg_pool_backward reads x with relu only. */
#define POOLS(NAME, T)                                                                                               \
    void max_pool_##NAME(const Shape *z, const T *x, T *y, uint8_t *argmax) {                                        \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t in = pool->height * pool->width * pool->channels, lines = pool->out_height;                          \
        int64_t out = lines * pool->out_width * pool->channels;                                                      \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t i = 0; i < z->images * lines; i++)                                                              \
            max_pool_line_##NAME(pool, x + i / lines * in, i % lines, y + i / lines * out, argmax + i / lines * out); \
    }                                                                                                                \
    void max_pool_##NAME##_backward(const Shape *z, const T *g, const uint8_t *argmax, T *dx) {                      \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t lines = pool->height;                                                                                \
        int64_t out = pool->out_height * pool->out_width * pool->channels;                                           \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t i = 0; i < z->images * lines; i++)                                                              \
            max_pool_line_backward_##NAME(pool, g + i / lines * out, argmax + i / lines * out, i % lines,            \
                                         dx + i * pool->width * pool->channels);                                     \
    }                                                                                                                \
    void avg_pool_##NAME(const Shape *z, const T *x, T *y) {                                                         \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t in = pool->height * pool->width * pool->channels, lines = pool->out_height;                          \
        int64_t out = lines * pool->out_width * pool->channels;                                                      \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t i = 0; i < z->images * lines; i++)                                                              \
            avg_pool_line_##NAME(pool, x + i / lines * in, i % lines, y + i / lines * out);                          \
    }                                                                                                                \
    void avg_pool_##NAME##_backward(const Shape *z, const T *g, const T *x, T *dx) {                                 \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t lines = pool->height, in = lines * pool->width * pool->channels;                                     \
        int64_t out = pool->out_height * pool->out_width * pool->channels;                                           \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t i = 0; i < z->images * lines; i++)                                                              \
            avg_pool_line_backward_##NAME(pool, g + i / lines * out, x ? x + i / lines * in : x, i % lines,          \
                                      dx + i / lines * in);                                                          \
    }

/* LANES channels of one image, h*w values each -> sums over windows of size*size that begin `before` pixels up and left.
   line[w + size - 1] is a row between zeros; sums[h + size - 1][w] are the sums of all rows, between zeros. */
#define ACROSS(sums, line, row, expression)                                                                          \
    {                                                                                                                \
        for (int64_t q = 0; q < w; q++) (line)[before + q] = (expression);                                           \
        for (int64_t q = 0; q < w; q++) {                                                                            \
            vec sum = (line)[q];                                                                                     \
            for (int64_t o = 1; o < size; o++) sum += (line)[q + o];                                                 \
            (sums)[(row + before) * w + q] = sum;                                                                    \
        }                                                                                                            \
    }
#define DOWN(sums, row, q) ({                                                                                        \
        vec sum = (sums)[(row) * w + (q)];                                                                           \
        for (int64_t o = 1; o < size; o++) sum += (sums)[(row + o) * w + (q)];                                       \
        sum;                                                                                                         \
    })

/* y = x * s^-3/4 with s = k + weight * sum of x^2 over the window; roots, s^-1/4, is saved for the gradient. */
#define NORM(NAME, T)                                                                                                \
    void spatial_norm_##NAME(const Shape *z, const T *x, T *y, float *roots, float weight, float k) {                \
        int64_t h = z->pool.height, w = z->pool.width, size = z->pool.size, channels = z->pool.channels;             \
        int64_t before = size / 2;                                                                                   \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t image = 0; image < z->images; image++) {                                                        \
            vec sums[(h + size - 1) * w], line[w + size - 1];                                                        \
            for (int64_t i = 0; i < (h + size - 1) * w; i++) sums[i] = (vec){0};                                     \
            for (int64_t i = 0; i < w + size - 1; i++) line[i] = (vec){0};                                           \
            for (int64_t c = 0; c < channels; c += LANES) {                                                          \
                int64_t first = image * h * w * channels + c;                                                        \
                for (int64_t r = 0; r < h; r++)                                                                      \
                    ACROSS(sums, line, r, ({ vec v = get_##NAME(x + first + (r * w + q) * channels); v * v; }))      \
                for (int64_t r = 0; r < h; r++)                                                                      \
                    for (int64_t q = 0; q < w; q++) {                                                                \
                        int64_t at = first + (r * w + q) * channels;                                                 \
                        vec fourth = root(1 / root(k + weight * DOWN(sums, r, q)));                                  \
                        put_f32(roots + at, fourth);                                                                 \
                        put_##NAME(y + at, get_##NAME(x + at) * (fourth * fourth * fourth));                         \
                    }                                                                                                \
            }                                                                                                        \
        }                                                                                                            \
    }                                                                                                                \
    void spatial_norm_##NAME##_backward(const Shape *z, const T *x, const float *roots, const T *g, T *dx, float weight) { \
        int64_t h = z->pool.height, w = z->pool.width, size = z->pool.size, channels = z->pool.channels;             \
        int64_t before = (size - 1) / 2;                                                                             \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t image = 0; image < z->images; image++) {                                                        \
            vec sums[(h + size - 1) * w], line[w + size - 1];                                                        \
            for (int64_t i = 0; i < (h + size - 1) * w; i++) sums[i] = (vec){0};                                     \
            for (int64_t i = 0; i < w + size - 1; i++) line[i] = (vec){0};                                           \
            for (int64_t c = 0; c < channels; c += LANES) {                                                          \
                int64_t first = image * h * w * channels + c;                                                        \
                for (int64_t r = 0; r < h; r++)                                                                      \
                    ACROSS(sums, line, r, ({                                                                         \
                        int64_t at = first + (r * w + q) * channels;                                                 \
                        vec fourth = get_f32(roots + at), power = fourth * fourth * fourth;                          \
                        get_##NAME(g + at) * get_##NAME(x + at) * (power * power * fourth);                          \
                    }))                                                                                              \
                for (int64_t r = 0; r < h; r++)                                                                      \
                    for (int64_t q = 0; q < w; q++) {                                                                \
                        int64_t at = first + (r * w + q) * channels;                                                 \
                        vec fourth = get_f32(roots + at), direct = get_##NAME(g + at) * (fourth * fourth * fourth);  \
                        vec shared = get_##NAME(x + at) * DOWN(sums, r, q);                                          \
                        put_##NAME(dx + at, direct - 1.5f * weight * shared); /* 2 * beta */                         \
                    }                                                                                                \
            }                                                                                                        \
        }                                                                                                            \
    }

POOLS(f32, float)
POOLS(bf16, uint16_t)
NORM(f32, float)
NORM(bf16, uint16_t)

/* ---- LRN and the max pool after it: the feature maps in between stay in a core's cache */

INLINE int64_t line_of(const Pool *pool) { return pool->width * pool->channels; }

/* Floats of a thread's working memory: two lines of LRN, normalized feature maps, and two lines of float32. */
int64_t lrn_max_pool_scratch_size(const Shape *z) {
    int64_t line = line_of(&z->pool);
    return 2 * padded_line(&z->norm, z->pool.width, z->pool.channels) + (z->pool.height + 2) * line;
}

/* Maximum of windows of bfloat16 values after a ReLU: their bits are in the order of the values, NaN above all. */
static void max_pool_line_positive(const Pool *z, const uint16_t *x, int64_t line, uint16_t *y, uint8_t *argmax) {
    int64_t top = line * z->stride, rows = MIN(z->size, z->height - top);
    x += top * z->width * z->channels;
    for (int64_t q = 0; q < z->out_width; q++) {
        int64_t left = q * z->stride, columns = MIN(z->size, z->width - left);
        int64_t out = (line * z->out_width + q) * z->channels;
        for (int64_t c = 0; c < z->channels; c += LANES) {
            words best = {0}, where = {0};
            where += NO_ARGMAX;
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++) {
                    words v = *(const words *)(x + (i * z->width + left + j) * z->channels + c), take = v > best;
                    best = (v & take) | (best & ~take);
                    where = ((int16_t)(i * z->size + j) & take) | (where & ~take);
                }
            *(words *)(y + out + c) = best;
            *(bytes *)(argmax + out + c) = __builtin_convertvector(where, bytes);
        }
    }
}

/* With fewer images than threads, several threads share an image. pool.relu: a ReLU before the norm, bfloat16 only. */
#define LRN_MAX_POOL(NAME, T, LRN_LINE, POOL_LINE)                                                                   \
    void lrn_max_pool_##NAME(const Shape *z, const T *x, T *y, uint8_t *argmax, float *scratch) {                    \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t in = pool->height * line_of(pool), out = pool->out_height * pool->out_width * pool->channels;        \
        int64_t padded = padded_line(&z->norm, pool->width, pool->channels);                                         \
        int64_t parts = z->images < z->threads ? MIN(z->threads, pool->out_height) : 1;                              \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t piece = 0; piece < z->images * parts; piece++) {                                                \
            int64_t i = piece / parts, part = piece % parts;                                                         \
            int64_t from = pool->out_height * part / parts, end = pool->out_height * (part + 1) / parts;             \
            float *squares = scratch + omp_get_thread_num() * lrn_max_pool_scratch_size(z);                          \
            float *values = squares + padded;                                                                        \
            T *maps = (T *)(values + line_of(pool));                                                                 \
            memset(squares, 0, padded * sizeof(float));                                                              \
            for (int64_t line = from * pool->stride, window = from; window < end; line++) {                          \
                const T *in_line = x + i * in + line * line_of(pool);                                                \
                T *map = maps + line * line_of(pool);                                                                \
                LRN_LINE                                                                                             \
                for (; window < end && MIN(window * pool->stride + pool->size, pool->height) <= line + 1; window++)  \
                    POOL_LINE                                                                                        \
            }                                                                                                        \
        }                                                                                                            \
    }

LRN_MAX_POOL(f32, float, (void)values; lrn_line(&z->norm, pool->width, pool->channels, in_line, squares, map);,
             max_pool_line_f32(pool, maps, window, y + i * out, argmax + i * out);)
LRN_MAX_POOL(bf16, uint16_t,
             lrn_line_bf16(&z->norm, pool->width, pool->channels, in_line, pool->relu, values, squares, map);,
             if (pool->relu) max_pool_line_positive(pool, maps, window, y + i * out, argmax + i * out);
             else max_pool_line_bf16(pool, maps, window, y + i * out, argmax + i * out);)

#define LRN_MAX_POOL_BACKWARD(NAME, T, LINE, POOL_LINE, LRN_LINE)                                                    \
    void lrn_max_pool_##NAME##_backward(const Shape *z, const T *x, const T *g, const uint8_t *argmax, T *dx,        \
                                        float *scratch) {                                                            \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t out = pool->out_height * pool->out_width * pool->channels;                                           \
        int64_t padded = padded_line(&z->norm, pool->width, pool->channels);                                         \
        _Pragma("omp parallel num_threads(z->threads)")                                                              \
        {                                                                                                            \
            float *squares = scratch + omp_get_thread_num() * lrn_max_pool_scratch_size(z);                          \
            float *terms = squares + padded, *values = terms + padded;                                               \
            memset(squares, 0, 2 * padded * sizeof(float));                                                          \
            _Pragma("omp for schedule(static)")                                                                      \
            for (int64_t line = 0; line < z->images * pool->height; line++) {                                        \
                const T *in_line = x + line * line_of(pool), *gradients = g + line / pool->height * out;             \
                const uint8_t *at = argmax + line / pool->height * out;                                              \
                T *to = dx + line * line_of(pool);                                                                   \
                float *d = LINE;                                                                                     \
                POOL_LINE(pool, gradients, at, line % pool->height, d);                                              \
                LRN_LINE                                                                                             \
            }                                                                                                        \
        }                                                                                                            \
    }

LRN_MAX_POOL_BACKWARD(f32, float, to, max_pool_line_backward_f32,
                      (void)values; lrn_line_backward(&z->norm, pool->width, pool->channels, in_line, squares, terms, d, 0);)
LRN_MAX_POOL_BACKWARD(bf16, uint16_t, values + line_of(pool), max_pool_line_backward_bf16_to_f32,
                      lrn_line_backward_bf16(&z->norm, pool->width, pool->channels, in_line, pool->relu, values, squares,
                                             terms, d, to);)
