/* The first convolution of a network for small pictures and the max pool behind it, picture by picture.

   What the convolution makes of one picture stays in a core's cache until it is pooled, and its gradient until it has
   given those of the filters: between them only the pool's output goes to memory. There is no gradient for the
   pictures. With three channels a row of a window, size * 3 numbers, lies together in channels-last memory, so the
   windows are read where they are. stem.py calls this and says when. */

#include <omp.h>

#include "lanes.h"

typedef struct { /* stem.py has the same fields in the same order */
    int64_t images, threads, height, width, channels, kernels, size, stride, padding;
    Pool pool; /* its height, width and channels are the convolution's output; size 0: no pool */
} Shape;

POOLED_LINES(f32, float)
OUTER(1)
OUTER(2)
OUTER(3)

INLINE int64_t panel(const Shape *z) { return z->kernels % 48 == 0 ? 48 : z->kernels % 32 == 0 ? 32 : 16; }
INLINE int64_t deep(const Shape *z) { return (z->size * z->channels + ROWS - 1) / ROWS * ROWS; } /* of a window's row */

int stem_pays(void) { return pays(); }

/* Floats of a padded picture's row, and its rows; what the last windows read beyond is there. */
INLINE int64_t row_of(const Shape *z) { return ((z->pool.width - 1) * z->stride + z->size) * z->channels; }
INLINE int64_t rows_of(const Shape *z) { return (z->pool.height - 1) * z->stride + z->size; }

/* Floats of a thread's own memory: a padded picture, and the convolution's output or its gradient. */
int64_t stem_room(const Shape *z) {
    return rows_of(z) * row_of(z) + 2 * ROWS + z->pool.height * z->pool.width * z->kernels;
}

static void pad(const Shape *z, const float *x, float *into) {
    int64_t row = row_of(z), rows = rows_of(z), c = z->channels;
    int64_t columns = MIN(z->width, row / c - z->padding), high = MIN(z->height, rows - z->padding);
    memset(into, 0, (rows * row + 2 * ROWS) * sizeof(float));
    for (int64_t i = 0; i < high; i++)
        memcpy(into + (i + z->padding) * row + z->padding * c, x + i * z->width * c, columns * c * sizeof(float));
}

/* w [panel][row of the window][size * channels][width of the panel]; the last eight pixels of a line may be done twice */
#define CONVOLVE(N)                                                                                                  \
    static void convolve_##N(const Shape *z, const float *x, const float *w, const float *bias, float *y) {          \
        int64_t deep = z->size * z->channels, row = row_of(z), wide = N * LANES;                                     \
        for (int64_t line = 0; line < z->pool.height; line++)                                                        \
            for (int64_t k = 0; k < z->kernels; k += wide)                                                           \
                for (int64_t left = 0; left < z->pool.width; left += ROWS) {                                         \
                    int64_t q = MIN(left, z->pool.width - ROWS);                                                     \
                    const float *a = x + (line * row + q * z->channels) * z->stride;                                 \
                    const float *b = w + k * z->size * deep;                                                         \
                    int64_t step = z->stride * z->channels;                                                          \
                    vec sums[ROWS][N];                                                                               \
                    for (int r = 0; r < ROWS; r++)                                                                   \
                        for (int i = 0; i < N; i++) sums[r][i] = bias ? AT(bias + k + i * LANES) : (vec){0};         \
                    for (int64_t down = 0; down < z->size; down++, a += row)                                         \
                        for (int64_t j = 0; j < deep; j++, b += wide)                                                \
                            for (int r = 0; r < ROWS; r++)                                                           \
                                for (int i = 0; i < N; i++) sums[r][i] += a[r * step + j] * AT(b + i * LANES);       \
                    for (int r = 0; r < ROWS; r++)                                                                   \
                        for (int i = 0; i < N; i++)                                                                  \
                            AT(y + (line * z->pool.width + q + r) * z->kernels + k + i * LANES) = sums[r][i];        \
                }                                                                                                    \
    }                                                                                                                \
    /* dw [panel][row of the window][deep, in eights][width of the panel] */                                         \
    static void filters_##N(const Shape *z, const float *x, const float *g, float *dw) {                             \
        int64_t row = row_of(z), wide = N * LANES, n = z->pool.width;                                                \
        for (int64_t k = 0; k < z->kernels; k += wide)                                                               \
            for (int64_t down = 0; down < z->size; down++)                                                           \
                for (int64_t j = 0; j < deep(z); j += ROWS, dw += ROWS * wide)                                       \
                    for (int64_t line = 0; line < z->pool.height; line++)                                            \
                        outer_##N(x + (line * z->stride + down) * row + j, z->stride * z->channels,                  \
                                  g + line * n * z->kernels + k, z->kernels, dw, n);                                 \
    }
CONVOLVE(1)
CONVOLVE(2)
CONVOLVE(3)

/* y, and for a pool its places; scratch: stem_room floats a thread */
void stem_forward(const Shape *z, const float *x, const float *w, const float *bias, float *y, uint8_t *at,
                  float *scratch) {
    const Pool *pool = &z->pool;
    int64_t in = z->height * z->width * z->channels, whole = pool->height * pool->width * z->kernels;
    int64_t out = pool->size ? pool->out_height * pool->out_width * z->kernels : whole;
#pragma omp parallel for schedule(dynamic) num_threads(z->threads)
    for (int64_t i = 0; i < z->images; i++) {
        float *maps = scratch + omp_get_thread_num() * stem_room(z), *padded = maps + whole;
        float *into = pool->size ? maps : y + i * out;
        pad(z, x + i * in, padded);
        if (panel(z) == 48) convolve_3(z, padded, w, bias, into);
        else if (panel(z) == 32) convolve_2(z, padded, w, bias, into);
        else convolve_1(z, padded, w, bias, into);
        if (pool->size)
            for (int64_t line = 0; line < pool->out_height; line++)
                f32_largest_line(pool, maps, line, y + i * out, at + i * out);
        else if (pool->relu)
            for (int64_t j = 0; j < out; j += LANES) AT(into + j) = choose(AT(into + j) < 0, (vec){0}, AT(into + j));
    }
}

/* g: gradient by y; with relu and no pool, y says where it passes. dw and db [threads] come as zeros; their sums are
   left in the first. Each thread has images of its own: the same number of them gives the same bits. */
void stem_backward(const Shape *z, const float *x, const float *g, const uint8_t *at, const float *y, float *dw,
                   float *db, float *scratch) {
    const Pool *pool = &z->pool;
    int64_t in = z->height * z->width * z->channels, whole = pool->height * pool->width * z->kernels;
    int64_t out = pool->size ? pool->out_height * pool->out_width * z->kernels : whole;
    int64_t weights = z->size * deep(z) * z->kernels;
#pragma omp parallel for schedule(static, 1) num_threads(z->threads)
    for (int64_t part = 0; part < z->threads; part++)
        for (int64_t i = z->images * part / z->threads; i < z->images * (part + 1) / z->threads; i++) {
            float *maps = scratch + part * stem_room(z), *padded = maps + whole;
            pad(z, x + i * in, padded);
            if (pool->size)
                for (int64_t line = 0; line < pool->height; line++)
                    f32_largest_line_backward(pool, g + i * out, at + i * out, line, maps);
            else
                for (int64_t j = 0; j < out; j += LANES) {
                    vec into = AT(g + i * out + j);
                    AT(maps + j) = pool->relu ? choose(AT(y + i * out + j) <= 0, (vec){0}, into) : into;
                }
            for (int64_t k = 0; k < z->kernels; k += LANES) {
                vec sum = {0};
                for (int64_t j = k; j < whole; j += z->kernels) sum += AT(maps + j);
                AT(db + part * z->kernels + k) += sum;
            }
            if (panel(z) == 48) filters_3(z, padded, maps, dw + part * weights);
            else if (panel(z) == 32) filters_2(z, padded, maps, dw + part * weights);
            else filters_1(z, padded, maps, dw + part * weights);
        }
    for (int64_t part = 1; part < z->threads; part++) {
        for (int64_t i = 0; i < weights; i += LANES) AT(dw + i) += AT(dw + part * weights + i);
        for (int64_t k = 0; k < z->kernels; k += LANES) AT(db + k) += AT(db + part * z->kernels + k);
    }
}
