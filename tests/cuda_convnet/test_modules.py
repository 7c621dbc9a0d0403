"""Every layer of the 2012 files against slow formulas in NumPy, float64: forward, and the gradients as documented."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_examples import layer, network

from alexnet.cuda_convnet import modules
from alexnet.cuda_convnet.image_layers import RandomScale
from alexnet.cuda_convnet.modules import Concatenation, Maximum, Neuron, Sum, UnscaledDropout

RANDOM = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape)


def run(net, x: np.ndarray, name: str = "x") -> np.ndarray:
    return net.eval().forward_to(torch.from_numpy(x).float(), name).detach().double().numpy()


def gradient(net, x: np.ndarray, g: np.ndarray, name: str = "x") -> np.ndarray:
    """Of Σ g·y with respect to x."""
    given = torch.from_numpy(x).float().requires_grad_()
    (net.eval().forward_to(given, name) * torch.from_numpy(g).float()).sum().backward()
    return given.grad.double().numpy()


def slopes(f, x: np.ndarray, g: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The same by finite differences of ``f`` in float64."""
    found = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        found[i] = ((f(up) - f(down)) * g).sum() / (2 * step)
    return found


def near(a, b, tolerance: float = 1e-4) -> None:
    assert np.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b).max()))), np.abs(a - b).max()


def window(i: int, size: int, side: int) -> range:
    """The pixels of the window around i that exist; even sizes lean to the left."""
    return range(max(0, i - size // 2), min(side, i - size // 2 + size))


# ---- norms


def cmrnorm(x, size, scale, power, k, blocked=False):
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        low = (c // size) * size
        near_c = range(low, min(x.shape[1], low + size)) if blocked else window(c, size, x.shape[1])
        y[:, c] = x[:, c] * (k + scale / size * sum(x[:, j] ** 2 for j in near_c)) ** -power
    return y


def rnorm(x, size, scale, power):
    y, side = np.empty_like(x), x.shape[2]
    for i, j in np.ndindex(side, side):
        total = sum(x[:, :, a, b] ** 2 for a in window(i, size, side) for b in window(j, size, side))
        y[:, :, i, j] = x[:, :, i, j] * (1 + scale / size**2 * total) ** -power
    return y


def cnorm_parts(x, size, scale):
    """d = x − mean of the window, and the bracket."""
    side, d, bracket = x.shape[2], np.empty_like(x), np.empty_like(x)
    for i, j in np.ndindex(side, side):
        pixels = [x[:, :, a, b] for a in window(i, size, side) for b in window(j, size, side)]
        d[:, :, i, j] = x[:, :, i, j] - sum(pixels) / len(pixels)
    for i, j in np.ndindex(side, side):
        total = sum(d[:, :, a, b] ** 2 for a in window(i, size, side) for b in window(j, size, side))
        bracket[:, :, i, j] = 1 + scale / size**2 * total
    return d, bracket


def norm(kind: str, size: int, scale: float, power: float, side: int, channels: int = 16, more: str = "", k=1.0):
    text = f"[x]\ntype={kind}\ninputs=data\nchannels={channels}\nsize={size}\ngpu=0\n{more}"
    return layer(text, side, channels, f"[x]\nscale={scale}\npow={power}\nminDiv={k}\n")


@pytest.mark.parametrize("size", [2, 4, 5, 16])
@pytest.mark.parametrize("blocked", [False, True])
def test_cmrnorm(size, blocked):
    x, g = draw(2, 16, 2, 2), draw(2, 16, 2, 2)
    net = norm("cmrnorm", size, 2.5, 0.75, 2, more=f"blocked={blocked}", k=2)
    near(run(net, x), cmrnorm(x, size, 2.5, 0.75, 2, blocked))
    near(gradient(net, x, g), slopes(lambda v: cmrnorm(v, size, 2.5, 0.75, 2, blocked), x, g))


def test_cmrnorm_check_values():
    x = np.arange(16.0).reshape(1, 16, 1, 1)
    for size, more, expected in (
        (5, "", (0.308368, 0.356362, 0.413719)),
        (4, "", (0.413131, 0.399567, 0.350841)),
        (5, "blocked=1", (0.210224, 0.356362, 0.835637)),
    ):
        y = run(norm("cmrnorm", size, 1, 0.75, 1, more=more, k=2), x).ravel()
        assert y[[1, 7, 15]] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rnorm(size):
    x, g = draw(2, 4, 4, 4), draw(2, 4, 4, 4)
    net = norm("rnorm", size, 2.5, 0.6, 4, channels=4)
    near(run(net, x), rnorm(x, size, 2.5, 0.6))
    near(gradient(net, x, g), slopes(lambda v: rnorm(v, size, 2.5, 0.6), x, g))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_cnorm_has_the_gradient_of_2012_not_the_true_one(size):
    x, g = draw(2, 4, 4, 4), draw(2, 4, 4, 4)
    scale, power, side = 2.5, 0.6, 4
    net = norm("cnorm", size, scale, power, side, channels=4)
    d, bracket = cnorm_parts(x, size, scale)
    y = x * bracket**-power
    near(run(net, x), y)
    expected = g * bracket**-power
    for i, j in np.ndindex(side, side):
        for a, b in np.ndindex(side, side):
            if i in window(a, size, side) and j in window(b, size, side):
                shared = y[:, :, a, b] * g[:, :, a, b] / bracket[:, :, a, b]
                expected[:, :, i, j] -= 2 * power * scale / size**2 * d[:, :, i, j] * shared
    near(gradient(net, x, g), expected)

    def forward(v):
        return v * cnorm_parts(v, size, scale)[1] ** -power

    true = slopes(forward, x, g)
    assert size == 1 or np.abs(true - expected).max() > 0.01


def test_spatial_norms_check_values():
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    y = run(norm("rnorm", 3, 1, 0.5, 4, channels=1), x)[0, 0]
    assert [*y[0], y[3, 3]] == pytest.approx([0, 0.314485, 0.520266, 0.870063, 1.763689], abs=2e-6)
    y = run(norm("rnorm", 2, 1, 0.5, 4, channels=1), x)[0, 0]
    assert (y[0, 1], y[1, 1], y[3, 3]) == pytest.approx((0.894427, 1.474420, 1.180334), abs=2e-6)
    y = run(norm("cnorm", 3, 1, 0.5, 4, channels=1), x)[0, 0]
    assert [*y[0], y[3, 3]] == pytest.approx([0, 0.618853, 1.358732, 2.286002, 10.190493], abs=2e-5)


# ---- pools


def pool_windows(side: int, size: int, stride: int, start: int, out: int):
    """(row, column) of each output -> the pixels that exist, in raster order."""

    def reach(o):
        return range(max(0, start + o * stride), min(side, start + o * stride + size))

    return {(i, j): [(a, b) for a in reach(i) for b in reach(j)] for i in range(out) for j in range(out)}


def pool(kind: str, side: int, size: int, stride: int, start: int = 0, out: int = 0, do_max: str = "false"):
    text = (
        f"[x]\ntype=pool\npool={kind}\ninputs=data\nchannels=2\nsizeX={size}\nstride={stride}\n"
        f"start={start}\noutputsX={out}\ngpu=0\n"
    )
    return layer(text, side, 2, f"[x]\ndoMax={do_max}\n")


GEOMETRIES = [
    (7, 3, 2, 0, 0),
    (8, 3, 2, 0, 0),
    (6, 2, 2, 0, 0),
    (9, 4, 3, -1, 0),
    (7, 3, 2, 1, 0),
    (8, 3, 2, 0, 2),
    (5, 5, 1, -2, 3),
    (7, 3, 3, 0, 0),
]


@pytest.mark.parametrize(("side", "size", "stride", "start", "given"), GEOMETRIES)
@pytest.mark.parametrize("kind", ["max", "maxabs", "avg"])
def test_pool(kind, side, size, stride, start, given):
    x = RANDOM.integers(-2, 3, (2, 2, side, side)).astype(float)  # full of ties
    out = given or math.ceil((side - start - size) / stride) + 1
    net = pool(kind, side, size, stride, start, given)
    assert net.definition.layers["x"].side == out
    y, g = np.zeros((2, 2, out, out)), draw(2, 2, out, out)
    expected = np.zeros_like(x)
    for n, c in np.ndindex(2, 2):
        for (i, j), pixels in pool_windows(side, size, stride, start, out).items():
            numbers = [x[n, c, a, b] for a, b in pixels]
            if kind == "avg":
                y[n, c, i, j] = sum(numbers) / len(numbers)
            elif kind == "max":
                y[n, c, i, j] = max(numbers)
            else:
                for number in numbers:
                    if abs(number) >= abs(y[n, c, i, j]):
                        y[n, c, i, j] = number
            for a, b in pixels:
                if kind == "avg":
                    expected[n, c, a, b] += g[n, c, i, j] / len(pixels)
                elif x[n, c, a, b] == y[n, c, i, j]:
                    expected[n, c, a, b] += g[n, c, i, j]  # in full, to each
    near(run(net, x), y)
    near(gradient(net, x, g), expected)


def test_ties_double_the_gradient():
    x = np.zeros((1, 2, 2, 2))
    assert gradient(pool("max", 2, 2, 2), x, np.ones((1, 2, 1, 1))).sum() == 8  # PyTorch: 2


def test_pool_check_values():
    x = np.arange(16.0).reshape(1, 1, 4, 4).repeat(2, 1)
    for kind, start, expected in (
        ("avg", 0, (5, 6.5, 11, 12.5)),
        ("max", 0, (10, 11, 14, 15)),
        ("avg", -1, (2.5, 4, 8.5, 10)),
    ):
        y = run(pool(kind, 4, 3, 2, start, 2), x)[0, 0]
        assert y.ravel() == pytest.approx(expected)


def test_a_drawn_pool():
    x = np.arange(2 * 49.0).reshape(1, 2, 7, 7).repeat(400, 0)
    net = pool("rand", 7, 3, 2)
    net.set_generator(torch.Generator().manual_seed(3))
    given = torch.from_numpy(x).float().requires_grad_()
    net.train()
    y = net.forward_to(given, "x")
    for (i, j), pixels in pool_windows(7, 3, 2, 0, 3).items():
        numbers = {x[0, 0, a, b] for a, b in pixels}
        drawn, counts = np.unique(y[:, 0, i, j].detach().numpy(), return_counts=True)
        assert set(drawn) == numbers
        expected = 400 / len(numbers)
        assert ((counts - expected) ** 2 / expected).sum() < 3 * len(numbers)  # chi-square, mean 8
    y.sum().backward()
    assert float(given.grad.sum()) == y.numel()  # to the drawn pixel alone: all differ
    assert not torch.equal(net.forward_to(given, "x"), y)
    net.eval()
    assert torch.equal(net.forward_to(given, "x"), net.forward_to(given, "x"))
    most = pool("rand", 7, 3, 2, do_max="true")
    assert np.array_equal(run(most, x), run(pool("max", 7, 3, 2), x))


# ---- images


def test_blur():
    x, g = draw(2, 3, 6, 6), draw(2, 3, 6, 6)
    taps = np.exp(-((np.arange(5) - 2) ** 2) / (2 * 1.3**2))
    taps /= taps.sum()

    def blur(v):
        y = np.zeros_like(v)
        for i, j in np.ndindex(6, 6):
            for a, b in np.ndindex(5, 5):
                if 0 <= i + a - 2 < 6 and 0 <= j + b - 2 < 6:
                    y[:, :, i, j] += taps[a] * taps[b] * v[:, :, i + a - 2, j + b - 2]
        return y

    net = layer("[x]\ntype=blur\ninputs=data\nchannels=3\nfilterSize=5\nstdev=1.3\ngpu=0\n", 6, 3)
    near(run(net, x), blur(x))
    near(gradient(net, x, g), blur(g))
    unit = layer("[x]\ntype=blur\ninputs=data\nchannels=3\nfilterSize=5\nstdev=1\ngpu=0\n", 5, 3)
    assert unit.module_of("x").taps[:3].tolist() == pytest.approx([0.054489, 0.244201, 0.402620], abs=1e-6)
    y = run(unit, np.ones((1, 3, 5, 5)))[0, 0]
    assert (y[0, 0], y[0, 2], y[2, 2]) == pytest.approx((0.491836, 0.701310, 1), abs=2e-6)


@pytest.mark.parametrize(("side", "stride", "rows"), [(4, 2, [1, 3]), (7, 3, [0, 3, 6]), (224, 4, range(2, 224, 4))])
def test_nailbed(side, stride, rows):
    x = draw(1, 3, side, side)
    net = layer(f"[x]\ntype=nailbed\ninputs=data\nchannels=3\nstride={stride}\ngpu=0\n", side, 3)
    assert np.array_equal(run(net, x), np.float32(x)[:, :, list(rows)][..., list(rows)])
    back = gradient(net, x, np.ones((1, 3, len(rows), len(rows))))
    assert back.sum() == 3 * len(rows) ** 2
    assert back[0, 0, rows[0], rows[-1]] == 1
    if side == 4:
        assert run(net, np.arange(48.0).reshape(1, 3, 4, 4))[0, 0].ravel().tolist() == [5, 7, 13, 15]


def test_href():
    x, g = draw(2, 3, 4, 4), draw(2, 3, 4, 4)
    net = layer("[x]\ntype=href\ninputs=data\nchannels=3\ngpu=0\n", 4, 3)
    assert np.array_equal(run(net, x), np.float32(x)[..., ::-1])
    near(gradient(net, x, g), g[..., ::-1])


@pytest.mark.parametrize(("side", "scale"), [(6, 1.5), (7, 0.6), (9, 2.0)])
def test_resize(side, scale):
    x, out = draw(2, 3, side, side), math.floor(side / scale)
    net = layer(f"[x]\ntype=resize\ninputs=data\nchannels=3\nscale={scale}\ngpu=0\n", side, 3)
    y = np.empty((2, 3, out, out))
    for i, j in np.ndindex(out, out):
        a, b = (min(max(t * scale + (side - out * scale) / 2, 0), side - 1.01) for t in (i, j))
        low, left = int(a), int(b)
        p, q = a - low, b - left
        corners = (
            (low, left, (1 - p) * (1 - q)),
            (low + 1, left, p * (1 - q)),
            (low, left + 1, (1 - p) * q),
            (low + 1, left + 1, p * q),
        )
        y[:, :, i, j] = sum(x[:, :, r, c] * weight for r, c, weight in corners)
    near(run(net, x), y, 1e-3)
    if side == 6:
        y = run(net, np.arange(108.0).reshape(1, 3, 6, 6))[0, 0]
        assert y[0].tolist() == pytest.approx([0, 1.5, 3, 4.5], abs=1e-5)
        assert y[1].tolist() == pytest.approx([9, 10.5, 12, 13.5], abs=1e-5)


def test_rscale_has_one_size_and_one_place_for_a_whole_batch():
    text = "[x]\ntype=rscale\ninputs=data\nchannels=3\nmaxScale=1.5\ntgtSize=7\ngpu=0\n"
    net = layer(text, 11, 3)
    x = draw(4, 3, 11, 11)
    assert np.array_equal(run(net, x), np.float32(x)[:, :, 2:9, 2:9])
    scaled = RandomScale(3, 11, 1.5, 7).train()
    scaled.generator = torch.Generator().manual_seed(0)
    at = torch.arange(11.0).expand(11, 11)
    positions = torch.stack([at.T, at, at]).expand(2, 3, 11, 11)  # a pixel's values are where it comes from
    met = set()
    for _ in range(300):
        y = scaled(positions).double()
        assert torch.equal(y[0], y[1])
        slope = float(y[0, 1, 3, 5] - y[0, 1, 3, 4])  # a ramp keeps its slope times the scale
        assert slope == pytest.approx(float(y[0, 0, 5, 3] - y[0, 0, 4, 3]), abs=1e-4)
        size = 11 if slope < 1.0001 else next(size for size in range(7, 11) if slope >= 11 / (size + 1) - 1e-4)
        assert slope <= 11 / size + 1e-4
        # From output pixel 3 back to the place where the batch was cut.
        row, column = ((float(y[0, k, 3, 3]) - (11 - size * slope) / 2) / slope - 3 for k in (0, 1))
        places = round(row), round(column)
        assert (row, column) == pytest.approx(places, abs=0.02)
        assert max(places) <= size - 7
        met.add((size, *places))
    assert met == {(size, i, j) for size in range(7, 12) for i in range(size - 6) for j in range(size - 6)}


def test_rscale_draws_sizes_as_often_as_they_have_places():
    """256 pixels, maxScale 1.2, tgtSize 213: sizes 213 … 256 with probability ∝ (s + 1)², 245.4 on average."""
    scaled = RandomScale(1, 256, 1.2, 213)
    chances = np.arange(1, 45) ** 2 / (np.arange(1, 45) ** 2).sum()
    assert np.allclose(np.diff(scaled.squares.numpy(), prepend=0), chances, atol=1e-6)
    assert (np.arange(213, 257) * chances).sum() == pytest.approx(245.4, abs=0.05)
    scaled.generator = torch.Generator().manual_seed(0)
    row = torch.arange(256.0).expand(1, 1, 256, 256)
    scales = np.array([float(y[0, 0, 0, 101] - y[0, 0, 0, 100]) for y in (scaled.train()(row) for _ in range(400))])
    # Sizes and scales as the 2012 program draws them, one after the other.
    random = np.random.default_rng(1)
    sizes = 213 + random.choice(44, 20_000, p=chances)
    low = np.maximum(1, 256 / (sizes + 1))
    expected = low + random.random(20_000) * (256 / sizes - low)
    assert scales.mean() == pytest.approx(expected.mean(), abs=5 * expected.std() / 20)
    assert scales.std() == pytest.approx(expected.std(), rel=0.2)
    whole = RandomScale(1, 9, 1, 9).train()
    x = torch.randn(2, 1, 9, 9)
    assert torch.equal(whole(x), x)  # nothing to scale and to cut


def test_colors():
    x = RANDOM.random((2, 3, 2, 2))
    net = layer("[x]\ntype=rgb2yuv\ninputs=data\ngpu=0\n", 2, 3)
    r, g, b = x.transpose(1, 0, 2, 3)
    expected = [
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        -0.09991 * r - 0.33609 * g + 0.436 * b,
        0.615 * r - 0.55861 * g - 0.05639 * b,
    ]
    near(run(net, x), np.stack(expected, 1))

    def f(t):
        return np.where(t > 0.0088564517, np.abs(t) ** 0.3333, 7.787037 * t + 0.13793103)

    x[0] *= 0.01  # the straight part
    r, g, b = x.transpose(1, 0, 2, 3)
    u, v, w = f(0.49 * r + 0.31 * g + 0.2 * b), f(0.17697 * r + 0.8124 * g + 0.01063 * b), f(0.01 * g + 0.99 * b)
    for center, less in (("false", 16), ("true", 66)):
        net = layer(f"[x]\ntype=rgb2lab\ninputs=data\ncenter={center}\ngpu=0\n", 2, 3)
        near(run(net, x), np.stack([116 * v - less, 500 * (u - v), 200 * (v - w)], 1))


# ---- layers with weights


def correlate(x, w, stride, padding, out):
    """x [N, C, S, S], w [F, C, K, K]: windows read zeros outside, however far they stick out."""
    size = w.shape[2]
    padded = np.zeros((len(x), x.shape[1], *(padding * 2 + x.shape[2] + size + stride,) * 2))
    padded[:, :, padding : padding + x.shape[2], padding : padding + x.shape[2]] = x
    y = np.zeros((len(x), len(w), out, out))
    for i, j in np.ndindex(out, out):
        part = padded[:, :, i * stride : i * stride + size, j * stride : j * stride + size]
        y[:, :, i, j] = np.einsum("ncab,fcab->nf", part, w)
    return y


@pytest.mark.parametrize("shared", [0, 1])
def test_conv_with_two_inputs_groups_and_overhang(shared):
    text = f"""
[d2]
type=nailbed
inputs=data
channels=8
stride=2
gpu=0
[x]
type=conv
inputs=data,d2
channels=8,8
filters=16,32
groups=2,1
filterSize=4,2
padding=1,0
stride=3,1
initW=0.1,0.1
initB=0.5
partialSum=0
sharedBiases={shared}
gpu=0
"""
    net = layer(text, 9, 8, "[x]\nepsW=1,1\nepsB=1\nmomW=0,0\nmomB=0\n")
    x = draw(2, 8, 9, 9)
    assert net.definition.layers["x"].side == 4  # 1 + ceil((2 + 9 − 4)/3), one pixel over the edge
    w0, w1 = (net.weight_of("x", i).detach().double().numpy() for i in (0, 1))
    assert w0.shape == (32, 4, 4, 4)
    y = np.concatenate([correlate(x[:, :4], w0[:16], 3, 1, 4), correlate(x[:, 4:], w0[16:], 3, 1, 4)], 1)
    y += correlate(x[:, :, ::2, ::2], w1, 1, 0, 4)
    bias = net.module_of("x").bias
    assert bias.shape == ((32,) if shared else (32, 4, 4))
    with torch.no_grad():
        bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(1)))
    values = bias.detach().double().numpy()
    near(run(net, x), y + (values[:, None, None] if shared else values))
    g = draw(2, 32, 4, 4)
    (net.forward_to(torch.from_numpy(x).float(), "x") * torch.from_numpy(g).float()).sum().backward()
    near(bias.grad.double().numpy(), g.sum((0, 2, 3)) if shared else g.sum(0), 1e-3)
    one = np.zeros_like(w1)
    one[3, 2, 1, 0] = 1
    slope = (correlate(x[:, :, ::2, ::2], one, 1, 0, 4) * g).sum()
    assert float(net.weight_of("x", 1).grad[3, 2, 1, 0]) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("kind", ["conv", "local"])
def test_random_sparse_groups(kind):
    text = f"""
[x]
type={kind}
inputs=data
channels=8
filters=16
groups=4
randSparse=true
filterChannels=4
filterSize=3
padding=1
stride=2
initW=0.1
initB=0.3
partialSum=1
gpu=0
"""
    net = layer(text, 6, 8, "[x]\nepsW=1\nepsB=1\nmomW=0\nmomB=0\n")
    connections = net.module_of("x").connections0.numpy()
    assert len(connections) == 16
    x, out = draw(2, 8, 6, 6), 4  # 1 + ceil((2 + 6 − 3)/2)
    weight = net.weight_of("x").detach().double().numpy()
    y = np.full((2, 64, out, out), 0.3)
    for group in range(4):
        seen = x[:, connections[group * 4 : group * 4 + 4]]
        filters = range(group * 16, group * 16 + 16)
        for i, j in np.ndindex(out, out):
            if kind == "conv":
                w = weight[filters]
            else:  # row (m·fc + c)·K² + tap of the file's matrix
                w = weight[i * out + j].reshape(4, 3, 3, 64).transpose(3, 0, 1, 2)[filters]
            y[:, filters, i, j] += correlate(seen, w, 2, 1, out)[:, :, i, j]
    near(run(net, x), y)


def test_fully_connected_reads_channels_first_and_each_input_by_its_own_matrix():
    net = network("towers").eval()
    a, b = draw(3, 32, 3, 3), draw(3, 32, 3, 3)
    outputs = []
    for name, order in (("f1a", (a, b)), ("f1b", (b, a))):
        weights = [net.weight_of(name, i).detach().double().numpy() for i in (0, 1)]
        y = sum(np.einsum("ncij,ocij->no", x, w.reshape(64, 32, 3, 3)) for x, w in zip(order, weights, strict=True))
        given = [torch.from_numpy(x).float() for x in order]
        near(net.module_of(name)(given, [net.weight_of(name, i) for i in (0, 1)], [None, None]).detach().numpy(), y)
        outputs.append(y)
    assert net.definition.layers["f1b"].inputs == ("p2b", "p2a")


# ---- numbers one by one


@pytest.mark.parametrize(
    ("name", "numbers", "f", "slope"),
    [
        ("ident", (), lambda x: x, lambda x: np.ones_like(x)),
        ("logistic", (), lambda x: 1 / (1 + np.exp(-x)), None),
        ("relu", (), lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
        ("tanh", (1.5, 0.7), lambda x: 1.5 * np.tanh(0.7 * x), None),
        ("linear", (2, -3), lambda x: 2 * x - 3, None),
        (
            "softrelu",
            (),
            lambda x: np.where(x > 4, x, np.log(1 + np.exp(x))),
            lambda x: np.where(x > 4, 1, 1 / (1 + np.exp(-x))),
        ),
        ("square", (), lambda x: x * x, None),
        ("abs", (), np.abs, lambda x: np.where(x > 0, 1.0, -1.0)),
        ("brelu", (2.0,), lambda x: np.minimum(2, np.maximum(0, x)), lambda x: ((x > 0) & (x < 2)) * 1.0),
        ("drelu", (0.8,), lambda x: x - 0.8 * np.tanh(x / 0.8), None),
    ],
)
def test_neurons(name, numbers, f, slope):
    x = np.concatenate([draw(40) * 3, [0.0, 2.0, 4.0, 4.5, -7.0]])
    given = torch.from_numpy(x).requires_grad_()
    y = Neuron(name, numbers)(given)
    near(y.detach().numpy(), f(x), 1e-6)
    y.sum().backward()
    expected = slope(x) if slope else slopes(f, x, np.ones_like(x))
    near(given.grad.numpy(), expected, 1e-5)


def test_square_root():
    x = torch.tensor([0.25, 4.0], requires_grad=True)
    y = Neuron("sqrt", ())(x)
    y.sum().backward()
    assert y.tolist() == [0.5, 2.0]
    assert x.grad.tolist() == [1.0, 0.25]  # 1/(2y)


def test_noisy_neuron():
    neuron = Neuron("nrelu", ())
    neuron.generator = torch.Generator().manual_seed(0)
    x = torch.tensor([-1.0, 0.0, 2.0]).repeat(20_000, 1).requires_grad_()
    y = neuron.train()(x)
    assert not y[:, :2].any()
    noise = F.relu(2 + 2 * torch.randn(20_000, generator=torch.Generator().manual_seed(1)))
    assert float(y[:, 2].detach().mean()) == pytest.approx(float(noise.mean()), rel=0.03)
    assert float(y[:, 2].detach().std()) == pytest.approx(float(noise.std()), rel=0.03)
    y.sum().backward()
    assert torch.equal(x.grad, (y > 0).float())  # the noise passes nothing back
    still = neuron.eval()(x)
    assert torch.equal(still, neuron(x))
    assert (still == still[0]).all()  # in a test one draw for all images


def test_dropout_of_2012():
    x = torch.full((100, 200), 3.0, requires_grad=True)
    keep = UnscaledDropout(0.8, enable=True)
    keep.generator = torch.Generator().manual_seed(0)
    y = keep.train()(x)
    assert set(y.unique().tolist()) == {0.0, 3.0}  # not scaled
    assert float((y > 0).float().mean()) == pytest.approx(0.8, abs=0.01)
    y.sum().backward()
    assert torch.equal(x.grad, (y > 0).float())
    assert torch.equal(keep.eval()(x), x * 0.8)
    assert torch.equal(UnscaledDropout(0.8, enable=False).train()(x), x * 0.8)  # × keep in training too
    net = network("shared")
    assert (net.module_of("h1").enable, net.module_of("h2").enable) == (True, False)


def test_sums_and_maxima_and_concatenation():
    a, b = torch.tensor([[1.0, 5.0, 2.0]], requires_grad=True), torch.tensor([[1.0, 3.0, 4.0]], requires_grad=True)
    assert Sum((2.0, -1.0))(a, b).tolist() == [[1.0, 7.0, 0.0]]
    y = Maximum()(a, b)
    assert y.tolist() == [[1.0, 5.0, 4.0]]
    (y * torch.tensor([[10.0, 20.0, 30.0]])).sum().backward()
    assert a.grad.tolist() == [[10.0, 20.0, 0.0]]  # to every input that equals it
    assert b.grad.tolist() == [[10.0, 0.0, 30.0]]
    maps = torch.arange(8.0).view(1, 2, 2, 2)
    assert torch.equal(Concatenation(True)(maps, maps), torch.cat([maps, maps], 1))
    assert Concatenation(True)(maps, a).shape == (1, 11)
    assert torch.equal(Sum((1.0, 1.0))(maps, maps.flatten(1)), 2 * maps.flatten(1))


# ---- costs


def test_costs():
    z, t = draw(4, 5), np.eye(5)[[0, 3, 3, 1]]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = 1 / (1 + np.exp(-z))
    x = torch.from_numpy(z).requires_grad_()
    targets = torch.from_numpy(t)
    cases = {
        "logreg": (modules.logreg(targets.argmax(1), x), -np.log(p[range(4), [0, 3, 3, 1]]).sum(), p - t),
        "crossent": (modules.crossent(targets, x), -(t * np.log(p)).sum(), p - t),
        "logistic": (modules.crossent2(targets, x, True), -(t * np.log(y) + (1 - t) * np.log(1 - y)).sum(), y - t),
        "sum2": (modules.sum2(x), (z**2).sum(), 2 * z),
        "rflickr": (modules.rflickr(targets, x), np.log(1 + (z - t) ** 2).sum(), 2 * (z - t) / (1 + (z - t) ** 2)),
        "gsum2": (modules.gsum2(targets[:, :1], x), (t[:, :1] * z**2).sum(), 2 * t[:, :1] * z),
    }
    for name, (value, expected, slope) in cases.items():
        x.grad = None
        (3 * value).backward()
        assert value.item() == pytest.approx(expected), name
        assert np.allclose(x.grad.numpy(), 3 * slope), name
    probability = torch.from_numpy(y).requires_grad_()
    value = modules.crossent2(targets, probability, False)
    value.backward()
    assert value.item() == pytest.approx(float(cases["logistic"][1]))
    assert np.allclose(probability.grad.numpy(), -t / y + (1 - t) / (1 - y))


def set_cost(z: np.ndarray, labels: list[int], size: int) -> float:
    """−Σ log P(label in the set), by going through all sets of ``size`` classes."""
    total = 0.0
    for scores, label in zip(z, labels, strict=True):
        sets = {members: math.exp(sum(scores[list(members)])) for members in combinations(range(len(scores)), size)}
        total -= math.log(sum(w for s, w in sets.items() if label in s) / sum(sets.values()))
    return total


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_msm_is_a_softmax_over_sets_of_classes(size):
    z, labels = draw(3, 6) * 2, [0, 5, 2]
    x = torch.from_numpy(z + 40).requires_grad_()  # a constant added to all scores changes nothing
    value = modules.msm(torch.tensor(labels), x, size)
    (3 * value).backward()
    assert value.item() == pytest.approx(set_cost(z, labels, size))
    near(x.grad.numpy(), 3 * slopes(lambda v: np.array(set_cost(v, labels, size)), z, np.array(1.0)), 1e-6)
    if size == 1:
        assert value.item() == pytest.approx(modules.logreg(torch.tensor(labels), x).item())


def test_msm_of_many_classes_in_single_precision():
    z, labels = draw(2, 200) * 20, [3, 199]  # most sets weigh nothing
    x = torch.from_numpy(z).float().requires_grad_()
    value, exact = (modules.msm(torch.tensor(labels), scores, 5) for scores in (x, x.double()))
    value.backward()
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert x.grad.isfinite().all()
    assert x.grad.sum(1).abs().max() < 1e-4  # 5 classes with the label's set, 5 without


def test_the_log_of_nothing_is_minus_fifty():
    assert float(modules.crossent2(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), False)) == 100
    far = torch.tensor([[-200.0]], requires_grad=True)
    value = modules.crossent2(torch.tensor([[1.0]]), far, True)
    value.backward()
    assert (value.item(), far.grad.item()) == (50.0, -1.0)


def test_errors_count_ties_in_parts():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    labels = torch.tensor([0, 0, 0, 2])
    assert modules.errors(labels, p, 1) == pytest.approx(0 + 1 / 2 + 1 + 2 / 3)
    assert modules.errors(labels, p, 2) == pytest.approx(0 + 0 + 1 / 2 + 1 / 3)


def test_batch_loss_is_the_weighted_cost_over_the_images():
    text = """
[data]
type=data
dataIdx=0
[target]
type=data
dataIdx=2
[f]
type=fc
inputs=data
outputs=4
initW=0.1
neuron=logistic
gpu=0
[a]
type=cost.crossent2
inputs=target,f
gpu=0
[b]
type=cost.sum2
inputs=f
[off]
type=cost.rflickr
inputs=target,f
gpu=0
"""
    from alexnet.cuda_convnet import Data, Files, build

    rates = "[f]\nepsW=1\nepsB=1\nmomW=0\nmomB=0\n[a]\ncoeff=0.5\n[b]\ncoeff=3\n[off]\ncoeff=0\n"
    net = build(Files("two", text, rates), Data(2), generator=torch.Generator().manual_seed(0))
    x, labels = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 3, 3])
    z = net.forward_to(x, "f")
    y, t = z.sigmoid(), F.one_hot(labels, 4).float()
    a = F.binary_cross_entropy_with_logits(z, t, reduction="sum")
    _, total = net.costs(x, labels)
    assert float(total.detach()) == pytest.approx(((0.5 * a + 3 * y.square().sum()) / 5).item(), rel=1e-5)
    total.backward()
    # f is read by three costs, so its gradient goes through the probabilities; the sum is the same.
    joined = 0.5 * (y - t) + 3 * 2 * y * y * (1 - y)
    assert torch.allclose(net.weight_of("f").grad, joined.T @ x.flatten(1) / 5, atol=1e-4)
    assert set(net.report(x, labels)) == {"a", "b", "off"}
