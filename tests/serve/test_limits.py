"""The admission's arithmetic, keys, logs: what needs no socket."""

import json
import logging

import pytest

from alexnet.errors import RecipeError, ServerError
from alexnet.serve import logs
from alexnet.serve.explain import crop_box, shade
from alexnet.serve.limits import MAX_BODIES, AdmissionController, Limits, RequestRejected
from alexnet.serve.service import ApiKeys, read_keys


def test_the_gate_counts_what_is_inside():
    admission = AdmissionController(Limits(max_queue_size=16))
    with admission.admit(10):
        admission.check_capacity(6)
        with pytest.raises(RequestRejected, match="busy: 10 images are waiting") as caught:
            admission.check_capacity(7)
        assert caught.value.status == 503 and caught.value.retry_after == 1  # 10 images at 10 a second
        with pytest.raises(ValueError, match="inside"), admission.admit(6):
            assert admission.images == 16
            raise ValueError("inside")
        assert admission.images == 10  # given back whatever happened
    assert admission.images == 0


def test_when_to_come_again_follows_the_rate():
    admission = AdmissionController(Limits(max_queue_size=1000))
    admission._rate = 2.0
    admission.images = 9
    assert admission.retry_after == 5
    admission._rate = 0.001
    assert admission.retry_after == 60
    admission.images = 0
    assert admission.retry_after == 1


def test_the_rate_is_that_of_batches_not_of_moments(monkeypatch):
    """Batches of 8 every 0.4 s are 20 images a second, although 8 of them come within a moment."""
    clock = [100.0]
    monkeypatch.setattr("alexnet.serve.limits.time.monotonic", lambda: clock[0])
    admission = AdmissionController(Limits(max_queue_size=1000))
    with admission.admit(500):
        for _ in range(50):
            clock[0] += 0.4
            for _ in range(8):
                with admission.admit(1):
                    pass
        assert admission._rate == pytest.approx(20, rel=0.15) and 20 <= admission.retry_after <= 30


def test_all_bodies_together_are_bounded():
    admission = AdmissionController(Limits(max_megabytes=1))
    admission.reserve(MAX_BODIES * 1_000_000)
    with pytest.raises(RequestRejected, match="too many bodies"):
        admission.reserve(1)
    assert admission.bytes == MAX_BODIES * 1_000_000


@pytest.mark.parametrize(
    "name", ["max_megabytes", "max_queue_size", "max_batch_size", "body_seconds", "max_connections"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_0(name, value):
    with pytest.raises(RecipeError, match=f"--{name.replace('_', '-')} is .*; must be a number above 0"):
        Limits(**{name: value})


def test_keys(tmp_path):
    assert not ApiKeys(()) and read_keys(None) == ()
    path = tmp_path / "keys"
    path.write_text("\ufeff# ours\n\n0123456789abcdef\n  another-key-of-ours  \n")
    keys = ApiKeys(read_keys(path, "of-the-environment"))  # the file is preferred
    assert keys and keys.verify("0123456789abcdef") and keys.verify(" another-key-of-ours")
    for key in (
        "",
        "0123456789abcde",
        "0123456789abcdef0",
        "\xff\xfe",
        "of-the-environment",
        "Bearer 0123456789abcdef",
    ):
        assert not keys.verify(key)
    assert read_keys(None, " 0123456789abcdef\n") == ("0123456789abcdef",)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ServerError, match="cannot be read"):
        read_keys(path)
    path.write_text("with a space in the middle\n")
    with pytest.raises(ServerError, match="must be 16 or more ASCII, without spaces") as caught:
        read_keys(path)
    assert "space in the middle" not in str(caught.value)  # no key is shown


def test_a_line_of_the_log_stays_a_line(caplog):
    caplog.set_level(logging.INFO, "alexnet.server")
    logs.event("request", path="/\n{\x1b[31m\u2028" + "x" * 500)
    line = logs.JsonFormatter().format(caplog.records[0])
    assert line.isascii() and line.isprintable() and len(json.loads(line)["path"]) == 200


def test_where_the_view_lies():
    """Against pixels counted by hand: an image of 300 × 200, stored at 256, seen at 224."""
    share = 224 / 256
    assert crop_box(200, 300, "crop", share) == pytest.approx((62.5 / 300, 12.5 / 200, 175 / 300, 175 / 200))
    assert crop_box(200, 300, "squash", share) == pytest.approx((1 / 16, 1 / 16, 7 / 8, 7 / 8))
    left, top, width, height = crop_box(200, 300, "pad", share)
    assert (left * 300, width * 300) == pytest.approx((18.75, 262.5))
    assert (top * 200, height * 200) == pytest.approx((-31.25, 262.5))  # beyond the image: gray bars


def test_a_blank_map_is_all_dark():
    import numpy as np

    layer = shade(np.zeros((4, 4), np.float32))
    assert (layer == (0, 0, 0, 190)).all()
    one = np.zeros((40, 40), np.float32)
    one[3, 5] = 2.0  # a single pixel, above the 99th percentile of 0
    assert shade(one)[3, 5, 3] == 0 and shade(one)[0, 0, 3] == 190
