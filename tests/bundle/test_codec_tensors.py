"""Arrays there and back to the last bit; whatever a stream says that cannot be is refused before room is made."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.bundle.compressed_weights import GROUP, STEPS, decode, encode, from_whole, integers, largest_of, sizes


def sparse(seed, shape, kept, values):
    """Random weights of ``values`` different values, a share ``kept`` of them not 0."""
    random = np.random.default_rng(seed)
    book = random.normal(size=values).astype(np.float32)
    array = book[random.integers(0, values, shape)] if values else np.zeros(shape, np.float32)
    return np.where(random.random(shape) < kept, array, np.float32(0))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1,), (7,), (3, 5), (40, 30), (4, 3, 2, 2), (1, 2000), (0,), (0, 4)]),
    st.sampled_from([0.0, 0.001, 0.1, 0.9, 1.0]),
    st.sampled_from([1, 2, 32, 256]),
)
def test_shared_weights_come_back(seed, shape, kept, values):
    array = sparse(seed, shape, kept, values)
    about, streams = encode(array, "shared")
    assert about["weights"] == np.count_nonzero(array)
    found = decode(about, streams, shape)
    assert found.dtype == np.float32
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("where", [0, 254, 255, 256, 99_999])
def test_one_weight_alone(where):
    array = np.zeros(100_000, np.float32)
    array[where] = -1.5e-42  # denormal: a float like any other
    about, streams = encode(array, "shared")
    assert about == {"weights": 1, "gaps": 1 + where // 255, "kind": "shared", "shape": [100_000]}
    assert decode(about, streams, (100_000,)).tobytes() == array.tobytes()


def test_sizes_add_up():
    array = sparse(0, (300, 200), 0.1, 32)
    about, streams = encode(array, "shared")
    assert sizes(streams) == len(streams["gaps"]) + len(streams["codes"]) + 4 * len(streams["book"])
    assert sizes(streams) * 8 < about["weights"] * (5 + 8)  # less than a plain list of codes and gaps
    entropy = 60_000 * (-0.1 * np.log2(0.1) - 0.9 * np.log2(0.9)) + 6000 * 5
    assert sizes(streams) * 8 < 1.05 * entropy + 32 * 32


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (5, 128), (3, 129), (8, 3, 5, 5), (2, 500)]))
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_integers_come_back(kind, seed, shape):
    random = np.random.default_rng(seed)
    rows = random.choice([0, 1e-8, 1, 1e8], (shape[0], *[1] * (len(shape) - 1)))
    raw = (random.normal(size=shape) * rows).astype(np.float32)
    largest = largest_of(raw, kind)
    numbers = integers(raw, largest, kind)
    rounded = from_whole(numbers, largest, kind, shape)
    about, streams = encode(rounded, kind)
    assert decode(about, streams, shape).tobytes() == rounded.tobytes()
    assert np.array_equal(integers(rounded, largest_of(rounded, kind), kind), numbers)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounding_against_a_slow_formula(kind):
    random = np.random.default_rng(3)
    raw = random.normal(size=(6, 300)).astype(np.float32)
    raw[2] = 0
    largest = largest_of(raw, kind)
    found = from_whole(integers(raw, largest, kind), largest, kind, raw.shape)
    steps, group = STEPS[kind], GROUP[kind] or 300
    for i in range(6):
        for start in range(0, 300, group):
            part = raw[i, start : start + group].astype(np.float64)
            top = np.abs(part).max()
            slow = np.round(part / top * steps) / steps * top if top else part
            assert np.allclose(found[i, start : start + group], slow, atol=top * 1e-6)
            assert np.abs(found[i, start : start + group] - part).max() <= top / steps / 2 * 1.0001


def test_what_is_not_of_a_kind():
    for array, kind, words in (
        (np.arange(1, 300, dtype=np.float32), "shared", "299 different weights"),
        (np.array([1, np.nan], np.float32), "shared", "not finite"),
        (np.array([[1, np.inf]], np.float32), "int8", "finite"),
        (np.array([[1.0, 0.3]], np.float32), "int4", "not of kind int4"),
        (np.array([1.0, 0.3], np.float32), "int8", "int8"),
        (np.ones((2, 2), np.float32), "int3", "int3"),
    ):
        with pytest.raises(ValueError, match=words):
            encode(array, kind)


def damaged(change):
    array = sparse(1, (30, 40), 0.2, 8)
    about, streams = encode(array, "shared")
    change(about, streams)
    return about, streams


@pytest.mark.parametrize(
    "change",
    [
        lambda about, _: about.update(weights=10**18),
        lambda about, _: about.update(weights=-1),
        lambda about, _: about.update(weights=2.5),
        lambda about, _: about.update(weights=True),
        lambda about, _: about.update(gaps=10**18),
        lambda about, _: about.update(gaps=None),
        lambda about, _: about.pop("gaps"),
        lambda about, _: about.update(shape=[40, 30]),
        lambda about, _: about.update(shape=[10**9, 10**9]),
        lambda about, _: about.update(kind="int8"),
        lambda about, _: about.update(kind=["shared"]),
        lambda _, streams: streams.update(book=streams["book"][:-1]),
        lambda _, streams: streams.update(book=np.zeros(10**6, np.float32)),
        lambda _, streams: streams.update(book=streams["book"].astype(np.float64)),
        lambda _, streams: streams.update(book=np.full(8, np.nan, np.float32)),
        lambda _, streams: streams.update(codes=streams["gaps"]),
        lambda _, streams: streams.update(codes=streams["codes"][:-3]),
        lambda _, streams: streams.update(gaps=streams["gaps"][None]),
        lambda _, streams: streams.pop("codes"),
        lambda _, streams: streams.update(more=streams["codes"]),
    ],
)
def test_streams_that_can_not_be(change):
    about, streams = damaged(change)
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode(about, streams, (30, 40))


def test_integers_that_can_not_be():
    array = from_whole(np.array([[7, -7, 3]], np.int8), np.ones((1, 1), np.float32), "int4", (1, 3))
    about, streams = encode(array, "int4")
    from alexnet.bundle.compressed_weights import squeeze

    for change in (
        {"codes": squeeze(np.array([14, 15, 3], np.uint8))},  # 15 would be +8
        {"largest": np.ones((1, 2), np.float32)},
        {"largest": np.full((1, 1), np.inf, np.float32)},
        {"largest": np.ones(1, np.float32)},
    ):
        with pytest.raises(ValueError, match=r"integer|largest"):
            decode(about, streams | change, (1, 3))
