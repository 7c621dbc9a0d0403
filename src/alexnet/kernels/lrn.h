/* Local response normalization (LRN) of a line of pixels, LANES channels at a time: y = x * s^-3/4 with
   s = k + weight * sum of x^2 over a window of channels of the same tower. Included by the kernels that fuse LRN with a
   pool; lrn.c computes any number of channels and any exponent. */

typedef struct { /* first_conv.py and pool_norm.py have the same fields in the same order */
    int64_t towers, window;
    float weight, k;
} Norm;

enum { GAP = 16 }; /* zeros before and after a tower's channels, for windows at its ends */

/* Floats of a line with gaps. The caller fills it with zeros once; the gaps are never written. */
INLINE int64_t padded_line(const Norm *n, int64_t pixels, int64_t channels) {
    return n->window ? GAP + pixels * (channels + n->towers * GAP) : 0;
}

#define EACH_CHANNEL(c, g) /* value c of the line, and its position g between gaps, tower by tower */                \
    for (int64_t r = 0, c = 0, g = GAP; r < pixels * n->towers; r++, g += GAP)                                       \
        for (int64_t end = c + channels / n->towers; c < end; c += LANES, g += LANES)

INLINE vec over_window(const float *at, int64_t before, int64_t size) {
    vec sum = AT(at - before);
    for (int64_t o = 1; o < size; o++) sum += AT(at - before + o);
    return sum;
}

INLINE vec inverse_fourth_root(const Norm *n, const float *squares) { /* s^-1/4 */
    return root(1 / root(n->k + n->weight * over_window(squares, n->window / 2, n->window)));
}

static void lrn_line(const Norm *n, int64_t pixels, int64_t channels, const float *x, float *squares, float *y) {
    EACH_CHANNEL(c, g) AT(squares + g) = AT(x + c) * AT(x + c);
    EACH_CHANNEL(c, g) {
        vec fourth = inverse_fourth_root(n, squares + g);
        AT(y + c) = AT(x + c) * (fourth * fourth * fourth);
    }
}

/* d: in, the gradient of y; out, that of x, or with relu that of the input of the ReLU before x */
static void lrn_line_backward(const Norm *n, int64_t pixels, int64_t channels, const float *x, float *squares,
                               float *terms, float *d, int64_t relu) {
    EACH_CHANNEL(c, g) AT(squares + g) = AT(x + c) * AT(x + c);
    EACH_CHANNEL(c, g) {
        vec fourth = inverse_fourth_root(n, squares + g), power = fourth * fourth * fourth, direct = AT(d + c) * power;
        AT(terms + g) = AT(x + c) * direct * (power * fourth); /* times s^-7/4 in all */
        AT(d + c) = direct;
    }
    EACH_CHANNEL(c, g) {
        vec shared = AT(x + c) * over_window(terms + g, (n->window - 1) / 2, n->window);
        vec sum = AT(d + c) - 1.5f * n->weight * shared; /* 2 * beta */
        AT(d + c) = relu ? choose(AT(x + c) <= 0, (vec){0}, sum) : sum;
    }
}

/* The same for bfloat16 feature maps, sums in float32, with the ReLU before the norm if relu. ``values`` is a line of
   float32, the input of the norm. */

static void values_line_bf16(const Norm *n, int64_t pixels, int64_t channels, const uint16_t *x, int64_t relu,
                             float *values, float *squares) {
    EACH_CHANNEL(c, g) {
        vec v = get_bf16(x + c);
        if (relu) v = choose(v < 0, (vec){0}, v);
        AT(values + c) = v;
        AT(squares + g) = v * v;
    }
}

INLINE vec rough_norm_sum(const Norm *n, const float *squares) {
    return n->k + n->weight * over_window(squares, n->window / 2, n->window);
}

static void lrn_line_bf16(const Norm *n, int64_t pixels, int64_t channels, const uint16_t *x, int64_t relu,
                          float *values, float *squares, uint16_t *y) {
    values_line_bf16(n, pixels, channels, x, relu, values, squares);
    EACH_CHANNEL(c, g) {
        vec root = rough_inverse_root(rough_norm_sum(n, squares + g)); /* s^-1/2; its own is s^1/4 */
        put_bf16(y + c, AT(values + c) * (root * root * rough_inverse_root(root)));
    }
}

/* d: the gradient of the norm's output; dx: that of x */
static void lrn_line_backward_bf16(const Norm *n, int64_t pixels, int64_t channels, const uint16_t *x, int64_t relu,
                                   float *values, float *squares, float *terms, float *d, uint16_t *dx) {
    values_line_bf16(n, pixels, channels, x, relu, values, squares);
    EACH_CHANNEL(c, g) {
        vec root = rough_inverse_root(rough_norm_sum(n, squares + g)), inverse = root * root;
        vec direct = AT(d + c) * (inverse * rough_inverse_root(root));
        AT(terms + g) = AT(values + c) * direct * inverse; /* times s^-7/4 in all */
        AT(d + c) = direct;
    }
    EACH_CHANNEL(c, g) {
        vec v = AT(values + c), shared = v * over_window(terms + g, (n->window - 1) / 2, n->window);
        vec sum = AT(d + c) - 1.5f * n->weight * shared; /* 2 * beta */
        put_bf16(dx + c, relu ? choose(v <= 0, (vec){0}, sum) : sum);
    }
}
