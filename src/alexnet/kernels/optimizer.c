/* Updates of weights in one pass over memory: weight, gradient, the optimizer's state and the bfloat16 copy of the weight
   are read and written once. Gradients are float32 or bfloat16 and are multiplied by `scale` first, which clips them.
   optimizer.py calls this; PyTorch's optimizers are the reference implementation. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "simd.h"

enum { PART = 1 << 15 }; /* values that a thread takes at a time, and whose squares are summed together */

/* sums [parts of PART values]: of the squares of g */
#define SUM_SQUARES(NAME, T)                                                                                         \
    void sum_squares_##NAME(const T *g, int64_t n, int64_t threads, double *sums) {                                  \
        _Pragma("omp parallel for schedule(static) num_threads(threads)")                                            \
        for (int64_t part = 0; part < (n + PART - 1) / PART; part++) {                                               \
            int64_t i = part * PART, end = MIN(n, i + PART);                                                         \
            vec sum[4] = {{0}};                                                                                      \
            for (; i + 4 * LANES <= end; i += 4 * LANES)                                                             \
                for (int o = 0; o < 4; o++) {                                                                        \
                    vec v = get_##NAME(g + i + o * LANES);                                                           \
                    sum[o] += v * v;                                                                                 \
                }                                                                                                    \
            vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);                                                         \
            double total = 0;                                                                                        \
            for (int o = 0; o < LANES; o++) total += all[o];                                                         \
            for (; i < end; i++) {                                                                                   \
                T rest[LANES] = {g[i]};                                                                              \
                float v = get_##NAME(rest)[0];                                                                       \
                total += (double)v * v;                                                                              \
            }                                                                                                        \
            sums[part] = total;                                                                                      \
        }                                                                                                            \
    }

/* The last values, fewer than LANES, are copied to an array of LANES values and back. */
#define EACH(T, w, g, a, b, copy, ...)                                                                               \
    _Pragma("omp parallel for schedule(static) num_threads(threads)")                                                \
    for (int64_t part = 0; part < (n + PART - 1) / PART; part++) {                                                   \
        int64_t at = part * PART, end = MIN(n, at + PART);                                                           \
        for (; at < end; at += LANES) {                                                                              \
            int64_t count = MIN(end - at, LANES);                                                                    \
            if (count == LANES) {                                                                                    \
                float *W = w + at, *A = a + at, *B = b ? b + at : 0;                                                 \
                const T *G = g + at;                                                                                 \
                uint16_t *C = copy ? copy + at : 0;                                                                  \
                __VA_ARGS__                                                                                          \
            } else {                                                                                                 \
                float W[LANES] = {0}, A[LANES] = {0}, B[LANES] = {0};                                                \
                T G[LANES] = {0};                                                                                    \
                uint16_t C[LANES];                                                                                   \
                memcpy(W, w + at, count * sizeof *W), memcpy(A, a + at, count * sizeof *A);                          \
                memcpy(G, g + at, count * sizeof *G);                                                                \
                if (b) memcpy(B, b + at, count * sizeof *B);                                                         \
                __VA_ARGS__                                                                                          \
                memcpy(w + at, W, count * sizeof *W), memcpy(a + at, A, count * sizeof *A);                          \
                if (b) memcpy(b + at, B, count * sizeof *B);                                                         \
                if (copy) memcpy(copy + at, C, count * sizeof *C);                                                   \
            }                                                                                                        \
        }                                                                                                            \
    }

/* momentum <- beta * momentum + scale * g + decay * w (without beta * momentum in the first step); w <- w - lr * momentum */
#define SGD(NAME, T)                                                                                                 \
    void sgd_##NAME(float *w, const T *g, float *momentum, uint16_t *copy, int64_t n, int64_t threads, int first,    \
                    float lr, float beta, float decay, float scale) {                                                \
        float *none = 0;                                                                                             \
        EACH(T, w, g, momentum, none, copy, {                                                                        \
            (void)B;                                                                                                 \
            vec weight = AT(W), sum = scale * get_##NAME(G) + decay * weight;                                        \
            if (!first) sum += beta * AT(A);                                                                         \
            weight -= lr * sum;                                                                                      \
            AT(A) = sum;                                                                                             \
            AT(W) = weight;                                                                                          \
            if (copy) put_bf16(C, weight);                                                                           \
        })                                                                                                           \
    }

/* Loshchilov and Hutter 2019, algorithm 2; rest1 = 1 - beta1, rest2 = 1 - beta2, correction1 = 1 - beta1^step,
   root2 = sqrt(1 - beta2^step) */
#define ADAMW(NAME, T)                                                                                               \
    void adamw_##NAME(float *w, const T *g, float *mean, float *square, uint16_t *copy, int64_t n, int64_t threads,  \
                      float lr, float rest1, float beta2, float rest2, float epsilon, float decay, float correction1, \
                      float root2, float scale) {                                                                    \
        EACH(T, w, g, mean, square, copy, {                                                                          \
            vec v = scale * get_##NAME(G), m = AT(A) + rest1 * (v - AT(A));                                          \
            vec s = beta2 * AT(B) + rest2 * (v * v);                                                                 \
            vec weight = AT(W) * (1 - lr * decay) - lr / correction1 * (m / (root(s) / root2 + epsilon));            \
            AT(A) = m;                                                                                               \
            AT(B) = s;                                                                                               \
            AT(W) = weight;                                                                                          \
            if (copy) put_bf16(C, weight);                                                                           \
        })                                                                                                           \
    }

SUM_SQUARES(f32, float)
SUM_SQUARES(bf16, uint16_t)
SGD(f32, float)
SGD(bf16, uint16_t)
ADAMW(f32, float)
ADAMW(bf16, uint16_t)
