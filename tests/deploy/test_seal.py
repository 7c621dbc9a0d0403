"""The seal: any changed byte is seen, and damaged manifests end in one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet.deploy import seal
from alexnet.deploy.seal import Manifest, Replay
from alexnet.errors import BundleError

MANIFEST = Manifest(
    ("a", 'b"] -- é'), "pictures", "fp32", 32, "crop", 1e-4, "net", (Replay("00", b"png", [0.25, 0.75]),)
)


def test_a_manifest_comes_back():
    assert Manifest.from_json(MANIFEST.to_json(), Path("x")) == MANIFEST


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_every_changed_byte_is_seen(suffix, tmp_path):
    body = b"PK body of the file, whatever it is\n\0\0" if suffix == ".pt2" else b"<net> whatever it is </net>"
    data = seal.sealed(body, MANIFEST, suffix)
    path = tmp_path / f"net{suffix}"
    path.write_bytes(data)
    seal.check(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(BundleError, match=r"has changed|no SHA-256"):
            seal.check(path)
    for cut in (b"", data[:10], data[:-1], data + b"x", data[1:]):
        path.write_bytes(cut)
        with pytest.raises(BundleError, match=r"has changed|no SHA-256"):
            seal.check(path)


def test_the_class_names_are_the_last_array_of_an_onnx_file():
    """What the JavaScript of docs/export.md does."""
    text = seal.sealed(b"body", MANIFEST, ".onnx").decode("utf-8", "replace")
    assert json.loads(text[text.rindex('["') : text.rindex('"]') + 2]) == list(MANIFEST.classes)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "other"}, "is of format 'other'"),
        ({"version": 2}, "version 2; must be alexnet-export version 1; export it again"),
        ({"classes": 3}, "is damaged: its manifest has TypeError"),
        ({"classes": ["a"]}, "2 probabilities of 1 classes"),
        ({"input": "bgr"}, "'bgr' in place of pictures or decoded"),
        ({"golden": [{}]}, "is damaged: its manifest has KeyError"),
        ({"golden": [{"name": "a", "png": "?", "probabilities": [1, 2]}]}, "is damaged"),
        ({"stored_size": None}, "is damaged"),
    ],
)
def test_a_damaged_manifest_is_named(change, text):
    about = json.loads(MANIFEST.to_json()) | change
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(about), Path("net.onnx"))
    assert str(caught.value).startswith("net.onnx")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@settings(max_examples=10)
def test_any_json_for_a_manifest_ends_in_the_house_s_error(value):
    fields = json.loads(MANIFEST.to_json())
    for about in (value, *(fields | {name: value} for name in fields if name not in ("format", "version"))):
        try:
            Manifest.from_json(json.dumps(about), Path("net.onnx"))
        except BundleError as error:
            assert "\n" not in str(error)


def test_no_file_of_ours(tmp_path):
    with pytest.raises(BundleError, match=r"is of no known format; must be a file ending in \.onnx, \.xml, \.pt2"):
        seal.check(tmp_path / "net.tflite")
    with pytest.raises(BundleError, match=r"can not be read: No such file"):
        seal.check(tmp_path / "net.onnx")
