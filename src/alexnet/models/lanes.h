/* What the kernels share: 16 numbers at a time, whatever vectors the processor has, and pools line by line. */

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint8_t bytes __attribute__((vector_size(16), aligned(1), may_alias));
#define INLINE static inline __attribute__((always_inline))
#define AT(p) (*(vec *)(p))
#define MIN(a, b) ((a) < (b) ? (a) : (b))

enum { LANES = 16, ROWS = 8, NOWHERE = 255 };

INLINE vec get_f32(const float *p) { return *(const vec *)p; }
INLINE void put_f32(float *p, vec v) { *(vec *)p = v; }

INLINE vec get_bf16(const uint16_t *p) { return (vec)(__builtin_convertvector(*(const halves *)p, words) << 16); }

INLINE void put_bf16(uint16_t *p, vec v) { /* to the nearest, ties to even, as PyTorch rounds */
    words bits = (words)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, bad = (words)(v != v);
    *(halves *)p = __builtin_convertvector((rounded & ~bad) | (0x7fc0 & bad), halves);
}

INLINE vec choose(ints where, vec yes, vec no) { return (vec)(((ints)yes & where) | ((ints)no & ~where)); }

/* Are the products below worth it? Their 24 sums of 16 numbers fit the 32 registers of AVX-512, and no others'. */
INLINE int pays(void) {
#ifdef __AVX512F__
    return 1;
#else
    return 0;
#endif
}

/* ---- pools of one image, a line at a time */

typedef struct { int64_t height, width, channels, out_height, out_width, size, stride, relu; } Pool;

typedef struct { int64_t from, end; } Range; /* of the output positions whose windows reach a pixel */

INLINE Range over(int64_t pixel, int64_t size, int64_t stride, int64_t all) {
    return (Range){pixel < size ? 0 : (pixel - size) / stride + 1, MIN(all, pixel / stride + 1)};
}

INLINE void move_on(Range *range, int64_t pixel, int64_t size, int64_t stride, int64_t all) { /* no division */
    while (range->end < all && range->end * stride <= pixel) range->end++;
    while (range->from < range->end && range->from * stride + size <= pixel) range->from++;
}

#define POOLED_LINES(NAME, T)                                                                                        \
    INLINE void NAME##_largest_line(const Pool *z, const T *x, int64_t line, T *y, uint8_t *at) {                    \
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
                    where = (where & ~none) | (NOWHERE & none);                                                      \
                }                                                                                                    \
                put_##NAME(y + (line * z->out_width + q) * z->channels + c, best);                                   \
                *(bytes *)(at + (line * z->out_width + q) * z->channels + c) = __builtin_convertvector(where, bytes);\
            }                                                                                                        \
        }                                                                                                            \
    }                                                                                                                \
    INLINE void NAME##_largest_line_backward(const Pool *z, const T *g, const uint8_t *at, int64_t line, T *dx) {    \
        Range down = over(line, z->size, z->stride, z->out_height), across = {0, 0};                                 \
        for (int64_t q = 0; q < z->width; q++) {                                                                     \
            move_on(&across, q, z->size, z->stride, z->out_width);                                                   \
            for (int64_t c = 0; c < z->channels; c += LANES) {                                                       \
                vec sum = {0};                                                                                       \
                for (int64_t i = down.from; i < down.end; i++)                                                       \
                    for (int64_t j = across.from; j < across.end; j++) {                                             \
                        int64_t out = (i * z->out_width + j) * z->channels + c;                                      \
                        int32_t here = (line - i * z->stride) * z->size + q - j * z->stride;                         \
                        ints mine = __builtin_convertvector(*(const bytes *)(at + out), ints) == here;               \
                        sum += choose(mine, get_##NAME(g + out), (vec){0});                                          \
                    }                                                                                                \
                put_##NAME(dx + q * z->channels + c, sum); /* of the line alone */                                  \
            }                                                                                                        \
        }                                                                                                            \
    }                                                                                                                \
    INLINE void NAME##_mean_line(const Pool *z, const T *x, int64_t line, T *y) {                                    \
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
    INLINE void NAME##_mean_line_backward(const Pool *z, const T *g, const T *x, int64_t line, T *dx) {              \
        Range down = over(line, z->size, z->stride, z->out_height), across = {0, 0};                                 \
        for (int64_t q = 0; q < z->width; q++) {                                                                     \
            move_on(&across, q, z->size, z->stride, z->out_width);                                                   \
            for (int64_t c = 0; c < z->channels; c += LANES) {                                                       \
                int64_t pixel = (line * z->width + q) * z->channels + c;                                             \
                vec sum = {0};                                                                                       \
                for (int64_t i = down.from; i < down.end; i++)                                                       \
                    for (int64_t j = across.from; j < across.end; j++) {                                             \
                        int64_t rows = MIN(z->size, z->height - i * z->stride);                                      \
                        int64_t columns = MIN(z->size, z->width - j * z->stride);                                    \
                        sum += get_##NAME(g + (i * z->out_width + j) * z->channels + c) / (float)(rows * columns);   \
                    }                                                                                                \
                if (z->relu) sum = choose(get_##NAME(x + pixel) <= 0, (vec){0}, sum);                                \
                put_##NAME(dx + pixel, sum);                                                                         \
            }                                                                                                        \
        }                                                                                                            \
    }

/* ---- sums of outer products, eight rows and one panel of 16, 32 or 48 columns at a time, in registers */

#define OUTER(N)                                                                                                      \
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
