/* Shared by the kernels: vectors as wide as the processor's registers, and pooling line by line. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

/* LANES: values of a register. TALL: rows of sums that fit the registers with up to three columns of them: AVX-512 and
   NEON have 32 registers, AVX2 has 16. GCC takes vectors apart that are wider than a register, comparisons and roots
   value by value. */
#ifdef __AVX512F__
enum { LANES = 16, TALL = 8 };
#elif defined(__AVX2__)
enum { LANES = 8, TALL = 4 };
#else
enum { LANES = 4, TALL = 8 };
#endif

#define VECTOR(T) __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T)), may_alias))
typedef float vec VECTOR(float);
typedef int32_t ints VECTOR(int32_t);
typedef uint32_t uints VECTOR(uint32_t);
typedef uint16_t halves VECTOR(uint16_t);
typedef uint8_t bytes VECTOR(uint8_t);
typedef int16_t words VECTOR(int16_t); /* bfloat16 bits, for comparisons */
#define INLINE static inline __attribute__((always_inline))
#define AT(p) (*(vec *)(p))
#define MIN(a, b) ((a) < (b) ? (a) : (b))

enum { NO_ARGMAX = 255 };

INLINE vec get_f32(const float *p) { return *(const vec *)p; }
INLINE void put_f32(float *p, vec v) { *(vec *)p = v; }

INLINE vec get_bf16(const uint16_t *p) { return (vec)(__builtin_convertvector(*(const halves *)p, uints) << 16); }

INLINE void put_bf16(uint16_t *p, vec v) { /* to the nearest, ties to even, as PyTorch rounds */
    uints bits = (uints)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, bad = (uints)(v != v);
    *(halves *)p = __builtin_convertvector((rounded & ~bad) | (0x7fc0 & bad), halves);
}

INLINE vec root(vec v) {
#if defined(__AVX512F__)
    return (vec)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (vec)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < LANES; i++) v[i] = sqrtf(v[i]);
    return v;
#endif
}

/* v^-1/2: with AVX-512 to a relative error of 2^-14, for results that are rounded to bfloat16 (2^-9) */
INLINE vec rough_inverse_root(vec v) {
#ifdef __AVX512F__
    return (vec)_mm512_rsqrt14_ps((__m512)v);
#else
    return 1 / root(v);
#endif
}

INLINE vec choose(ints where, vec yes, vec no) { return (vec)(((ints)yes & where) | ((ints)no & ~where)); }

INLINE vec relu_of(vec v) { return (vec)((ints)v & ~(v < 0)); } /* NaN stays NaN */

/* Whether the processor has registers of 16 values, or at least of 8: the matrix multiplications below are slower than
   PyTorch's without. */
INLINE int has_avx512(void) { return LANES == 16; }
INLINE int has_avx2(void) { return LANES >= 8; }

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

/* ---- sums in registers: eight rows and a panel of 16, 32 or 48 columns, in blocks of TALL rows and up to three registers
   or, where the panel does not fit so, two */

enum { ROWS = 8, COLUMNS = 16 };

#define BROAD(N) ((N) * COLUMNS / LANES <= 3 ? (N) * COLUMNS / LANES : (N) == 3 ? 3 : 2)
#define EACH_BLOCK(N)                                                                                                \
    for (int top = 0; top < ROWS; top += TALL)                                                                       \
        for (int left = 0; left < (N) * COLUMNS; left += BROAD(N) * LANES)

#ifdef __AVX2__
#define HOLD(v) __asm__("" : "+v"(v)) /* keep it in a register: GCC would read it again for each row */
#else
#define HOLD(v) (void)0
#endif
#define LOAD(to, from, n)                                                                                            \
    for (int k = 0; k < (n); k++) {                                                                                  \
        to[k] = AT((from) + k * LANES);                                                                              \
        HOLD(to[k]);                                                                                                 \
    }

#define OUTER(N)                                                                                                     \
    /* out [8][N * 16] += a [n][8] transposed times b [n][N * 16] */                                                 \
    static void outer_##N(const float *a, int64_t a_stride, const float *b, int64_t stride, float *out, int64_t n) { \
        EACH_BLOCK(N) {                                                                                              \
            vec sums[TALL][BROAD(N)], columns[BROAD(N)];                                                             \
            const float *x = a + top, *y = b + left;                                                                 \
            float *to = out + top * N * COLUMNS + left;                                                              \
            for (int r = 0; r < TALL; r++)                                                                           \
                for (int k = 0; k < BROAD(N); k++) sums[r][k] = AT(to + r * N * COLUMNS + k * LANES);                \
            for (int64_t i = 0; i < n; i++, x += a_stride, y += stride) {                                            \
                LOAD(columns, y, BROAD(N))                                                                           \
                for (int r = 0; r < TALL; r++)                                                                       \
                    for (int k = 0; k < BROAD(N); k++) sums[r][k] += x[r] * columns[k];                              \
            }                                                                                                        \
            for (int r = 0; r < TALL; r++)                                                                           \
                for (int k = 0; k < BROAD(N); k++) AT(to + r * N * COLUMNS + k * LANES) = sums[r][k];                \
        }                                                                                                            \
    }
