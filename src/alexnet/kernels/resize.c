/* Bilinear resizing with antialiasing, in Pillow's integer arithmetic: weights of 22 bits, 8 bits between the two passes.

   A pixel of the result is the sum of weight times pixel over `taps` neighbors from `first` on, plus one half, shifted
   right by 22 bits. data/resize.py computes the weights; with Pillow's weights the result equals Pillow's bit for bit.

   Where the processor adds four products of bytes at once (AVX-512 with VNNI and VBMI), a weight is split into three
   signed bytes, low + 256 middle + 65536 high, and their three sums are combined at the end: the same integer. */

#include <stdint.h>
#include <string.h>
#ifdef __SSE4_1__
#include <immintrin.h>
#endif
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define FOURS
#endif

enum { BITS = 22, HALF = 1 << (BITS - 1), BLOCK = 256, ROWS = 8 };

typedef int32_t pixel __attribute__((vector_size(16))); /* three colors and an unused fourth value */
typedef uint8_t bytes __attribute__((vector_size(4)));

static inline pixel read(const uint8_t *at) {
#ifdef __SSE4_1__ /* GCC before 13 compiles the other line to a dozen instructions */
    int32_t word;
    memcpy(&word, at, 4);
    return (pixel)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(word));
#else
    bytes four;
    memcpy(&four, at, 4);
    return __builtin_convertvector(four, pixel);
#endif
}

static uint8_t clipped(int32_t sum) {
    int32_t value = sum >> BITS;
    return (uint8_t)(value > 255 ? 255 : value);
}

/* in [rows, length, 3] -> out [rows, places, 3], eight rows at a time. A pixel is read with the byte after it, so
   `end` is a copy of the last row with one more byte. */
void across_plain(const uint8_t *in, const uint8_t *end, uint8_t *out, int64_t rows, int64_t length, int64_t places,
                  int64_t taps, const int32_t *first, const int32_t *weights) {
    for (int64_t row = 0; row < rows; row += ROWS) {
        const uint8_t *line[ROWS];
        uint8_t *to[ROWS]; /* with fewer rows, the last is computed again */
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

#ifdef FOURS

enum {
    NEAR = 32,  /* rows at a time: more rows are on more memory pages than the TLB of a core holds */
    MOST = 160, /* taps; data/resize.py needs at most 130 */
};

typedef struct {
    __m512i low, middle, high;
} thirds;

/* weights of four neighbors in each quarter -> their low, middle and high bytes in all lanes of the quarter */
static inline thirds split(__m512i weights) {
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_set_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
    const __m512i half = _mm512_set1_epi32(0x808080); /* half of each byte: added with carries, subtracted without */
    weights = _mm512_shuffle_epi8(_mm512_xor_si512(_mm512_add_epi32(weights, half), half), bytes);
    return (thirds){_mm512_shuffle_epi32(weights, 0x00), _mm512_shuffle_epi32(weights, 0x55),
                    _mm512_shuffle_epi32(weights, 0xaa)};
}

static inline thirds nothing(void) {
    return (thirds){_mm512_set1_epi32(HALF), _mm512_setzero_si512(), _mm512_setzero_si512()};
}

/* add four products of bytes to each of 16 sums */
static inline thirds added(thirds sum, __m512i bytes, thirds weights) {
    return (thirds){_mm512_dpbusd_epi32(sum.low, bytes, weights.low),
                    _mm512_dpbusd_epi32(sum.middle, bytes, weights.middle),
                    _mm512_dpbusd_epi32(sum.high, bytes, weights.high)};
}

static inline __m512i whole(thirds sum) {
    __m512i upper = _mm512_add_epi32(sum.middle, _mm512_slli_epi32(sum.high, 8));
    return _mm512_srli_epi32(_mm512_add_epi32(sum.low, _mm512_slli_epi32(upper, 8)), BITS);
}

/* number of output pixels, at most four, whose four neighbors each are within 64 bytes of a line */
static int64_t together(const int32_t *first, int64_t places) {
    int64_t many = 1;
    while (many < 4 && many < places && 3 * (first[many] - first[0] + 4) <= 64) many++;
    return many;
}

/* `across` for `many` output pixels: a quarter of a vector each, with a lane for each color and an unused one. 64 bytes
   of a line are read at once, but none after the last neighbor: a line may end where the memory ends. */
static void across_few(const uint8_t *in, uint8_t *out, int64_t rows, int64_t length, int64_t places, int64_t many,
                       int64_t taps, const int32_t *first, const int32_t *weights) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i quarter = _mm512_srli_epi32(lane, 2), rest = _mm512_and_si512(lane, _mm512_set1_epi32(3));
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(quarter, _mm512_set1_epi32((int32_t)taps)), rest);
    __m512i apart = _mm512_castsi128_si512(_mm_maskz_loadu_epi32((__mmask8)((1 << many) - 1), first));
    apart = _mm512_permutexvar_epi32(quarter, _mm512_sub_epi32(apart, _mm512_set1_epi32(first[0])));
    apart = _mm512_add_epi32(_mm512_mullo_epi32(apart, _mm512_set1_epi32(3)), rest); /* the first byte of each lane */
    const __m512i which = _mm512_add_epi32(_mm512_mullo_epi32(apart, _mm512_set1_epi32(0x01010101)),
                                           _mm512_set1_epi32(0x09060300)); /* and the bytes three, six, nine after it */
    const __m128i colors = _mm_set_epi32(-1, 0x0e0d0c0a, 0x09080605, 0x04020100);
    const __mmask16 stored = (__mmask16)((1 << 3 * many) - 1), ours = (__mmask16)((1 << 4 * many) - 1);
    thirds weight[MOST / 4];
    __mmask64 read[MOST / 4];
    int64_t count = (taps + 3) / 4;
    for (int64_t i = 0; i < count; i++) {
        int64_t left = taps - 4 * i < 4 ? taps - 4 * i : 4;
        __mmask16 there = (__mmask16)(((1 << left) - 1) * 0x1111) & ours;
        weight[i] = split(_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, at, weights + 4 * i, 4));
        read[i] = ~(__mmask64)0 >> (64 - 3 * (first[many - 1] - first[0] + left));
    }
    for (int64_t row = 0; row < rows; row++) {
        const uint8_t *line = in + 3 * (row * length + first[0]);
        thirds sum = nothing();
        for (int64_t i = 0; i < count; i++) {
            __m512i loaded = _mm512_maskz_loadu_epi8(read[i], line + 12 * i);
            sum = added(sum, _mm512_permutexvar_epi8(which, loaded), weight[i]);
        }
        __m128i rgb = _mm_shuffle_epi8(_mm512_cvtusepi32_epi8(whole(sum)), colors);
        _mm_mask_storeu_epi8(out + 3 * row * places, stored, rgb);
    }
}

static void across_fours(const uint8_t *in, uint8_t *out, int64_t rows, int64_t length, int64_t places, int64_t taps,
                         const int32_t *first, const int32_t *weights) {
    for (int64_t row = 0; row < rows; row += NEAR) {
        int64_t few = rows - row < NEAR ? rows - row : NEAR;
        for (int64_t place = 0, many; place < places; place += many) {
            many = together(first + place, places - place);
            across_few(in + 3 * row * length, out + 3 * (row * places + place), few, length, places, many, taps,
                       first + place, weights + place * taps);
        }
    }
}
#endif

void across(const uint8_t *in, const uint8_t *end, uint8_t *out, int64_t rows, int64_t length, int64_t places,
            int64_t taps, const int32_t *first, const int32_t *weights) {
#ifdef FOURS
    if (taps <= MOST) {
        across_fours(in, out, rows, length, places, taps, first, weights);
        return;
    }
#endif
    across_plain(in, end, out, rows, length, places, taps, first, weights);
}
