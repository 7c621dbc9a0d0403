/* Rows in float32 times weights kept in bfloat16, for fully connected layers: a few pictures take as long as the
   weights take to be read, and these have half of the bytes. Every weight is widened to float32, which is exact;
   products and sums are those of float32.

   Weights lie in panels of 32 outputs, [panel][feature][32], outputs k and k + 16 side by side: a word of 32 bits holds
   two of them, the first widened by a shift, the second by a mask. Rows are packed by the dozen, [feature][12], whose
   sums, two vectors each, take 24 of the 32 registers. A panel is cut into blocks of features that stay in a core's
   first cache while one dozen after the other is multiplied; sums of blocks are added up in float32, so they round less
   than one long sum would. Few rows are multiplied by four panels together: four streams of memory. */

#include <omp.h>

#include "lanes.h"

enum { PANEL = 2 * LANES, BLOCK = 256, DOZEN = 12, MOST = 10 * DOZEN, FEW = 4, TOGETHER = 4, AHEAD = 2048 };

typedef struct { int64_t rows, features, outputs, threads; } Shape; /* thin.py has the same fields in the same order */

int thin_pays(void) { return pays(); }

#define PRODUCT(R, P)                                                                                                \
    /* out [R][P * 32] += x [n][R] transposed times P panels w, stride apart; what comes soon is fetched meanwhile */\
    static void rows_##R##_##P(const float *x, const uint16_t *w, int64_t stride, const char *soon, int64_t step,    \
                               float *out, int64_t n) {                                                              \
        vec sums[R][2 * P] = {{{0}}};                                                                                \
        for (int64_t i = 0; i < n; i++, x += R, w += PANEL, soon += step)                                            \
            for (int p = 0; p < P; p++) {                                                                            \
                words both = *(const words *)(w + p * stride);                                                       \
                vec first = (vec)(both << 16), second = (vec)(both & 0xffff0000);                                    \
                __builtin_prefetch(soon + p * stride * sizeof(uint16_t));                                            \
                for (int r = 0; r < R; r++) {                                                                        \
                    sums[r][2 * p] += x[r] * first;                                                                  \
                    sums[r][2 * p + 1] += x[r] * second;                                                             \
                }                                                                                                    \
            }                                                                                                        \
        for (int r = 0; r < R; r++)                                                                                  \
            for (int k = 0; k < 2 * P; k++) AT(out + (r * 2 * P + k) * LANES) += sums[r][k];                         \
    }
PRODUCT(12, 1)
PRODUCT(8, 1)
PRODUCT(4, 1)
PRODUCT(2, 1)
PRODUCT(1, 1)
PRODUCT(2, 4)
PRODUCT(1, 4)

/* How many of the rows that are left are multiplied together? */
INLINE int64_t taken(int64_t left, int few) {
    return few ? MIN(left, 2) : left >= DOZEN ? DOZEN : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static void pack(const float *x, int64_t many, int64_t features, float *packed) { /* -> [feature][many] */
    for (int64_t r = 0; r < many; r++)
        for (int64_t i = 0; i < features; i++) packed[i * many + r] = x[r * features + i];
}

/* sums [rows][panels * 32]: 1 panel or TOGETHER for all rows */
static void multiply(const float *packed, int64_t rows, int64_t features, const uint16_t *w, int panels, float *sums) {
    int64_t wide = panels * PANEL, stride = features * PANEL, few = rows <= FEW, passes = 0;
    for (int64_t row = 0; row < rows; row += taken(rows - row, few)) passes++;
    int64_t step = PANEL * sizeof(uint16_t) / (few ? 1 : passes); /* bytes fetched with a feature */
    memset(sums, 0, rows * wide * sizeof(float));
    for (int64_t from = 0; from < features; from += BLOCK) {
        int64_t n = MIN(BLOCK, features - from), many;
        const uint16_t *block = w + from * PANEL;
        const char *soon = few ? (const char *)block + AHEAD : (const char *)(block + BLOCK * PANEL);
        for (int64_t row = 0; row < rows; row += many) {
            many = taken(rows - row, few);
            const float *x = packed + row * features + from * many;
            float *out = sums + row * wide;
            if (panels == TOGETHER) (many == 2 ? rows_2_4 : rows_1_4)(x, block, stride, soon, step, out, n);
            else if (many == 12) rows_12_1(x, block, stride, soon, step, out, n);
            else if (many == 8) rows_8_1(x, block, stride, soon, step, out, n);
            else if (many == 4) rows_4_1(x, block, stride, soon, step, out, n);
            else (many == 2 ? rows_2_1 : rows_1_1)(x, block, stride, soon, step, out, n);
            soon += few ? 0 : step * n; /* each pass has its share of the next block */
        }
    }
}

/* x [rows][features], w [panels][features][32], bias [outputs] or NULL -> out [rows][outputs]; packed is as large as x.
   Any number of threads gives the same bits. */
void thin_product(const Shape *z, const float *x, const uint16_t *w, const float *bias, float *out, float *packed) {
    int64_t panels = (z->outputs + PANEL - 1) / PANEL, features = z->features;
    for (int64_t first = 0; first < z->rows; first += MOST) {
        int64_t rows = MIN(MOST, z->rows - first), few = rows <= FEW, each = few ? TOGETHER : 1;
        const float *from = x + first * features;
        float *to = out + first * z->outputs;
#pragma omp parallel num_threads(z->threads)
        {
#pragma omp for schedule(static)
            for (int64_t dozen = 0; dozen < rows; dozen += DOZEN)
                for (int64_t row = dozen, many; row < MIN(rows, dozen + DOZEN); row += many) {
                    many = taken(rows - row, few);
                    pack(from + row * features, many, features, packed + row * features);
                }
#pragma omp for schedule(dynamic)
            for (int64_t panel = 0; panel < panels; panel += each) {
                float sums[MOST * PANEL]; /* four panels of FEW rows need no more */
                int64_t together = panel + each <= panels ? each : 1;
                for (int64_t p = panel; p < MIN(panel + each, panels); p += together) {
                    multiply(packed, rows, features, w + p * features * PANEL, together, sums);
                    int64_t k = p * PANEL, wide = together * PANEL, count = MIN(wide, z->outputs - k);
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t i = 0; i < count; i++)
                            to[r * z->outputs + k + i] = sums[r * wide + i] + (bias ? bias[k + i] : 0);
                }
            }
        }
    }
}
