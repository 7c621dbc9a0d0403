/* Bilinear resizing with antialiasing, in Pillow's whole numbers: weights of 22 bits, 8 bits between the two passes.

   A place of the result is the sum of weight times pixel over `taps` neighbors from `first` on, plus a half, without its
   last 22 bits. Weights are made by data/resize.py; with the same ones Pillow's result is the same, to the last bit. */

#include <stdint.h>
#include <string.h>
#ifdef __SSE4_1__
#include <immintrin.h>
#endif

enum { BITS = 22, HALF = 1 << (BITS - 1), BLOCK = 256, ROWS = 8 };

typedef int32_t pixel __attribute__((vector_size(16))); /* three colors, and a fourth number that nobody needs */
typedef uint8_t bytes __attribute__((vector_size(4)));

static inline pixel read(const uint8_t *at) {
#ifdef __SSE4_1__ /* GCC before 13 makes a dozen instructions of the other line */
    int32_t word;
    memcpy(&word, at, 4);
    return (pixel)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(word));
#else
    bytes found;
    memcpy(&found, at, 4);
    return __builtin_convertvector(found, pixel);
#endif
}

static uint8_t clipped(int32_t sum) {
    int32_t value = sum >> BITS;
    return (uint8_t)(value > 255 ? 255 : value);
}

/* in [rows, length, 3] -> out [rows, places, 3], eight rows at a time. A pixel is read with the byte behind it, so the
   last row lies once more at `end`, with a byte of anything behind it. */
void across(const uint8_t *in, const uint8_t *end, uint8_t *out, int64_t rows, int64_t length, int64_t places,
            int64_t taps, const int32_t *first, const int32_t *weights) {
    for (int64_t row = 0; row < rows; row += ROWS) {
        const uint8_t *line[ROWS];
        uint8_t *to[ROWS]; /* where there are fewer rows, the last is computed again */
        for (int64_t i = 0; i < ROWS; i++) {
            int64_t number = row + i < rows ? row + i : rows - 1;
            line[i] = number == rows - 1 ? end : in + 3 * number * length;
            to[i] = out + 3 * number * places;
        }
        for (int64_t place = 0; place < places; place++) {
            const int32_t *weight = weights + place * taps;
            pixel half = {HALF, HALF, HALF, HALF}, sum[ROWS];
            for (int i = 0; i < ROWS; i++) sum[i] = half;
            int64_t at = 3 * (int64_t)first[place];
            for (int64_t tap = 0; tap < taps; tap++, at += 3) {
                for (int i = 0; i < ROWS; i++) sum[i] += read(line[i] + at) * weight[tap];
            }
            for (int i = 0; i < ROWS; i++) {
                for (int color = 0; color < 3; color++) to[i][3 * place + color] = clipped(sum[i][color]);
            }
        }
    }
}

/* in [length, width] -> out [places, width] */
void down(const uint8_t *in, uint8_t *out, int64_t width, int64_t places, int64_t taps, const int32_t *first,
          const int32_t *weights) {
    for (int64_t place = 0; place < places; place++, out += width) {
        const uint8_t *top = in + width * (int64_t)first[place];
        const int32_t *weight = weights + place * taps;
        for (int64_t begin = 0; begin < width; begin += BLOCK) {
            int64_t many = width - begin < BLOCK ? width - begin : BLOCK;
            int32_t sum[BLOCK];
            for (int64_t i = 0; i < many; i++) sum[i] = HALF;
            for (int64_t tap = 0; tap < taps; tap++) {
                const uint8_t *line = top + tap * width + begin;
                int32_t one = weight[tap];
                for (int64_t i = 0; i < many; i++) sum[i] += line[i] * one;
            }
            for (int64_t i = 0; i < many; i++) out[begin + i] = clipped(sum[i]);
        }
    }
}
