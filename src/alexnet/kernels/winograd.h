/* The Winograd transforms of one line of values; winograd.c explains the names. side and m are constants at the calls.

   Points come in pairs p and -p, whose polynomials share even and odd parts. Tiles of 6: 0, two pairs and infinity. Tiles
   of 7: 0 and three pairs, with the sums (PAIR_SUM) and products (PAIR_PRODUCT) of the squares of the other pairs. Tiles
   of 8: 0, three other pairs and infinity. */

enum { MAX_TILE = 8 };

static const float A1 = 0.75f, B1 = 1.5f, A2 = 0.5625f, B2 = 2.25f, A3 = 0.421875f, B3 = 3.375f;
static const float AB = 1.265625f /* A2 * B2 */, SUM = 2.8125f /* A2 + B2 */;

#define POINT(i) (i == 0 ? 0.5f : side == 7 ? (i == 1 ? 1.25f : 2.5f) : i == 1 ? 1.0f : 2.25f)
#define SQUARE(i) (POINT(i) * POINT(i))
#define PAIR_SUM(i) (SQUARE((i + 1) % 3) + SQUARE((i + 2) % 3))
#define PAIR_PRODUCT(i) (SQUARE((i + 1) % 3) * SQUARE((i + 2) % 3))
#define SYMMETRIC_1 (SQUARE(0) + SQUARE(1) + SQUARE(2))
#define SYMMETRIC_2 (PAIR_PRODUCT(0) + PAIR_PRODUCT(1) + PAIR_PRODUCT(2))
#define SYMMETRIC_3 (SQUARE(0) * PAIR_PRODUCT(0))

INLINE void to_points(const vec *d, vec *t, int side) { /* input line -> values at the points */
    if (side == 6) {
        vec e1 = d[4] - B2 * d[2], o1 = d[3] - B2 * d[1];
        vec e2 = d[4] - A2 * d[2], o2 = d[3] - A2 * d[1];
        vec first = AB * d[0] - SUM * d[2] + d[4], last = AB * d[1] - SUM * d[3] + d[5];
        t[0] = first;
        t[1] = e1 + A1 * o1;
        t[2] = e1 - A1 * o1;
        t[3] = e2 + B1 * o2;
        t[4] = e2 - B1 * o2;
        t[5] = last;
        return;
    }
    vec in[MAX_TILE];
    for (int i = 0; i < side; i++) in[i] = d[i];
    t[0] = SYMMETRIC_2 * in[2] - SYMMETRIC_3 * in[0] - SYMMETRIC_1 * in[4] + in[6];
    for (int i = 0; i < 3; i++) {
        vec even = PAIR_PRODUCT(i) * in[2] - PAIR_SUM(i) * in[4] + in[6], odd = PAIR_PRODUCT(i) * in[1] - PAIR_SUM(i) * in[3] + in[5];
        t[2 * i + 1] = even + POINT(i) * odd;
        t[2 * i + 2] = even - POINT(i) * odd;
    }
    if (side == 8) t[7] = SYMMETRIC_2 * in[3] - SYMMETRIC_3 * in[1] - SYMMETRIC_1 * in[5] + in[7];
}

INLINE void to_points_transposed(const vec *t, vec *d, int side) {
    vec first = t[0];
    if (side == 6) {
        vec p1 = t[1] + t[2], q1 = A1 * (t[1] - t[2]), last = t[5];
        vec p2 = t[3] + t[4], q2 = B1 * (t[3] - t[4]);
        d[0] = AB * first;
        d[1] = AB * last - B2 * q1 - A2 * q2;
        d[2] = -SUM * first - B2 * p1 - A2 * p2;
        d[3] = q1 + q2 - SUM * last;
        d[4] = first + p1 + p2;
        d[5] = last;
        return;
    }
    vec out[MAX_TILE] = {-SYMMETRIC_3 * first, {0}, SYMMETRIC_2 * first, {0}, -SYMMETRIC_1 * first, {0}, first};
    if (side == 8) {
        out[1] = -SYMMETRIC_3 * t[7];
        out[3] = SYMMETRIC_2 * t[7];
        out[5] = -SYMMETRIC_1 * t[7];
        out[7] = t[7];
    }
    for (int i = 0; i < 3; i++) {
        vec plus = t[2 * i + 1], minus = t[2 * i + 2];
        vec even = plus + minus, odd = POINT(i) * (plus - minus);
        out[1] += PAIR_PRODUCT(i) * odd;
        out[2] += PAIR_PRODUCT(i) * even;
        out[3] -= PAIR_SUM(i) * odd;
        out[4] -= PAIR_SUM(i) * even;
        out[5] += odd;
        out[6] += even;
    }
    for (int i = 0; i < side; i++) d[i] = out[i];
}

INLINE void from_points(const vec *q, vec *y, int side, int m) { /* values at the points -> m output values */
    if (side == 6) {
        vec p1 = q[1] + q[2], d1 = q[1] - q[2], p2 = q[3] + q[4], d2 = q[3] - q[4];
        vec last = q[5];
        y[0] = q[0] + p1 + p2;
        if (m == 2) {
            y[1] = A1 * d1 + B1 * d2 + last;
        } else {
            y[1] = A1 * d1 + B1 * d2;
            y[2] = A2 * p1 + B2 * p2;
            y[3] = A3 * d1 + B3 * d2 + last;
        }
        return;
    }
    vec out[5] = {q[0]};
    for (int i = 0; i < 3; i++) {
        vec plus = q[2 * i + 1], minus = q[2 * i + 2];
        vec even = plus + minus, odd = POINT(i) * (plus - minus);
        out[0] += even;
        out[1] += odd;
        out[2] += SQUARE(i) * even;
        out[3] += SQUARE(i) * odd;
        out[4] += SQUARE(i) * SQUARE(i) * even;
    }
    if (side == 8) out[m - 1] += q[7];
    for (int i = 0; i < m; i++) y[i] = out[i];
}

INLINE void from_points_transposed(const vec *y, vec *q, int side, int m) {
    vec first = y[0];
    if (side == 6) {
        vec e1 = first, e2 = first, o1 = A1 * y[1], o2 = B1 * y[1], last = y[1];
        if (m == 4) {
            e1 += A2 * y[2];
            e2 += B2 * y[2];
            o1 += A3 * y[3];
            o2 += B3 * y[3];
            last = y[3];
        }
        q[0] = first;
        q[1] = e1 + o1;
        q[2] = e1 - o1;
        q[3] = e2 + o2;
        q[4] = e2 - o2;
        q[5] = last;
        return;
    }
    vec in[5] = {first, y[1], y[2]};
    for (int i = 3; i < 5; i++) in[i] = i < m ? y[i] : (vec){0};
    q[0] = first;
    for (int i = 0; i < 3; i++) {
        vec even = first + SQUARE(i) * in[2], odd = in[1];
        if (m > 3) odd += SQUARE(i) * in[3];
        if (m > 4) even += SQUARE(i) * SQUARE(i) * in[4];
        q[2 * i + 1] = even + POINT(i) * odd;
        q[2 * i + 2] = even - POINT(i) * odd;
    }
    if (side == 8) q[7] = y[m - 1];
}
