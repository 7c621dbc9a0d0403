/* Fully connected layers in float32 for training: outputs, and the gradients of inputs and weights. PyTorch's
   multiplications of a few rows, by Intel's MKL, run at a third of the rate of an AMD processor.

   All three are one product, out [i][j] = sum over n of a [i][n] b [n][j], in tiles of HIGH rows and a panel of WIDE
   columns that stay in registers; a and b are packed such that a tile reads them in order. Sums are added in one order,
   whatever the number of threads. linear_f32.py calls this. */

#include <omp.h>

#include "simd.h"

typedef struct { int64_t rows, features, outputs, threads; } Shape; /* LinearShape of native_kernels.py has the same fields */

/* DEEP values of a sum, and STRIP columns, are packed together: they stay in a core's second-level cache. AHEAD rows of
   the weights before they are packed, they are fetched. */
enum { HIGH = 6, PARTS = 2, WIDE = PARTS * LANES, DEEP = 128, STRIP = 256, AHEAD = 8 };

int linear_f32_is_fast(void) { return LANES == 8; }

INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

INLINE void put_past_caches(float *to, vec v) { /* `to` is aligned */
#ifdef __AVX2__
    if (LANES == 8) _mm256_stream_ps(to, *(__m256 *)&v);
    else
#endif
        AT(to) = v;
}

/* out [HIGH][stride] (+)= a times b [n][WIDE]; value i of row r of a is at r * ROW + i * N */
#define TILE_PRODUCT(NAME, ROW, N)                                                                                   \
    INLINE void NAME(const float *a, int64_t a_stride, const float *b, float *out, int64_t stride, int64_t n,        \
                     int adds, int streams) {                                                                        \
        vec sums[HIGH][PARTS];                                                                                       \
        for (int r = 0; r < HIGH; r++)                                                                               \
            for (int k = 0; k < PARTS; k++) sums[r][k] = adds ? AT(out + r * stride + k * LANES) : (vec){0};         \
        for (int64_t i = 0; i < n; i++, b += WIDE) {                                                                 \
            vec columns[PARTS];                                                                                      \
            LOAD(columns, b, PARTS)                                                                                  \
            for (int r = 0; r < HIGH; r++)                                                                           \
                for (int k = 0; k < PARTS; k++) sums[r][k] += a[r * (ROW) + i * (N)] * columns[k];                   \
        }                                                                                                            \
        for (int r = 0; r < HIGH; r++)                                                                               \
            for (int k = 0; k < PARTS; k++) {                                                                        \
                float *to = out + r * stride + k * LANES;                                                            \
                if (streams) put_past_caches(to, sums[r][k]);                                                        \
                else AT(to) = sums[r][k];                                                                            \
            }                                                                                                        \
    }
TILE_PRODUCT(tile_packed, 1, HIGH)    /* a is packed: [n][HIGH] */
TILE_PRODUCT(tile_rows, a_stride, 1) /* a is HIGH rows of a matrix */

/* Floats of working memory of each function below. */
int64_t linear_f32_scratch_size(const Shape *z) {
    int64_t rows = up(z->rows, WIDE), high = up(z->rows, HIGH);
    int64_t forward = rows * z->features + rows * up(z->outputs, HIGH) + z->threads * HIGH * DEEP;
    int64_t input = high * z->outputs + high * up(z->features, WIDE) + z->threads * DEEP * STRIP;
    int64_t weight = z->rows * (up(z->features, WIDE) + up(z->outputs, HIGH)) + z->threads * HIGH * STRIP;
    int64_t most = forward > input ? forward : input;
    return most > weight ? most : weight;
}

/* ---- out [rows][outputs] = x [rows][features] times w [outputs][features] transposed, plus bias [outputs] or NULL; a tile
   has HIGH outputs of WIDE rows */

void linear_f32_forward(const Shape *z, const float *x, const float *w, const float *bias, float *out, float *scratch) {
    int64_t rows = up(z->rows, WIDE), f = z->features, k = z->outputs, panels = rows / WIDE;
    float *packed = scratch;            /* x as [block of DEEP features][panel][feature][WIDE rows] */
    float *sums = packed + rows * f;    /* [panel][output][WIDE] */
    float *own = sums + rows * up(k, HIGH);
#pragma omp parallel num_threads(z->threads)
    {
#pragma omp for schedule(static)
        for (int64_t from = 0; from < f; from += DEEP)
            for (int64_t p = 0; p < panels; p++) {
                int64_t n = MIN(DEEP, f - from);
                float *to = packed + from * rows + p * WIDE * n;
                for (int64_t r = 0; r < WIDE; r++) {
                    int64_t row = p * WIDE + r;
                    for (int64_t i = 0; i < n; i++) to[i * WIDE + r] = row < z->rows ? x[row * f + from + i] : 0;
                }
            }
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < up(k, HIGH); chunk += HIGH * 64) {
            int64_t chunk_end = MIN(chunk + HIGH * 64, up(k, HIGH));
            float *tail = own + omp_get_thread_num() * HIGH * DEEP;
            for (int64_t from = 0; from < f; from += DEEP) {
                int64_t n = MIN(DEEP, f - from);
                for (int64_t first = chunk; first < chunk_end; first += HIGH) {
                    const float *a = w + first * f + from;
                    int64_t a_stride = f;
                    if (first + HIGH > k) { /* the last outputs: missing rows are zeros */
                        memset(tail, 0, HIGH * DEEP * sizeof(float));
                        for (int64_t r = 0; first + r < k; r++) memcpy(tail + r * DEEP, a + r * f, n * sizeof(float));
                        a = tail, a_stride = DEEP;
                    }
                    else
                        for (int r = 0; r < HIGH; r++)
                            for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(a + (HIGH + r) * f + i, 0, 2);
                    for (int64_t p = 0; p < panels; p++)
                        tile_rows(a, a_stride, packed + from * rows + p * WIDE * n,
                                  sums + (p * up(k, HIGH) + first) * WIDE, WIDE, n, from > 0, 0);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->rows; row++) {
            const float *from = sums + (row / WIDE * up(k, HIGH)) * WIDE + row % WIDE;
            for (int64_t i = 0; i < k; i++) out[row * k + i] = from[i * WIDE] + (bias ? bias[i] : 0);
        }
    }
}

/* ---- dx [rows][features] = g [rows][outputs] times w [outputs][features]; a tile has WIDE features of HIGH rows */

void linear_f32_input_gradient(const Shape *z, const float *g, const float *w, float *dx, float *scratch) {
    int64_t f = z->features, k = z->outputs, rows = up(z->rows, HIGH);
    float *packed = scratch;                 /* g as [block of DEEP outputs][six rows][output][HIGH] */
    float *sums = packed + rows * k;         /* [panel][rows][WIDE] */
    float *own = sums + rows * up(f, WIDE);  /* of each thread: a block of w */
#pragma omp parallel num_threads(z->threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t from = 0; from < k; from += DEEP) {
                int64_t n = MIN(DEEP, k - from);
                float *to = packed + from * rows + row / HIGH * HIGH * n + row % HIGH;
                for (int64_t i = 0; i < n; i++) to[i * HIGH] = row < z->rows ? g[row * k + from + i] : 0;
            }
        float *block = own + omp_get_thread_num() * DEEP * STRIP; /* of w: [panel][output][WIDE] */
#pragma omp for schedule(static)
        for (int64_t strip = 0; strip < f; strip += STRIP)
            for (int64_t from = 0; from < k; from += DEEP) {
                int64_t n = MIN(DEEP, k - from), width = MIN(STRIP, f - strip);
                for (int64_t i = 0; i < n; i++) {
                    const float *line = w + (from + i) * f + strip;
                    for (int64_t j = 0; j < STRIP; j += 16) __builtin_prefetch(line + AHEAD * f + j);
                    for (int64_t left = 0; left < width; left += WIDE) {
                        float *to = block + left * n + i * WIDE;
                        if (left + WIDE <= width)
                            for (int part = 0; part < PARTS; part++) AT(to + part * LANES) = AT(line + left + part * LANES);
                        else
                            for (int64_t j = 0; j < WIDE; j++) to[j] = left + j < width ? line[left + j] : 0;
                    }
                }
                for (int64_t row = 0; row < rows; row += HIGH)
                    for (int64_t left = 0; left < width; left += WIDE)
                        tile_packed(packed + from * rows + row * n, 0, block + left * n,
                                    sums + ((strip + left) / WIDE * rows + row) * WIDE, WIDE, n, from > 0, 0);
            }
#pragma omp for schedule(static)
        for (int64_t row = 0; row < z->rows; row++)
            for (int64_t left = 0; left < f; left += WIDE)
                memcpy(dx + row * f + left, sums + (left / WIDE * rows + row) * WIDE, MIN(WIDE, f - left) * sizeof(float));
    }
}

/* ---- dw [outputs][features] = g [rows][outputs] transposed times x [rows][features]; a tile has WIDE features of HIGH
   outputs and is written once, past the caches where it can */

void linear_f32_weight_gradient(const Shape *z, const float *g, const float *x, float *dw, float *scratch) {
    int64_t f = z->features, k = z->outputs, rows = z->rows;
    float *columns = scratch;                       /* x as [panel][row][WIDE] */
    float *packed = columns + rows * up(f, WIDE);   /* g as [six outputs][row][HIGH] */
    float *own = packed + rows * up(k, HIGH);
#pragma omp parallel num_threads(z->threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t left = 0; left < f; left += WIDE)
            for (int64_t row = 0; row < rows; row++)
                for (int64_t j = 0; j < WIDE; j++)
                    columns[left * rows + row * WIDE + j] = left + j < f ? x[row * f + left + j] : 0;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < k; first += HIGH)
            for (int64_t row = 0; row < rows; row++)
                for (int64_t r = 0; r < HIGH; r++)
                    packed[first * rows + row * HIGH + r] = first + r < k ? g[row * k + first + r] : 0;
        float *tile = own + omp_get_thread_num() * HIGH * STRIP;
#pragma omp for schedule(static)
        for (int64_t strip = 0; strip < f; strip += STRIP)
            for (int64_t first = 0; first < k; first += HIGH) {
                int64_t end = MIN(strip + STRIP, f), high = MIN(HIGH, k - first);
                int whole = high == HIGH && end - strip == STRIP;
                float *to = whole ? dw + first * f + strip : tile;
                int64_t stride = whole ? f : STRIP;
                for (int64_t left = strip; left < end; left += WIDE) {
                    const float *a = packed + first * rows, *b = columns + left * rows;
                    if (whole && f % WIDE == 0 && (uintptr_t)dw % 32 == 0) tile_packed(a, 0, b, to + left - strip, stride, rows, 0, 1);
                    else tile_packed(a, 0, b, to + left - strip, stride, rows, 0, 0);
                }
                if (!whole)
                    for (int64_t r = 0; r < high; r++)
                        memcpy(dw + (first + r) * f + strip, tile + r * STRIP, (end - strip) * sizeof(float));
            }
#ifdef __AVX2__
        _mm_sfence();
#endif
    }
}
