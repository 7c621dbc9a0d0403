/* Shared by the kernels: vectors of 16 values, whatever vector size the processor has, and pooling line by line. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t uints __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint8_t bytes __attribute__((vector_size(16), aligned(1), may_alias));
typedef int16_t words __attribute__((vector_size(32), aligned(2), may_alias)); /* bfloat16 bits, for comparisons */
#define INLINE static inline __attribute__((always_inline))
#define AT(p) (*(vec *)(p))
#define MIN(a, b) ((a) < (b) ? (a) : (b))

enum { LANES = 16, ROWS = 8, NO_ARGMAX = 255 };

INLINE vec get_f32(const float *p) { return *(const vec *)p; }
INLINE void put_f32(float *p, vec v) { *(vec *)p = v; }

INLINE vec get_bf16(const uint16_t *p) { return (vec)(__builtin_convertvector(*(const halves *)p, uints) << 16); }

INLINE void put_bf16(uint16_t *p, vec v) { /* to the nearest, ties to even, as PyTorch rounds */
    uints bits = (uints)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, bad = (uints)(v != v);
    *(halves *)p = __builtin_convertvector((rounded & ~bad) | (0x7fc0 & bad), halves);
}

/* v^-1/2: with AVX-512 to a relative error of 2^-14, for results that are rounded to bfloat16 (2^-9) */
INLINE vec rough_inverse_root(vec v) {
#ifdef __AVX512F__
    return (vec)_mm512_rsqrt14_ps((__m512)v);
#else
    for (int i = 0; i < LANES; i++) v[i] = 1 / sqrtf(v[i]);
    return v;
#endif
}

INLINE vec choose(ints where, vec yes, vec no) { return (vec)(((ints)yes & where) | ((ints)no & ~where)); }

/* Whether the matrix products below are faster than PyTorch: their 24 sums of 16 values fit the 32 registers of AVX-512
   only. */
INLINE int has_avx512(void) {
#ifdef __AVX512F__
    return 1;
#else
    return 0;
#endif
}

/* ---- pooling of one image, line by line */

typedef struct { int64_t height, width, channels, out_height, out_width, size, stride, relu; } Pool;

typedef struct { int64_t from, end; } Range; /* of the output lines whose windows contain an input line */

INLINE Range windows_over(int64_t line, int64_t size, int64_t stride, int64_t all) {
    return (Range){line < size ? 0 : (line - size) / stride + 1, MIN(all, line / stride + 1)};
}

/* Most windows have 2 or 3 pixels per side; as constants, the compiler unrolls their loops. */
#define WITH_SIZE(z, ...)                                                                                            \
    {                                                                                                                \
        if ((z)->size == 3) { enum { size = 3 }; __VA_ARGS__ }                                                       \
        else if ((z)->size == 2) { enum { size = 2 }; __VA_ARGS__ }                                                  \
        else { int64_t size = (z)->size; __VA_ARGS__ }                                                               \
    }

/* the gradient of one input line: the maximum of each window gets the window's gradient */
#define MAX_POOL_LINE_BACKWARD(NAME, T, GET, D, PUT)                                                                 \
    INLINE void max_pool_line_backward_##NAME(const Pool *z, const T *g, const uint8_t *argmax, int64_t line, D *dx) { \
        Range down = windows_over(line, z->size, z->stride, z->out_height);                                          \
        vec sums[z->width + z->size];                                                                                \
        for (int64_t c = 0; c < z->channels; c += LANES) {                                                           \
            for (int64_t q = 0; q < z->width; q++) sums[q] = (vec){0};                                               \
            for (int64_t i = down.from; i < down.end; i++)                                                           \
                WITH_SIZE(z, {                                                                                       \
                    int64_t out = i * z->out_width * z->channels + c;                                                \
                    int32_t first = (line - i * z->stride) * size;                                                   \
                    for (int64_t j = 0; j < z->out_width; j++, out += z->channels) {                                 \
                        vec v = GET(g + out), *to = sums + j * z->stride;                                            \
                        ints position = __builtin_convertvector(*(const bytes *)(argmax + out), ints);               \
                        for (int o = 0; o < size; o++) to[o] += choose(position == first + o, v, (vec){0});          \
                    }                                                                                                \
                })                                                                                                   \
            for (int64_t q = 0; q < z->width; q++) PUT(dx + q * z->channels + c, sums[q]);                           \
        }                                                                                                            \
    }

#define POOLED_LINES(NAME, T)                                                                                        \
    INLINE void max_pool_line_##NAME(const Pool *z, const T *x, int64_t line, T *y, uint8_t *argmax) {               \
        int64_t top = line * z->stride, rows = MIN(z->size, z->height - top);                                        \
        x += top * z->width * z->channels;                                                                           \
        for (int64_t q = 0; q < z->out_width; q++) {                                                                 \
            int64_t left = q * z->stride, columns = MIN(z->size, z->width - left);                                   \
            for (int64_t c = 0; c < z->channels; c += LANES) {                                                       \
                vec best = (vec){0} - INFINITY;                                                                      \
                ints where = {0};                                                                                    \
                for (int64_t i = 0; i < rows; i++)                                                                   \
                    for (int64_t j = 0; j < columns; j++) {                                                          \
                        vec v = get_##NAME(x + (i * z->width + left + j) * z->channels + c);                         \
                        ints take = (v > best) | (v != v);                                                           \
                        best = choose(take, v, best);                                                                \
                        where = (where & ~take) | ((int32_t)(i * z->size + j) & take);                               \
                    }                                                                                                \
                if (z->relu) {                                                                                       \
                    ints none = best <= 0;                                                                           \
                    best = choose(none, (vec){0}, best);                                                             \
                    where = (where & ~none) | (NO_ARGMAX & none);                                                    \
                }                                                                                                    \
                put_##NAME(y + (line * z->out_width + q) * z->channels + c, best);                                   \
                *(bytes *)(argmax + (line * z->out_width + q) * z->channels + c) = __builtin_convertvector(where, bytes); \
            }                                                                                                        \
        }                                                                                                            \
    }                                                                                                                \
    INLINE void avg_pool_line_##NAME(const Pool *z, const T *x, int64_t line, T *y) {                                \
        int64_t top = line * z->stride, rows = MIN(z->size, z->height - top);                                        \
        x += top * z->width * z->channels;                                                                           \
        for (int64_t q = 0; q < z->out_width; q++) {                                                                 \
            int64_t left = q * z->stride, columns = MIN(z->size, z->width - left);                                   \
            for (int64_t c = 0; c < z->channels; c += LANES) {                                                       \
                vec sum = {0};                                                                                       \
                for (int64_t i = 0; i < rows; i++)                                                                   \
                    for (int64_t j = 0; j < columns; j++) {                                                          \
                        vec v = get_##NAME(x + (i * z->width + left + j) * z->channels + c);                         \
                        sum += z->relu ? choose(v < 0, (vec){0}, v) : v;                                             \
                    }                                                                                                \
                put_##NAME(y + (line * z->out_width + q) * z->channels + c, sum / (float)(rows * columns));          \
            }                                                                                                        \
        }                                                                                                            \
    }                                                                                                                \
    INLINE void avg_pool_line_backward_##NAME(const Pool *z, const T *g, const T *x, int64_t line, T *dx) {          \
        Range down = windows_over(line, z->size, z->stride, z->out_height);                                          \
        vec sums[z->width + z->size];                                                                                \
        for (int64_t c = 0; c < z->channels; c += LANES) {                                                           \
            for (int64_t q = 0; q < z->width; q++) sums[q] = (vec){0};                                               \
            for (int64_t i = down.from; i < down.end; i++)                                                           \
                WITH_SIZE(z, {                                                                                       \
                    int64_t out = i * z->out_width * z->channels + c;                                                \
                    int64_t rows = MIN(size, z->height - i * z->stride);                                             \
                    for (int64_t j = 0; j < z->out_width; j++, out += z->channels) {                                 \
                        int64_t columns = MIN(size, z->width - j * z->stride);                                       \
                        vec v = get_##NAME(g + out) / (float)(rows * columns), *to = sums + j * z->stride;           \
                        for (int o = 0; o < size; o++) to[o] += v;                                                   \
                    }                                                                                                \
                })                                                                                                   \
            for (int64_t q = 0; q < z->width; q++) {                                                                 \
                int64_t pixel = (line * z->width + q) * z->channels + c;                                             \
                if (z->relu) sums[q] = choose(get_##NAME(x + pixel) <= 0, (vec){0}, sums[q]);                        \
                put_##NAME(dx + pixel, sums[q]);                                                                     \
            }                                                                                                        \
        }                                                                                                            \
    }

/* ---- sums of outer products in registers: eight rows and one panel of 16, 32 or 48 columns */

#define OUTER(N)                                                                                                     \
    /* out [8][N * 16] += a [n][8] transposed times b [n][N * 16] */                                                 \
    static void outer_##N(const float *a, int64_t a_stride, const float *b, int64_t stride, float *out, int64_t n) { \
        vec sums[ROWS][N];                                                                                           \
        for (int r = 0; r < ROWS; r++)                                                                               \
            for (int k = 0; k < N; k++) sums[r][k] = AT(out + (r * N + k) * LANES);                                  \
        for (int64_t i = 0; i < n; i++, a += a_stride, b += stride)                                                  \
            for (int r = 0; r < ROWS; r++)                                                                           \
                for (int k = 0; k < N; k++) sums[r][k] += a[r] * AT(b + k * LANES);                                  \
        for (int r = 0; r < ROWS; r++)                                                                               \
            for (int k = 0; k < N; k++) AT(out + (r * N + k) * LANES) = sums[r][k];                                  \
    }
