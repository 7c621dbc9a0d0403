/* Products of bfloat16 tiles: by AMX where the compiler's target has it, else by an emulation in plain C with the same
   bits. A tile has 16 rows of 64 bytes: 32 bfloat16 or 16 float32. Four tiles of sums c[i][j] += a[i] * b[j], where a
   has 16 rows of 32 values, and b 16 pairs of 32 values of a column: b[p][column][2].

   Intel 64 Software Developer's Manual, TDPBF16PS: the even and the odd values are summed apart, then added. Denormal
   numbers count as zero. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { TILE = 16, DEPTH = 32, TILE_FLOATS = TILE * TILE, TILE_HALVES = TILE * DEPTH };

static float flushed(float v) { return v > -0x1p-126f && v < 0x1p-126f ? 0 * v : v; }

static float widened(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float out;
    memcpy(&out, &bits, 4);
    return flushed(out);
}

static void tile_product(float *sums, const uint16_t *a, int64_t a_row, const uint16_t *b) {
    for (int m = 0; m < TILE; m++)
        for (int n = 0; n < TILE; n++) {
            float even = 0, odd = 0;
            for (int p = 0; p < TILE; p++) {
                even = flushed(fmaf(widened(a[m * a_row + 2 * p]), widened(b[p * DEPTH + 2 * n]), even));
                odd = flushed(fmaf(widened(a[m * a_row + 2 * p + 1]), widened(b[p * DEPTH + 2 * n + 1]), odd));
            }
            sums[m * TILE + n] = flushed(flushed(sums[m * TILE + n]) + flushed(even + odd));
        }
}

static void emulated_products(float *sums, int fresh, const uint16_t *a0, const uint16_t *a1, int64_t a_row, int64_t a_next,
                              const uint16_t *b0, const uint16_t *b1, int64_t b_next, int64_t steps) {
    if (fresh) memset(sums, 0, 4 * TILE_FLOATS * sizeof(float));
    for (int64_t i = 0; i < steps; i++, a0 += a_next, a1 += a_next, b0 += b_next, b1 += b_next) {
        tile_product(sums, a0, a_row, b0);
        tile_product(sums + TILE_FLOATS, a0, a_row, b1);
        tile_product(sums + 2 * TILE_FLOATS, a1, a_row, b0);
        tile_product(sums + 3 * TILE_FLOATS, a1, a_row, b1);
    }
}

#if defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether Linux lets this process use tiles, which must be asked for. */
static int tiles_permitted(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    static int answer = -1;
    if (answer < 0) answer = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return answer;
}

/* Each thread calls this before its first product, and tiles_end after its last one. */
static void tiles_begin(void) {
    if (!tiles_permitted()) return;
    struct { uint8_t palette, start_row, zeros[14]; uint16_t bytes[16]; uint8_t rows[16]; } config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = TILE;
    __asm__ volatile("" : : "r"(&config) : "memory"); /* GCC 12 does not know that ldtilecfg reads all of it */
    _tile_loadconfig(&config);
}

static void tiles_end(void) {
    if (tiles_permitted()) _tile_release();
}

static void amx_products(float *sums, int fresh, const uint16_t *a0, const uint16_t *a1, int64_t a_row, int64_t a_next,
                         const uint16_t *b0, const uint16_t *b1, int64_t b_next, int64_t steps) {
    __asm__ volatile("" : : : "memory"); /* nor that tiles read and write memory */
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + TILE_FLOATS, 64);
        _tile_loadd(2, sums + 2 * TILE_FLOATS, 64);
        _tile_loadd(3, sums + 3 * TILE_FLOATS, 64);
    }
    for (int64_t i = 0; i < steps; i++, a0 += a_next, a1 += a_next, b0 += b_next, b1 += b_next) {
        _tile_loadd(4, a0, a_row * 2);
        _tile_loadd(6, b0, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1, a_row * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE_FLOATS, 64);
    _tile_stored(2, sums + 2 * TILE_FLOATS, 64);
    _tile_stored(3, sums + 3 * TILE_FLOATS, 64);
    __asm__ volatile("" : : : "memory");
}

#else
static int tiles_permitted(void) { return 0; }
static void tiles_begin(void) {}
static void tiles_end(void) {}
#endif

/* sums [2][2][16][16] (+)= the products of `steps` tiles: a[i] + step * a_next, rows a_row apart, and b[j] + step *
   b_next. With fresh, sums is only written. Distances are in values. */
static void tile_products(float *sums, int fresh, const uint16_t *a0, const uint16_t *a1, int64_t a_row, int64_t a_next,
                          const uint16_t *b0, const uint16_t *b1, int64_t b_next, int64_t steps) {
#if defined(__AMX_BF16__) && defined(__linux__)
    if (tiles_permitted()) {
        amx_products(sums, fresh, a0, a1, a_row, a_next, b0, b1, b_next, steps);
        return;
    }
#endif
    emulated_products(sums, fresh, a0, a1, a_row, a_next, b0, b1, b_next, steps);
}
