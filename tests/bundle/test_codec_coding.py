"""Gaps and Huffman codes there and back, close to the entropy, and nothing believed that a file says."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.bundle.compressed_weights import JUMP, expand, gaps_of, positions_of, squeeze


def slow_gaps(positions):
    """Gap by gap, in plain Python."""
    found, before = [], -1
    for position in positions:
        zeros = position - before - 1
        while zeros >= 255:
            found.append(255)
            zeros -= 255
        found.append(zeros)
        before = position
    return found


@given(st.sets(st.integers(0, 3000), max_size=60))
def test_positions_come_back(found):
    positions = np.array(sorted(found), np.int64)
    gaps = gaps_of(positions)
    assert gaps.tolist() == slow_gaps(positions.tolist())
    assert np.array_equal(positions_of(gaps, len(positions), 3001), positions)


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 100_000])
def test_a_gap_longer_than_a_byte(gap):
    positions = np.array([gap, 2 * gap + 1, 2 * gap + 2], np.int64)
    gaps = gaps_of(positions)
    assert (gaps == JUMP).sum() == 2 * (gap // 255)
    assert np.array_equal(positions_of(gaps, 3, 2 * gap + 3), positions)


def test_no_weight_and_every_weight():
    assert len(gaps_of(np.zeros(0, np.int64))) == 0
    assert len(positions_of(np.zeros(0, np.uint8), 0, 5)) == 0
    everyone = np.arange(700)
    assert not gaps_of(everyone).any()
    assert np.array_equal(positions_of(np.zeros(700, np.uint8), 700, 700), everyone)


@pytest.mark.parametrize(
    ("gaps", "count", "size"),
    [([0, 0, 0], 2, 9), ([0, 0], 3, 9), ([4, 4], 2, 9), ([255], 0, 999), ([0, 255], 1, 999), ([255, 255, 3], 1, 500)],
)
def test_positions_that_can_not_be(gaps, count, size):
    with pytest.raises(ValueError, match="positions of"):
        positions_of(np.array(gaps, np.uint8), count, size)


@given(st.binary(max_size=300))
def test_symbols_come_back(symbols):
    taken = np.frombuffer(symbols, np.uint8)
    assert np.array_equal(expand(squeeze(taken), len(taken)), taken)


def test_the_codes_are_close_to_the_entropy_and_below_lzma():
    """The decision in docs/log.md, held: symbols of a pruned layer have no repetitions to find, only frequencies."""
    import lzma

    random = np.random.default_rng(0)
    codes = np.clip(np.rint(2.5 * random.laplace(size=200_000) + 16), 0, 31).astype(np.uint8)
    share = np.bincount(codes) / len(codes)
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() * len(codes) / 8
    assert entropy < len(squeeze(codes)) < 1.02 * entropy
    assert len(lzma.compress(codes.tobytes(), preset=6)) > len(squeeze(codes))


def test_bytes_that_are_no_codes():
    good = squeeze(np.arange(100, dtype=np.uint8))
    for bad in (good[:-1], good[:0], np.concatenate([good, good[:1]]), np.full(50, 255, np.uint8)):
        with pytest.raises(ValueError, match="Huffman codes"):
            expand(np.asarray(bad, np.uint8), 100)
    for count in (0, 99, 101):
        with pytest.raises(ValueError, match="another number of symbols"):
            expand(good, count)


def test_a_bomb_makes_no_more_than_was_announced(monkeypatch):
    """64 MB of zeros in 64 KB: whoever asks for 1000 symbols gets at most 1001 out of the decoder."""
    bomb = np.frombuffer(zlib.compress(bytes(64 << 20), 9, wbits=-15), np.uint8)
    made, decompressobj = [], zlib.decompressobj

    class Counting:
        def __init__(self, bits):
            self.inner = decompressobj(bits)

        def decompress(self, data, most):
            made.append(self.inner.decompress(data, most))
            return made[-1]

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr("alexnet.bundle.compressed_weights.zlib.decompressobj", Counting)
    with pytest.raises(ValueError, match="another number"):
        expand(bomb, 1000)
    assert [len(part) for part in made] == [1001]
