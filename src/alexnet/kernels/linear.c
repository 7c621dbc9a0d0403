/* Fully connected layers: float32 rows times weights stored in bfloat16. For a few images the time is that of reading the
   weights, and these have half of the bytes. Each weight is widened to float32, which is exact; multiplications and sums
   are in float32.

   Weights are stored in panels of 32 outputs, [panel][feature][32], with outputs k and k + 16 side by side: a word of 32
   bits holds two of them, the first widened by a shift, the second by a mask. Rows are packed by twelve, [feature][12],
   whose sums, two vectors each, take 24 of the 32 registers of AVX-512. A panel is split into blocks of features that stay in a
   core's first-level cache while all rows are multiplied, twelve at a time; the blocks' sums are added in float32, which
   rounds less than one long sum. Up to FEW rows are multiplied by four panels together, four streams of memory, and
   weights of features that are 0 are not read: after ReLUs, most features are 0. The result has the same bits.

   linear_few_rows does the same for up to FEW rows and float32 weights that are stored features first,
   [feature][outputs]. linear.py calls this. */

#include <omp.h>

#include "simd.h"

enum { PANEL = 2 * COLUMNS, BLOCK = 256, TWELVE = 12, MAX_ROWS = 10 * TWELVE, FEW = 4, TOGETHER = 4, AHEAD = 32 };
enum { WIDE = 512 }; /* outputs of float32 weights that are summed together; linear.py has the same value */

typedef struct { int64_t rows, features, outputs, threads; } Shape; /* LinearShape of native_kernels.py has the same fields */

int linear_is_fast(void) { return has_avx2(); }

/* out [R][P * 32] += x [n][R] transposed times P panels of w, stride apart; FEATURE(i) is the one that x's row i is of;
   what FETCH asks for comes next */
#define PRODUCT(NAME, R, P, FEATURE, FETCH)                                                                          \
    static void NAME##_##R##_##P(const float *x, const int32_t *which, const uint16_t *w, int64_t stride,            \
                                 const char *next, int64_t step, float *out, int64_t n) {                            \
        enum { parts = COLUMNS / LANES };                                                                            \
        vec sums[R][P][2][parts] = {0};                                                                              \
        for (int64_t i = 0; i < n; i++, x += R, next += step)                                                        \
            for (int p = 0; p < P; p++) {                                                                            \
                __builtin_prefetch(FETCH);                                                                           \
                for (int part = 0; part < parts; part++) {                                                           \
                    uints both = *(const uints *)(w + (FEATURE) * PANEL + p * stride + 2 * LANES * part);            \
                    vec first = (vec)(both << 16), second = (vec)(both & 0xffff0000);                                \
                    for (int r = 0; r < R; r++) {                                                                    \
                        sums[r][p][0][part] += x[r] * first;                                                         \
                        sums[r][p][1][part] += x[r] * second;                                                        \
                    }                                                                                                \
                }                                                                                                    \
            }                                                                                                        \
        for (int k = 0; k < R * P * 2 * parts; k++) AT(out + k * LANES) += (&sums[0][0][0][0])[k];                   \
    }
#define ALL(R) PRODUCT(all, R, 1, i, next)
#define SOME(R, P) PRODUCT(some, R, P, which[i], w + which[i + AHEAD] * PANEL + p * stride)
ALL(12)
ALL(8)
ALL(4)
ALL(2)
ALL(1)
SOME(2, 4)
SOME(1, 4)
SOME(2, 1)
SOME(1, 1)

/* Rows that are multiplied together, of `left` remaining ones. */
INLINE int64_t row_block(int64_t left) {
    if (LANES < 16) return MIN(left, 2); /* the sums of more rows do not fit 16 registers */
    return left >= TWELVE ? TWELVE : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static void pack(const float *x, int64_t block_rows, int64_t features, float *packed) { /* -> [feature][block_rows] */
    for (int64_t r = 0; r < block_rows; r++)
        for (int64_t i = 0; i < features; i++) packed[i * block_rows + r] = x[r * features + i];
}

/* sums [rows][32] */
static void multiply(const float *packed, int64_t rows, int64_t features, const uint16_t *w, float *sums) {
    int64_t passes = 0;
    for (int64_t row = 0; row < rows; row += row_block(rows - row)) passes++;
    int64_t step = PANEL * sizeof(uint16_t) / passes; /* bytes prefetched with each feature */
    memset(sums, 0, rows * PANEL * sizeof(float));
    for (int64_t from = 0; from < features; from += BLOCK) {
        int64_t n = MIN(BLOCK, features - from), block_rows;
        const uint16_t *block = w + from * PANEL;
        const char *next = (const char *)(block + BLOCK * PANEL);
        for (int64_t row = 0; row < rows; row += block_rows) {
            block_rows = row_block(rows - row);
            const float *x = packed + row * features + from * block_rows;
            float *out = sums + row * PANEL;
            if (block_rows == 12) all_12_1(x, 0, block, 0, next, step, out, n);
            else if (block_rows == 8) all_8_1(x, 0, block, 0, next, step, out, n);
            else if (block_rows == 4) all_4_1(x, 0, block, 0, next, step, out, n);
            else (block_rows == 2 ? all_2_1 : all_1_1)(x, 0, block, 0, next, step, out, n);
            next += step * n; /* each pass prefetches its share of the next block */
        }
    }
}

/* write sums [rows][wide] plus the bias to the outputs from k on */
static void put(const Shape *z, const float *sums, int64_t rows, int64_t wide, int64_t k, const float *bias, float *to) {
    int64_t count = MIN(wide, z->outputs - k);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i++) to[r * z->outputs + k + i] = sums[r * wide + i] + (bias ? bias[k + i] : 0);
}

/* ---- one row or two: features that are not 0 in all of them */

typedef struct {
    float *x;       /* [nonzero feature][rows] */
    int32_t *which; /* indices of those features; the last is repeated for prefetching */
    int32_t *ends;  /* number of nonzero features up to the end of each block */
} Nonzero;

INLINE int64_t blocks(const Shape *z) { return (z->features + BLOCK - 1) / BLOCK; }

INLINE Nonzero nonzero(const Shape *z, float *scratch, int64_t pair) {
    float *x = scratch + pair * (3 * z->features + AHEAD + blocks(z));
    int32_t *which = (int32_t *)(x + 2 * z->features);
    return (Nonzero){x, which, which + z->features + AHEAD};
}

static void gather_nonzero(const Shape *z, const float *x, int64_t rows, Nonzero into) {
    int32_t n = 0;
    for (int64_t i = 0; i < z->features; i++) {
        float first = x[i], second = rows == 2 ? x[z->features + i] : 0;
        into.x[n * rows] = first;
        if (rows == 2) into.x[n * 2 + 1] = second;
        into.which[n] = (int32_t)i;
        n += first != 0 || second != 0; /* true for NaN */
        into.ends[i / BLOCK] = n;
    }
    for (int i = 0; i < AHEAD; i++) into.which[n + i] = n ? into.which[n - 1] : 0;
}

/* sums [rows][panels * 32]: 1 panel or TOGETHER */
static void multiply_nonzero(const Shape *z, Nonzero from, int64_t rows, const uint16_t *w, int64_t panels, float *sums) {
    int64_t done = 0, stride = z->features * PANEL;
    memset(sums, 0, rows * panels * PANEL * sizeof(float));
    for (int64_t block = 0; block < blocks(z); block++) {
        const float *x = from.x + done * rows;
        const int32_t *which = from.which + done;
        int64_t n = from.ends[block] - done;
        if (panels == TOGETHER) (rows == 2 ? some_2_4 : some_1_4)(x, which, w, stride, 0, 0, sums, n);
        else (rows == 2 ? some_2_1 : some_1_1)(x, which, w, stride, 0, 0, sums, n);
        done += n;
    }
}

INLINE int64_t pairs(const Shape *z) { return (z->rows + 1) / 2; }
INLINE int64_t rows_of(const Shape *z, int64_t pair) { return MIN(2, z->rows - 2 * pair); }

static void gather_all_nonzero(const Shape *z, const float *x, float *scratch) { /* shared by the threads of a team */
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < pairs(z); pair++)
        gather_nonzero(z, x + 2 * pair * z->features, rows_of(z, pair), nonzero(z, scratch, pair));
}

/* ---- the same, weights in float32, features first */

/* out [R][WIDE] += x [n][R] transposed times WIDE outputs of n features, UNROLL features at a time */
#define LONG(R, UNROLL)                                                                                              \
    static int64_t long_##R##_##UNROLL(const float *x, const int32_t *which, const float *w, int64_t outputs,        \
                                     float *out, int64_t n) {                                                        \
        int64_t i = 0;                                                                                               \
        for (; i + UNROLL <= n; i += UNROLL, x += R * UNROLL) {                                                      \
            const float *from[UNROLL], *next[UNROLL];                                                                \
            for (int m = 0; m < UNROLL; m++) {                                                                       \
                from[m] = w + which[i + m] * outputs;                                                                \
                next[m] = w + which[i + m + UNROLL] * outputs;                                                       \
            }                                                                                                        \
            for (int64_t k = 0; k < WIDE; k += LANES) {                                                              \
                vec sums[R];                                                                                         \
                for (int r = 0; r < R; r++) sums[r] = AT(out + r * WIDE + k);                                        \
                for (int m = 0; m < UNROLL; m++) {                                                                   \
                    vec weights = AT(from[m] + k);                                                                   \
                    __builtin_prefetch(next[m] + k);                                                                 \
                    for (int r = 0; r < R; r++) sums[r] += x[m * R + r] * weights;                                   \
                }                                                                                                    \
                for (int r = 0; r < R; r++) AT(out + r * WIDE + k) = sums[r];                                        \
            }                                                                                                        \
        }                                                                                                            \
        return i;                                                                                                    \
    }
LONG(1, 8)
LONG(1, 1)
LONG(2, 8)
LONG(2, 1)

/* sums [pair][2][WIDE] of the outputs from w on: a block of features stays in a core's second cache for all pairs */
static void multiply_few_rows(const Shape *z, float *scratch, const float *w, float *sums) {
    int64_t done[FEW / 2] = {0};
    memset(sums, 0, pairs(z) * 2 * WIDE * sizeof(float));
    for (int64_t block = 0; block < blocks(z); block++)
        for (int64_t pair = 0; pair < pairs(z); pair++) {
            Nonzero from = nonzero(z, scratch, pair);
            float part[2 * WIDE] = {0};
            int64_t rows = rows_of(z, pair), n = from.ends[block] - done[pair];
            const float *x = from.x + done[pair] * rows;
            const int32_t *which = from.which + done[pair];
            int64_t most = (rows == 1 ? long_1_8 : long_2_8)(x, which, w, z->outputs, part, n);
            (rows == 1 ? long_1_1 : long_2_1)(x + most * rows, which + most, w, z->outputs, part, n - most);
            for (int64_t k = 0; k < rows * WIDE; k += LANES) AT(sums + pair * 2 * WIDE + k) += AT(part + k);
            done[pair] += n;
        }
}

/* x [rows][features], w [features][outputs], bias [outputs] or NULL -> out [rows][outputs], with at least WIDE outputs
   and at most FEW rows; scratch: linear_scratch_size(). Any number of threads gives the same bits. */
void linear_few_rows(const Shape *z, const float *x, const float *w, const float *bias, float *out, float *scratch) {
#pragma omp parallel num_threads(z->threads)
    {
        gather_all_nonzero(z, x, scratch);
#pragma omp for schedule(dynamic)
        for (int64_t k = 0; k < z->outputs; k += WIDE) {
            float sums[FEW * WIDE];
            int64_t first = MIN(k, z->outputs - WIDE); /* the last outputs are computed with some before them */
            multiply_few_rows(z, scratch, w + first, sums);
            put(z, sums + (k - first), z->rows, WIDE, k, bias, out);
        }
    }
}

/* ---- */

/* Floats of the working memory of linear_bf16 and linear_few_rows. */
int64_t linear_scratch_size(const Shape *z) {
    int64_t few = FEW / 2 * (3 * z->features + AHEAD + blocks(z));
    return z->rows > FEW ? MIN(z->rows, MAX_ROWS) * z->features : few;
}

static void few(const Shape *z, const float *x, const uint16_t *w, const float *bias, float *out, float *scratch) {
    int64_t panels = (z->outputs + PANEL - 1) / PANEL;
#pragma omp parallel num_threads(z->threads)
    {
        gather_all_nonzero(z, x, scratch);
#pragma omp for schedule(dynamic)
        for (int64_t panel = 0; panel < panels; panel += TOGETHER) {
            float sums[2 * TOGETHER * PANEL];
            int64_t together = panel + TOGETHER <= panels ? TOGETHER : 1;
            for (int64_t p = panel; p < MIN(panel + TOGETHER, panels); p += together)
                for (int64_t pair = 0; pair < pairs(z); pair++) {
                    int64_t rows = rows_of(z, pair);
                    multiply_nonzero(z, nonzero(z, scratch, pair), rows, w + p * z->features * PANEL, together, sums);
                    put(z, sums, rows, together * PANEL, p * PANEL, bias, out + 2 * pair * z->outputs);
                }
        }
    }
}

/* x [rows][features], w [panels][features][32], bias [outputs] or NULL -> out [rows][outputs]; scratch: linear_scratch_size().
   Any number of threads gives the same bits. */
void linear_bf16(const Shape *z, const float *x, const uint16_t *w, const float *bias, float *out, float *scratch) {
    int64_t panels = (z->outputs + PANEL - 1) / PANEL, features = z->features;
    if (z->rows <= FEW) {
        few(z, x, w, bias, out, scratch);
        return;
    }
    for (int64_t first = 0; first < z->rows; first += MAX_ROWS) {
        int64_t rows = MIN(MAX_ROWS, z->rows - first);
        const float *from = x + first * features;
#pragma omp parallel num_threads(z->threads)
        {
#pragma omp for schedule(static)
            for (int64_t twelve = 0; twelve < rows; twelve += TWELVE)
                for (int64_t row = twelve, block_rows; row < MIN(rows, twelve + TWELVE); row += block_rows) {
                    block_rows = row_block(rows - row);
                    pack(from + row * features, block_rows, features, scratch + row * features);
                }
#pragma omp for schedule(dynamic)
            for (int64_t panel = 0; panel < panels; panel++) {
                float sums[MAX_ROWS * PANEL];
                multiply(scratch, rows, features, w + panel * features * PANEL, sums);
                put(z, sums, rows, PANEL, panel * PANEL, bias, out + first * z->outputs);
            }
        }
    }
}
