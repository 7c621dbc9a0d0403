"""Files as their makers write them, made by hand: protocol buffers by the byte, pickles of Python 2 by the opcode."""

import struct

import numpy as np


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def part(number: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def single(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def blob(array: np.ndarray, form: str = "now", packed: bool = True, double: bool = False) -> bytes:
    """A BlobProto: ``now`` has a shape [7], 2014 has num, channels, height and width [1 to 4]."""
    if form == "now":
        shape = part(7, part(1, b"".join(varint(side) for side in array.shape)))
    else:
        sides = [1] * (4 - array.ndim) + list(array.shape)
        shape = b"".join(whole(i + 1, side) for i, side in enumerate(sides))
    if double:
        return shape + part(8, array.astype("<f8").tobytes())
    if packed:
        return shape + part(5, array.astype("<f4").tobytes())
    return shape + b"".join(single(5, float(value)) for value in array.ravel())


# Of a layer's kind: its type now and in 2014, and the number of its parameters' field.
KINDS = {
    "Convolution": (4, 106, 10),
    "InnerProduct": (14, 117, 17),
    "LRN": (15, 118, 18),
    "Pooling": (17, 121, 19),
    "ReLU": (18, 123, 30),
    "Dropout": (6, 108, 12),
    "Softmax": (20, 125, 39),
    "Data": (5, 107, 11),
}


def layer(kind: str, name: str, blobs=(), about: bytes = b"", form: str = "now", **how) -> bytes:
    """A layer of a network, as one field of it; ``about`` are the parameters of its kind."""
    old, number, number_old = KINDS[kind]
    encoded = [blob(array, form, **how) for array in blobs]
    if form == "now":
        content = part(1, name) + part(2, kind) + part(3, "below") + part(4, name)
        content += b"".join(part(7, one) for one in encoded) + (part(number, about) if about else b"")
        return part(100, content)
    content = part(2, "below") + part(3, name) + part(4, name) + whole(5, old)
    content += b"".join(part(6, one) for one in encoded) + (part(number_old, about) if about else b"")
    return part(2, content)


class Py2:
    """A pickle as Python 2 writes it, protocol 2: strings are bytes, arrays go through numpy.core.multiarray."""

    def __init__(self) -> None:
        self.memo = 0

    def dumps(self, value) -> bytes:
        return b"\x80\x02" + self.of(value) + b"."

    def put(self) -> bytes:
        self.memo += 1
        return b"r" + struct.pack("<I", self.memo)

    def of(self, value) -> bytes:
        if isinstance(value, Raw):
            return value.code
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            short = -(2**31) <= value < 2**31
            return b"J" + struct.pack("<i", value) if short else b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            return b"T" + struct.pack("<I", len(value)) + value.encode("latin-1") + self.put()
        if isinstance(value, bytes):
            return b"T" + struct.pack("<I", len(value)) + value + self.put()
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.of, value)) + b"t" + self.put()
        if isinstance(value, list):
            return b"]" + self.put() + b"(" + b"".join(map(self.of, value)) + b"e"
        if isinstance(value, dict):
            pairs = b"".join(self.of(k) + self.of(v) for k, v in value.items())
            return b"}" + self.put() + b"(" + pairs + b"u"
        if isinstance(value, np.ndarray):
            return self.array(value)
        raise TypeError(type(value))

    def type(self, code: str, order: str) -> bytes:
        made = b"cnumpy\ndtype\n" + self.put() + self.of((code, 0, 1)) + b"R" + self.put()
        return made + self.of((3, order, None, None, None, -1, -1, 0)) + b"b"

    def array(self, value: np.ndarray) -> bytes:
        empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + self.of((0,)) + self.of("b")
        made = empty + b"\x87R" + self.put()
        columns = value.flags.f_contiguous and not value.flags.c_contiguous
        order = {"|": "|", "=": "<", "<": "<", ">": ">"}[value.dtype.byteorder]
        kind = Raw(self.type(value.dtype.str[1:], order))
        state = (1, value.shape, kind, columns, value.tobytes("F" if columns else "C"))
        return made + self.of(state) + b"b"


class Raw:
    """Opcodes that stand as they are."""

    def __init__(self, code: bytes) -> None:
        self.code = code


def py2(value) -> bytes:
    return Py2().dumps(value)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride=1, padding=0, groups=1) -> np.ndarray:
    """Caffe's convolution of one image [C, H, W], sizes by floor, in float64."""
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding)))
    kernel = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
    inputs, filters = np.split(windows, groups), np.split(weight.astype(np.float64), groups)
    found = [np.einsum("cyxij,fcij->fyx", i, f, optimize=True) for i, f in zip(inputs, filters, strict=True)]
    return np.concatenate(found) + bias[:, None, None]


def pooled(x: np.ndarray, how=np.max, kernel=3, stride=2) -> np.ndarray:
    """Pooling by ceil over the pixels that exist."""
    side = -(-(x.shape[1] - kernel) // stride) + 1
    cut = [slice(i * stride, i * stride + kernel) for i in range(side)]
    return np.stack([np.stack([how(x[:, a, b], axis=(1, 2)) for b in cut], -1) for a in cut], 1)


def normalized(x: np.ndarray, size=5, alpha=1e-4, beta=0.75, k=1.0) -> np.ndarray:
    """Caffe's response normalization across channels."""
    squares = np.stack([(x[max(0, c - size // 2) : c + size // 2 + 1] ** 2).sum(0) for c in range(len(x))])
    return x / (k + alpha / size * squares) ** beta


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def cifar_19pct(arrays: dict, x: np.ndarray) -> np.ndarray:
    """Logits of the 2012 CIFAR-10 net 19pct for one input [3, 32, 32], layer by layer."""
    x = np.maximum(pooled(convolve(x, arrays["conv1.weight"], arrays["conv1.bias"], padding=2)), 0)
    for name in ("conv2", "conv3"):
        x = np.maximum(convolve(x, arrays[f"{name}.weight"], arrays[f"{name}.bias"], padding=2), 0)
        x = pooled(x, np.mean)
    return arrays["fc10.weight"].astype(np.float64) @ x.ravel() + arrays["fc10.bias"]


def small_net(seed: int = 0, classes: int = 4) -> dict:
    """Random weights of that net, as PyTorch lays them out, such that its logits differ."""
    random = np.random.default_rng(seed)
    shapes = {"conv1": (32, 3, 5, 5), "conv2": (32, 32, 5, 5), "conv3": (64, 32, 5, 5), "fc10": (classes, 1024)}
    found = {}
    for name, shape in shapes.items():
        found[f"{name}.weight"] = random.normal(
            0, (2 / np.prod(shape[1:])) ** 0.5 / (50 if name == "conv1" else 1), shape
        )
        found[f"{name}.bias"] = random.normal(0, 0.1, shape[0])
    return {name: array.astype(np.float32) for name, array in found.items()}


def image(side: int = 40) -> np.ndarray:
    """Three different colors, none of them symmetric: uint8 [side, side, 3]."""
    y, x = np.mgrid[0:side, 0:side] / side
    return np.rint(255 * np.stack([x, y * x, (1 - y) * x**2], -1)).astype(np.uint8)
