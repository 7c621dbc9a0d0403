/* Pooling, response normalization across pixels, and LRN fused with the max pool after it, with their gradients: 16
   channels at a time in channels-last memory.

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
POOLED_LINES(bf16, uint16_t)

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

/* 16 channels of one image, h*w values each -> sums over windows of size*size that begin `before` pixels up and left.
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

/* Floats of a thread's working memory: two lines of LRN, and normalized feature maps. */
int64_t lrn_max_pool_scratch_size(const Shape *z) {
    return 2 * padded_line(&z->norm, z->pool.width, z->pool.channels) + z->pool.height * line_of(&z->pool);
}

/* With fewer images than threads, several threads share an image. */
void lrn_max_pool(const Shape *z, const float *x, float *y, uint8_t *argmax, float *scratch) {
    const Pool *pool = &z->pool;
    int64_t in = pool->height * line_of(pool), out = pool->out_height * pool->out_width * pool->channels;
    int64_t padded = padded_line(&z->norm, pool->width, pool->channels);
    int64_t parts = z->images < z->threads ? MIN(z->threads, pool->out_height) : 1;
#pragma omp parallel for schedule(static) num_threads(z->threads)
    for (int64_t piece = 0; piece < z->images * parts; piece++) {
        int64_t i = piece / parts, part = piece % parts;
        int64_t from = pool->out_height * part / parts, end = pool->out_height * (part + 1) / parts;
        float *squares = scratch + omp_get_thread_num() * lrn_max_pool_scratch_size(z), *maps = squares + padded;
        memset(squares, 0, padded * sizeof(float));
        for (int64_t line = from * pool->stride, window = from; window < end; line++) {
            lrn_line(&z->norm, pool->width, pool->channels, x + i * in + line * line_of(pool), squares,
                      maps + line * line_of(pool));
            for (; window < end && MIN(window * pool->stride + pool->size, pool->height) <= line + 1; window++)
                max_pool_line_f32(pool, maps, window, y + i * out, argmax + i * out);
        }
    }
}

void lrn_max_pool_backward(const Shape *z, const float *x, const float *g, const uint8_t *argmax, float *dx,
                             float *scratch) {
    const Pool *pool = &z->pool;
    int64_t out = pool->out_height * pool->out_width * pool->channels;
    int64_t padded = padded_line(&z->norm, pool->width, pool->channels);
#pragma omp parallel num_threads(z->threads)
    {
        float *squares = scratch + omp_get_thread_num() * lrn_max_pool_scratch_size(z), *terms = squares + padded;
        memset(squares, 0, 2 * padded * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t line = 0; line < z->images * pool->height; line++) {
            int64_t i = line / pool->height;
            float *d = dx + line * line_of(pool);
            max_pool_line_backward_f32(pool, g + i * out, argmax + i * out, line % pool->height, d);
            lrn_line_backward(&z->norm, pool->width, pool->channels, x + line * line_of(pool), squares, terms, d, 0);
        }
    }
}
