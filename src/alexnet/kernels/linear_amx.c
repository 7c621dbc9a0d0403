/* The gradient of the weights of a fully connected layer in bfloat16, on AMX tiles: blocks of 32 by 32 weights, summed
   over the rows of a batch in float32 and written once, past the caches. PyTorch's product of the transposed matrix takes
   four times as long. Outputs and features are multiples of 32. Each weight is summed in one order, whatever the number
   of threads. linear_amx.py calls this. */

#include <omp.h>

#include "simd.h"
#include "amx.h"

typedef struct { int64_t rows, features, outputs, threads; } Shape; /* LinearShape of native_kernels.py has the same fields */

enum { BLOCK = 32, SUMS = 4 * TILE_FLOATS, STRIP = 512 };

int linear_amx_is_fast(void) { return has_avx512() && tiles_permitted(); }

INLINE int64_t padded_rows(const Shape *z) { return (z->rows + BLOCK - 1) / BLOCK * BLOCK; }
INLINE int64_t shared_size(const Shape *z) { return padded_rows(z) * z->outputs / 2; }
INLINE int64_t own_size(const Shape *z) { return padded_rows(z) * STRIP / 2 + SUMS; }

/* Floats of working memory: what the threads share, and what each of them has. */
int64_t linear_amx_scratch_size(const Shape *z) { return shared_size(z) + z->threads * own_size(z); }

/* Row r of a block of 2 * 2 tiles, 64 bytes that are not read soon. */
INLINE void store_line(uint16_t *to, const float *sums, int64_t r) {
    uint16_t line[BLOCK];
    for (int64_t c = 0; c < BLOCK; c += LANES)
        put_bf16(line + c, AT(sums + (r / TILE * 2 + c / TILE) * TILE_FLOATS + r % TILE * TILE + c % TILE));
#ifdef __AVX512F__
    _mm512_stream_si512((void *)to, _mm512_loadu_si512(line));
#else
    memcpy(to, line, sizeof line);
#endif
}

/* dw [outputs][features] = g [rows][outputs] transposed times x [rows][features]; dw is aligned to 64 bytes. */
void linear_amx_weight_gradient(const Shape *z, const uint16_t *g, const uint16_t *x, uint16_t *dw, float *scratch) {
    int64_t rows = padded_rows(z), f = z->features;
    uint16_t *transposed = (uint16_t *)scratch; /* g: [outputs][rows] */
#pragma omp parallel num_threads(z->threads)
    {
        uint16_t *pairs = (uint16_t *)(scratch + shared_size(z) + omp_get_thread_num() * own_size(z)); /* [f / 16][rows / 32] tiles */
        float *sums = (float *)pairs + rows * STRIP / 2;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < z->outputs; k += BLOCK)
            for (int64_t n = 0; n < rows; n++)
                for (int64_t i = k; i < k + BLOCK; i++)
                    transposed[i * rows + n] = n < z->rows ? g[n * z->outputs + i] : 0;
        tiles_begin();
#pragma omp for schedule(static)
        for (int64_t left = 0; left < f; left += STRIP) {
            int64_t width = MIN(STRIP, f - left);
            for (int64_t s = 0; s < rows / 2; s++)
                for (int64_t t = 0; t < width / TILE; t++) {
                    uint16_t *to = pairs + (t * rows / DEPTH + s / TILE) * TILE_HALVES + s % TILE * DEPTH;
                    const uint16_t *even = x + 2 * s * f + left + t * TILE, *odd = even + f;
                    for (int i = 0; i < TILE; i++) {
                        to[2 * i] = 2 * s < z->rows ? even[i] : 0;
                        to[2 * i + 1] = 2 * s + 1 < z->rows ? odd[i] : 0;
                    }
                }
            for (int64_t k = 0; k < z->outputs; k += BLOCK)
                for (int64_t c = 0; c < width; c += BLOCK) {
                    const uint16_t *a = transposed + k * rows, *b = pairs + c / TILE * rows * TILE;
                    tile_products(sums, 1, a, a + TILE * rows, rows, DEPTH, b, b + rows * TILE, TILE_HALVES,
                                  rows / DEPTH);
                    for (int i = 0; i < BLOCK; i++)
                        store_line(dw + (k + i) * f + left + c, sums, i);
                }
        }
        tiles_end();
    }
#ifdef __AVX512F__
    _mm_sfence();
#endif
}
