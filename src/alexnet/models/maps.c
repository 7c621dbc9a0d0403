/* Pools, and response normalization across pixels, with their gradients: 16 channels at a time in channels-last memory.

   Windows are those of 2012: the last one may stick out, and looks at the pixels that exist. Sums run in the order of
   rows and columns, in float32 whatever the maps' type, so in float32 pools and their gradients are PyTorch's to the bit.
   Maps have a multiple of 16 channels. maps.py calls this and says when; layers.py holds the same in PyTorch. */

#include "lanes.h"

typedef struct { /* maps.py has the same fields in the same order */
    int64_t images, threads;
    Pool pool;
} Shape;

POOLED_LINES(f32, float)
POOLED_LINES(bf16, uint16_t)

/* y: the largest of each window, of equal ones the first; at: which pixel of its window that is, counted row by row.
   With relu, what is not above 0 becomes 0 and comes from nowhere. Of mean_backward, x is looked at with relu only. */
#define POOLS(NAME, T)                                                                                               \
    void NAME##_largest(const Shape *z, const T *x, T *y, uint8_t *at) {                                             \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t in = pool->height * pool->width * pool->channels, lines = pool->out_height;                          \
        int64_t out = lines * pool->out_width * pool->channels;                                                      \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t i = 0; i < z->images * lines; i++)                                                              \
            NAME##_largest_line(pool, x + i / lines * in, i % lines, y + i / lines * out, at + i / lines * out);     \
    }                                                                                                                \
    void NAME##_largest_backward(const Shape *z, const T *g, const uint8_t *at, T *dx) {                             \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t lines = pool->height;                                                                                \
        int64_t out = pool->out_height * pool->out_width * pool->channels;                                           \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t i = 0; i < z->images * lines; i++)                                                              \
            NAME##_largest_line_backward(pool, g + i / lines * out, at + i / lines * out, i % lines,                 \
                                         dx + i * pool->width * pool->channels);                                     \
    }                                                                                                                \
    void NAME##_mean(const Shape *z, const T *x, T *y) {                                                             \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t in = pool->height * pool->width * pool->channels, lines = pool->out_height;                          \
        int64_t out = lines * pool->out_width * pool->channels;                                                      \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t i = 0; i < z->images * lines; i++)                                                              \
            NAME##_mean_line(pool, x + i / lines * in, i % lines, y + i / lines * out);                              \
    }                                                                                                                \
    void NAME##_mean_backward(const Shape *z, const T *g, const T *x, T *dx) {                                       \
        const Pool *pool = &z->pool;                                                                                 \
        int64_t lines = pool->height, in = lines * pool->width * pool->channels;                                     \
        int64_t out = pool->out_height * pool->out_width * pool->channels;                                           \
        _Pragma("omp parallel for schedule(static) num_threads(z->threads)")                                         \
        for (int64_t i = 0; i < z->images * lines; i++)                                                              \
            NAME##_mean_line_backward(pool, g + i / lines * out, x ? x + i / lines * in : x, i % lines,              \
                                      dx + i / lines * in);                                                          \
    }

INLINE vec root(vec v) {
    vec out;
    for (int i = 0; i < LANES; i++) out[i] = sqrtf(v[i]);
    return out;
}

/* One image's 16 channels, h*w numbers each -> sums over windows of size*size that begin `before` pixels up and left.
   line holds w + size - 1 of them: a row between zeros. The rows' sums wait in sums[h + size - 1][w], between zeros. */
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

/* y = x * s^-3/4 with s = k + weight * sum of x^2 over the window; roots is s^-1/4, of which the gradient is made. */
#define NORM(NAME, T)                                                                                                \
    void NAME##_norm(const Shape *z, const T *x, T *y, float *roots, float weight, float k) {                        \
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
    void NAME##_norm_backward(const Shape *z, const T *x, const float *roots, const T *g, T *dx, float weight) {     \
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
