/* Local response normalization (LRN) across channels and its gradient, in one pass over channels-last memory.

   Rows are [rows, c]: the channels of one tower at one pixel. y_i = x_i * s_i^-beta with
   s_i = k + weight * sum of x_j^2, j from i - size/2 to i + (size - 1)/2 inside the row.
   lrn.py calls it and has the reference implementation. */

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float from_f32(float v) { return v; }
static inline float to_f32(float v) { return v; }

static inline float from_bf16(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline uint16_t to_bf16(float v) { /* to the nearest, ties to even, as PyTorch rounds */
    uint32_t bits;
    memcpy(&bits, &v, 4);
    if (v != v) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline void negative_power(const float *restrict s, float *restrict out, int c, float beta) {
    if (beta == 0.75f) {
        for (int i = 0; i < c; i++) {
            float root = 1.0f / sqrtf(s[i]);
            out[i] = sqrtf(root) * root;
        }
    } else {
        for (int i = 0; i < c; i++) out[i] = powf(s[i], -beta);
    }
}

/* out_i = sum of padded_j, j from i to i + size - 1 */
static inline void window_sums(const float *restrict padded, float *restrict out, int c, int size) {
    for (int i = 0; i < c; i++) out[i] = padded[i];
    for (int o = 1; o < size; o++)
        for (int i = 0; i < c; i++) out[i] += padded[i + o];
}

#define KERNELS(NAME, T, FROM, TO)                                                                                   \
    void lrn_##NAME##_forward(const T *x, T *y, float *sums, int64_t rows, int c, int size, float weight, float k,   \
                        float beta) {                                                                                \
        _Pragma("omp parallel for schedule(static)") for (int64_t r = 0; r < rows; r++) {                            \
            float in[c], scale[c], squares[c + size];                                                                \
            const T *restrict xr = x + r * c;                                                                        \
            T *restrict yr = y + r * c;                                                                              \
            float *restrict s = sums + r * c;                                                                        \
            for (int i = 0; i < c + size; i++) squares[i] = 0;                                                       \
            for (int i = 0; i < c; i++) in[i] = FROM(xr[i]);                                                         \
            for (int i = 0; i < c; i++) squares[size / 2 + i] = in[i] * in[i];                                       \
            window_sums(squares, s, c, size);                                                                        \
            for (int i = 0; i < c; i++) s[i] = k + weight * s[i];                                                    \
            negative_power(s, scale, c, beta);                                                                       \
            for (int i = 0; i < c; i++) yr[i] = TO(in[i] * scale[i]);                                                \
        }                                                                                                            \
    }                                                                                                                \
    void lrn_##NAME##_backward(const T *x, const float *sums, const T *g, T *out, int64_t rows, int c, int size,     \
                         float weight, float beta) {                                                                 \
        _Pragma("omp parallel for schedule(static)") for (int64_t r = 0; r < rows; r++) {                            \
            float in[c], direct[c], shared[c], terms[c + size];                                                      \
            const T *restrict xr = x + r * c, *restrict gr = g + r * c;                                              \
            const float *restrict s = sums + r * c;                                                                  \
            T *restrict o = out + r * c;                                                                             \
            for (int i = 0; i < c + size; i++) terms[i] = 0;                                                         \
            for (int i = 0; i < c; i++) in[i] = FROM(xr[i]);                                                         \
            negative_power(s, direct, c, beta);                                                                      \
            for (int i = 0; i < c; i++) direct[i] *= FROM(gr[i]);                                                    \
            for (int i = 0; i < c; i++) terms[(size - 1) / 2 + i] = direct[i] * in[i] / s[i];                        \
            window_sums(terms, shared, c, size);                                                                     \
            for (int i = 0; i < c; i++) o[i] = TO(direct[i] - 2 * beta * weight * shared[i] * in[i]);                \
        }                                                                                                            \
    }

KERNELS(f32, float, from_f32, to_f32)
KERNELS(bf16, uint16_t, from_bf16, to_bf16)
