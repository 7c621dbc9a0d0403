/* Minimal filtering's transforms of one line of numbers, s apart; winograd.c has the names. side and m are constants
   where these are called.

   Points come in pairs p and -p, whose polynomials share even and odd parts. Side 6: 0, two pairs and infinity. Side 7:
   0 and three pairs, with the sums and products of the squares of a pair's others (TOGETHER, TIMES), and of all. */

enum { LONGEST = 7 };

static const float A1 = 0.75f, B1 = 1.5f, A2 = 0.5625f, B2 = 2.25f, A3 = 0.421875f, B3 = 3.375f;
static const float AB = 1.265625f /* A2 * B2 */, SUM = 2.8125f /* A2 + B2 */;

#define AT_PAIR(i) (i == 0 ? 0.5f : i == 1 ? 1.25f : 2.5f)
#define SQUARE(i) (AT_PAIR(i) * AT_PAIR(i))
#define TOGETHER(i) (SQUARE((i + 1) % 3) + SQUARE((i + 2) % 3))
#define TIMES(i) (SQUARE((i + 1) % 3) * SQUARE((i + 2) % 3))
#define ONE_OF_ALL (SQUARE(0) + SQUARE(1) + SQUARE(2))
#define TWO_OF_ALL (TIMES(0) + TIMES(1) + TIMES(2))
#define THREE_OF_ALL (SQUARE(0) * TIMES(0))

INLINE void to_points(const vec *d, vec *t, int s, int side) { /* input line -> values at the points */
    if (side == 6) {
        vec e1 = d[4 * s] - B2 * d[2 * s], o1 = d[3 * s] - B2 * d[s];
        vec e2 = d[4 * s] - A2 * d[2 * s], o2 = d[3 * s] - A2 * d[s];
        vec first = AB * d[0] - SUM * d[2 * s] + d[4 * s], last = AB * d[s] - SUM * d[3 * s] + d[5 * s];
        t[0] = first;
        t[s] = e1 + A1 * o1;
        t[2 * s] = e1 - A1 * o1;
        t[3 * s] = e2 + B1 * o2;
        t[4 * s] = e2 - B1 * o2;
        t[5 * s] = last;
        return;
    }
    vec in[LONGEST];
    for (int i = 0; i < LONGEST; i++) in[i] = d[i * s];
    t[0] = TWO_OF_ALL * in[2] - THREE_OF_ALL * in[0] - ONE_OF_ALL * in[4] + in[6];
    for (int i = 0; i < 3; i++) {
        vec even = TIMES(i) * in[2] - TOGETHER(i) * in[4] + in[6], odd = TIMES(i) * in[1] - TOGETHER(i) * in[3] + in[5];
        t[(2 * i + 1) * s] = even + AT_PAIR(i) * odd;
        t[(2 * i + 2) * s] = even - AT_PAIR(i) * odd;
    }
}

INLINE void to_points_transposed(const vec *t, vec *d, int s, int side) {
    vec first = t[0];
    if (side == 6) {
        vec p1 = t[s] + t[2 * s], q1 = A1 * (t[s] - t[2 * s]), last = t[5 * s];
        vec p2 = t[3 * s] + t[4 * s], q2 = B1 * (t[3 * s] - t[4 * s]);
        d[0] = AB * first;
        d[s] = AB * last - B2 * q1 - A2 * q2;
        d[2 * s] = -SUM * first - B2 * p1 - A2 * p2;
        d[3 * s] = q1 + q2 - SUM * last;
        d[4 * s] = first + p1 + p2;
        d[5 * s] = last;
        return;
    }
    vec out[LONGEST] = {-THREE_OF_ALL * first, {0}, TWO_OF_ALL * first, {0}, -ONE_OF_ALL * first, {0}, first};
    for (int i = 0; i < 3; i++) {
        vec plus = t[(2 * i + 1) * s], minus = t[(2 * i + 2) * s];
        vec even = plus + minus, odd = AT_PAIR(i) * (plus - minus);
        out[1] += TIMES(i) * odd;
        out[2] += TIMES(i) * even;
        out[3] -= TOGETHER(i) * odd;
        out[4] -= TOGETHER(i) * even;
        out[5] += odd;
        out[6] += even;
    }
    for (int i = 0; i < LONGEST; i++) d[i * s] = out[i];
}

INLINE void from_points(const vec *q, vec *y, int s, int side, int m) { /* values at the points -> m output numbers */
    if (side == 6) {
        vec p1 = q[s] + q[2 * s], d1 = q[s] - q[2 * s], p2 = q[3 * s] + q[4 * s], d2 = q[3 * s] - q[4 * s];
        vec last = q[5 * s];
        y[0] = q[0] + p1 + p2;
        if (m == 2) {
            y[s] = A1 * d1 + B1 * d2 + last;
        } else {
            y[s] = A1 * d1 + B1 * d2;
            y[2 * s] = A2 * p1 + B2 * p2;
            y[3 * s] = A3 * d1 + B3 * d2 + last;
        }
        return;
    }
    vec out[5] = {q[0]};
    for (int i = 0; i < 3; i++) {
        vec plus = q[(2 * i + 1) * s], minus = q[(2 * i + 2) * s];
        vec even = plus + minus, odd = AT_PAIR(i) * (plus - minus);
        out[0] += even;
        out[1] += odd;
        out[2] += SQUARE(i) * even;
        out[3] += SQUARE(i) * odd;
        out[4] += SQUARE(i) * SQUARE(i) * even;
    }
    for (int i = 0; i < m; i++) y[i * s] = out[i];
}

INLINE void from_points_transposed(const vec *y, vec *q, int s, int side, int m) {
    vec first = y[0];
    if (side == 6) {
        vec e1 = first, e2 = first, o1 = A1 * y[s], o2 = B1 * y[s], last = y[s];
        if (m == 4) {
            e1 += A2 * y[2 * s];
            e2 += B2 * y[2 * s];
            o1 += A3 * y[3 * s];
            o2 += B3 * y[3 * s];
            last = y[3 * s];
        }
        q[0] = first;
        q[s] = e1 + o1;
        q[2 * s] = e1 - o1;
        q[3 * s] = e2 + o2;
        q[4 * s] = e2 - o2;
        q[5 * s] = last;
        return;
    }
    vec in[5] = {first, y[s], y[2 * s]};
    for (int i = 3; i < 5; i++) in[i] = m == 5 ? y[i * s] : (vec){0};
    q[0] = first;
    for (int i = 0; i < 3; i++) {
        vec even = first + SQUARE(i) * in[2], odd = in[1];
        if (m == 5) {
            even += SQUARE(i) * SQUARE(i) * in[4];
            odd += SQUARE(i) * in[3];
        }
        q[(2 * i + 1) * s] = even + AT_PAIR(i) * odd;
        q[(2 * i + 2) * s] = even - AT_PAIR(i) * odd;
    }
}
