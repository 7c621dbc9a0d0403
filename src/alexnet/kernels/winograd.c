/* Winograd convolutions of 3x3 and 5x5 filters with stride 1 (Winograd 1980; Lavin and Gray 2015).

   A tile of tile x tile input pixels, 6 to 8, gives m x m outputs, m = tile - r + 1, with tile * tile multiplications
   instead of m*m*r*r: 36 instead of 144 (3x3 filters, m = 4) or 100 (5x5, m = 2), 49 instead of 225 (m = 5 and m = 3), 64
   instead of 400 (5x5, m = 4). The sums are the same, regrouped. Polynomials are evaluated at 0, +-3/4, +-3/2 and
   infinity; at 0, +-1/2, +-5/4 and +-5/2; or at 0, +-1/2, +-1, +-9/4 and infinity: errors are about two, four or eight
   times those of the plain sum in float32 (the usual points 0, +-1, +-2 give four with tiles of 6). All constants of the
   data's transforms are exact in binary.

   Memory is channels-last. Names: x input, y output, u transformed filters [point][panel][depth][width], v and q the
   transformed input and output [point][tile][channel]; g and d... are gradients. winograd.py calls this. */

#include <omp.h>

#include "simd.h"
#include "winograd.h"

typedef struct { /* one group of a convolution; winograd.py has the same fields in the same order */
    int64_t images, height, width, channels, x_stride; /* x_stride: floats from one pixel to the next */
    int64_t out_height, out_width, kernels, y_stride;
    int64_t padding, m, tile, chunk, relu, threads; /* chunk: tiles that a thread computes together, a multiple of ROWS */
} Shape;

int winograd_is_fast(void) { return has_avx2(); }

/* Floats from one point's matrix [chunk][wide] to the next: one cache line more than its size, since a tile writes to all
   matrices, and distances of a power of two would map to the same few cache sets. */
INLINE int64_t plane(const Shape *z, int64_t wide) { return z->chunk * wide + COLUMNS; }

INLINE int points(const Shape *z) { return (int)(z->tile * z->tile); }

INLINE int64_t scratch_size(const Shape *z) { return points(z) * (plane(z, z->channels) + plane(z, z->kernels)); }

/* ---- tiles: t counts them image by image, row by row */

typedef struct { int64_t image, row, column; } Position; /* of a tile's first output pixel */

INLINE Position position_of(const Shape *z, int64_t t, int m) {
    int64_t across = (z->out_width + m - 1) / m, down = (z->out_height + m - 1) / m;
    return (Position){t / (across * down), t / across % down * m, t % across * m};
}

INLINE void gather(const Shape *z, const float *x, int64_t t, int row, float *v, int side, int m) {
    Position at = position_of(z, t, m);
    const float *image = x + at.image * z->height * z->width * z->x_stride;
    int64_t top = at.row - z->padding, left = at.column - z->padding;
    for (int64_t c = 0; c < z->channels; c += LANES) {
        vec columns[MAX_TILE][MAX_TILE], line[MAX_TILE], out[MAX_TILE];
        for (int j = 0; j < side; j++) {
            for (int i = 0; i < side; i++) {
                int inside = top + i >= 0 && top + i < z->height && left + j >= 0 && left + j < z->width;
                line[i] = inside ? AT(image + ((top + i) * z->width + left + j) * z->x_stride + c) : (vec){0};
            }
            to_points(line, columns[j], side);
        }
        for (int i = 0; i < side; i++) {
            for (int j = 0; j < side; j++) line[j] = columns[j][i];
            to_points(line, out, side);
            for (int j = 0; j < side; j++)
                AT(v + (i * side + j) * plane(z, z->channels) + row * z->channels + c) = out[j];
        }
    }
}

INLINE void scatter(const Shape *z, const float *q, int row, const float *bias, float *y, int64_t t, int side,
                    int m) {
    Position at = position_of(z, t, m);
    float *image = y + at.image * z->out_height * z->out_width * z->y_stride;
    int64_t down = MIN(m, z->out_height - at.row), across = MIN(m, z->out_width - at.column);
    for (int64_t k = 0; k < z->kernels; k += LANES) {
        vec columns[MAX_TILE][MAX_TILE], line[MAX_TILE], out[MAX_TILE], add = bias ? AT(bias + k) : (vec){0};
        for (int j = 0; j < side; j++) {
            for (int i = 0; i < side; i++)
                line[i] = AT(q + (i * side + j) * plane(z, z->kernels) + row * z->kernels + k);
            from_points(line, columns[j], side, m);
        }
        for (int i = 0; i < down; i++) {
            for (int j = 0; j < side; j++) line[j] = columns[j][i];
            from_points(line, out, side, m);
            for (int j = 0; j < across; j++) {
                vec sum = out[j] + add;
                if (z->relu) sum = relu_of(sum);
                AT(image + ((at.row + i) * z->out_width + at.column + j) * z->y_stride + k) = sum;
            }
        }
    }
}

INLINE void gather_grad(const Shape *z, const float *g, const float *y, int64_t t, int row, float *q, float *db,
                        int side, int m) {
    Position at = position_of(z, t, m);
    int64_t first = at.image * z->out_height * z->out_width;
    for (int64_t k = 0; k < z->kernels; k += LANES) {
        vec rows[MAX_TILE][MAX_TILE], line[MAX_TILE], out[MAX_TILE], sum = {0};
        for (int i = 0; i < m; i++) {
            for (int j = 0; j < m; j++) {
                int inside = at.row + i < z->out_height && at.column + j < z->out_width;
                int64_t pixel = first + (at.row + i) * z->out_width + at.column + j;
                line[j] = inside ? AT(g + pixel * z->y_stride + k) : (vec){0};
                if (z->relu && inside) line[j] = (vec)((ints)line[j] & ~(AT(y + pixel * z->y_stride + k) <= 0));
                sum += line[j];
            }
            from_points_transposed(line, rows[i], side, m);
        }
        AT(db + k) += sum;
        for (int j = 0; j < side; j++) {
            for (int i = 0; i < m; i++) line[i] = rows[i][j];
            from_points_transposed(line, out, side, m);
            for (int i = 0; i < side; i++)
                AT(q + (i * side + j) * plane(z, z->kernels) + row * z->kernels + k) = out[i];
        }
    }
}

/* Tiles overlap, so they are added up; the first tile of an image clears its memory. */
INLINE void scatter_grad(const Shape *z, const float *v, int row, float *dx, int64_t t, int side, int m) {
    Position at = position_of(z, t, m);
    float *image = dx + at.image * z->height * z->width * z->x_stride;
    if (at.row == 0 && at.column == 0)
        for (int64_t pixel = 0; pixel < z->height * z->width; pixel++)
            memset(image + pixel * z->x_stride, 0, z->channels * sizeof(float));
    int64_t top = at.row - z->padding, left = at.column - z->padding;
    for (int64_t c = 0; c < z->channels; c += LANES) {
        vec columns[MAX_TILE][MAX_TILE], line[MAX_TILE], out[MAX_TILE];
        for (int j = 0; j < side; j++) {
            for (int i = 0; i < side; i++)
                line[i] = AT(v + (i * side + j) * plane(z, z->channels) + row * z->channels + c);
            to_points_transposed(line, columns[j], side);
        }
        for (int i = 0; i < side; i++) {
            if (top + i < 0 || top + i >= z->height) continue;
            for (int j = 0; j < side; j++) line[j] = columns[j][i];
            to_points_transposed(line, out, side);
            for (int j = 0; j < side; j++)
                if (left + j >= 0 && left + j < z->width)
                    AT(image + ((top + i) * z->width + left + j) * z->x_stride + c) += out[j];
        }
    }
}

/* ---- matrix products */

#define PRODUCT(N)                                                                                                   \
    /* out [8][N * 16] = a [8][n] times b [n][N * 16]; prefetches `next` meanwhile */                                \
    static void rows_##N(const float *a, int64_t a_stride, const float *b, float *out, int64_t stride, int64_t n,    \
                         const char *next, int64_t step) {                                                           \
        EACH_BLOCK(N) {                                                                                              \
            vec sums[TALL][BROAD(N)] = {{{0}}}, columns[BROAD(N)];                                                   \
            const float *x = a + top * a_stride, *y = b + left;                                                      \
            for (int64_t i = 0; i < n; i++, y += N * COLUMNS) {                                                      \
                if (top == 0 && left == 0)                                                                           \
                    for (int k = 0; k < N; k++, next += step) __builtin_prefetch(next, 0, 2);                        \
                LOAD(columns, y, BROAD(N))                                                                           \
                for (int r = 0; r < TALL; r++)                                                                       \
                    for (int k = 0; k < BROAD(N); k++) sums[r][k] += x[r * a_stride + i] * columns[k];               \
            }                                                                                                        \
            for (int r = 0; r < TALL; r++)                                                                           \
                for (int k = 0; k < BROAD(N); k++) AT(out + (top + r) * stride + left + k * LANES) = sums[r][k];     \
        }                                                                                                            \
    }
PRODUCT(1)
PRODUCT(2)
PRODUCT(3)
OUTER(1)
OUTER(2)
OUTER(3)

INLINE int panel(int64_t columns) { return columns % 48 == 0 ? 48 : columns % 32 == 0 ? 32 : 16; }

/* a [rows][depth] times one panel of one point's u, [depth][wide] -> its columns of out [rows][columns] */
static void multiply_panel(const float *a, int64_t depth, const float *u, float *out, int64_t columns, int64_t rows) {
    int wide = panel(columns);
    int64_t step = COLUMNS * sizeof(float) * ROWS / rows; /* each block of eight rows prefetches its share of the next panel */
    const char *next = (const char *)(u + depth * wide);
    for (int64_t r = 0; r < rows; r += ROWS, a += ROWS * depth, out += ROWS * columns) {
        if (wide == 48) rows_3(a, depth, u, out, columns, depth, next, step);
        else if (wide == 32) rows_2(a, depth, u, out, columns, depth, next, step);
        else rows_1(a, depth, u, out, columns, depth, next, step);
        next += step * depth * wide / COLUMNS;
    }
}

static void multiply(const float *a, int64_t depth, const float *u, float *out, int64_t columns, int64_t rows) {
    int wide = panel(columns);
    for (int64_t k = 0; k < columns; k += wide) multiply_panel(a, depth, u + k * depth, out + k, columns, rows);
}

/* du += v transposed [channels][rows] times q [rows][kernels] */
static void correlate(const float *v, int64_t channels, const float *q, int64_t kernels, float *du, int64_t rows) {
    int wide = panel(kernels);
    for (int64_t k = 0; k < kernels; k += wide)
        for (int64_t c = 0; c < channels; c += ROWS, du += ROWS * wide) {
            if (wide == 48) outer_3(v + c, channels, q + k, kernels, du, rows);
            else if (wide == 32) outer_2(v + c, channels, q + k, kernels, du, rows);
            else outer_1(v + c, channels, q + k, kernels, du, rows);
        }
}

/* ---- the three convolutions */

INLINE void clear(const Shape *z, float *into, int64_t wide, int64_t from, int64_t to) {
    for (int p = 0; p < points(z); p++)
        memset(into + p * plane(z, wide) + from * wide, 0, (to - from) * wide * sizeof(float));
}

INLINE int64_t tiles(const Shape *z, int64_t images) {
    return images * ((z->out_height + z->m - 1) / z->m) * ((z->out_width + z->m - 1) / z->m);
}

#define EACH_OF(SIDE, M, call, from, count)                                                                          \
    {                                                                                                                \
        enum { side = SIDE, m = M };                                                                                 \
        for (int64_t i = 0; i < (count); i++) { int64_t t = (from) + i; call; }                                      \
    }
#define EACH(call, from, count)                                                                                      \
    if (z->tile == 8) EACH_OF(8, 4, call, from, count)                                                               \
    else if (z->m == 2) EACH_OF(6, 2, call, from, count)                                                             \
    else if (z->m == 3) EACH_OF(7, 3, call, from, count)                                                             \
    else if (z->m == 4) EACH_OF(6, 4, call, from, count)                                                             \
    else EACH_OF(7, 5, call, from, count)

/* All tiles are one chunk, and each thread computes its own panels: with few images the transformed filters are more to
   read than the feature maps. scratch: scratch_size() floats. */
static void forward_together(const Shape *z, const float *x, const float *u, const float *bias, float *y, float *v) {
    int64_t all = tiles(z, z->images), panels = z->kernels / panel(z->kernels);
    float *q = v + points(z) * plane(z, z->channels);
#pragma omp parallel num_threads(z->threads)
    {
        int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        int64_t first = all * me / team, count = all * (me + 1) / team - first;
        EACH(gather(z, x, t, t, v, side, m), first, count)
        if (me == 0) clear(z, v, z->channels, all, z->chunk);
#pragma omp barrier
#pragma omp for schedule(dynamic, 4)
        for (int64_t unit = 0; unit < points(z) * panels; unit++) {
            int64_t p = unit / panels, k = unit % panels * panel(z->kernels);
            multiply_panel(v + p * plane(z, z->channels), z->channels, u + (p * z->kernels + k) * z->channels,
                           q + p * plane(z, z->kernels) + k, z->kernels, z->chunk);
        }
        EACH(scatter(z, q, t, bias, y, t, side, m), first, count)
    }
}

/* scratch: scratch_size() floats per thread. Any number of threads gives the same bits. */
void winograd_forward(const Shape *z, const float *x, const float *u, const float *bias, float *y, float *scratch) {
    int64_t all = tiles(z, z->images), chunks = (all + z->chunk - 1) / z->chunk;
    if (chunks == 1) {
        forward_together(z, x, u, bias, y, scratch);
        return;
    }
#pragma omp parallel for schedule(dynamic) num_threads(z->threads)
    for (int64_t chunk_index = 0; chunk_index < chunks; chunk_index++) {
        float *v = scratch + omp_get_thread_num() * scratch_size(z), *q = v + points(z) * plane(z, z->channels);
        int64_t from = chunk_index * z->chunk, count = MIN(z->chunk, all - from), rows = (count + ROWS - 1) / ROWS * ROWS;
        EACH(gather(z, x, t, i, v, side, m), from, count)
        clear(z, v, z->channels, count, rows);
        for (int p = 0; p < points(z); p++)
            multiply(v + p * plane(z, z->channels), z->channels, u + p * z->channels * z->kernels,
                     q + p * plane(z, z->kernels), z->kernels, rows);
        EACH(scatter(z, q, i, bias, y, t, side, m), from, count)
    }
}

static void backward_of(const Shape *z, const float *x, const float *g, const float *y, const float *turned, float *dx,
                        float *du, float *db, float *v, float *q, int64_t from, int64_t count) {
    int64_t rows = (count + ROWS - 1) / ROWS * ROWS, weights = z->channels * z->kernels;
    EACH(gather_grad(z, g, y, t, i, q, db, side, m), from, count)
    clear(z, q, z->kernels, count, rows);
    if (du) {
        EACH(gather(z, x, t, i, v, side, m), from, count)
        clear(z, v, z->channels, count, rows);
    }
    for (int p = 0; p < points(z); p++) {
        float *vp = v + p * plane(z, z->channels), *qp = q + p * plane(z, z->kernels);
        if (du) correlate(vp, z->channels, qp, z->kernels, du + p * weights, rows);
        if (dx) multiply(qp, z->kernels, turned + p * weights, vp, z->channels, rows); /* vp is free now */
    }
    if (dx) {
        EACH(scatter_grad(z, v, i, dx, t, side, m), from, count)
    }
}

/* du [threads][points * channels * kernels] and db [threads][kernels] are zeros at the start; their sums are in the first
   at the end. dx and du may be NULL: not computed. Each thread has its own images: the same number of threads gives the
   same bits. */
void winograd_backward(const Shape *z, const float *x, const float *g, const float *y, const float *turned, float *dx,
                       float *du, float *db, float *scratch) {
    int64_t parts = z->threads, weights = points(z) * z->channels * z->kernels, each = tiles(z, 1);
#pragma omp parallel num_threads(parts)
    {
#pragma omp for schedule(static, 1)
        for (int64_t part = 0; part < parts; part++) {
            float *v = scratch + part * scratch_size(z), *q = v + points(z) * plane(z, z->channels);
            int64_t from = z->images * part / parts * each, to = z->images * (part + 1) / parts * each;
            for (; from < to; from += z->chunk)
                backward_of(z, x, g, y, turned, dx, du ? du + part * weights : 0, db + part * z->kernels, v, q, from,
                            MIN(z->chunk, to - from));
        }
        if (du) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < weights; i += LANES)
                for (int64_t part = 1; part < parts; part++) AT(du + i) += AT(du + part * weights + i);
        }
    }
    for (int64_t part = 1; part < parts; part++)
        for (int64_t k = 0; k < z->kernels; k += LANES) AT(db + k) += AT(db + part * z->kernels + k);
}
