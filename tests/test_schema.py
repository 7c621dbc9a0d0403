"""What is read from outside is checked: JSON, class names, and where a file really lies."""

import os
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from alexnet.schema import JSON_DEPTH, check, class_fault, parse_json, read_json, regular_file


class Entry(msgspec.Struct):
    size: Annotated[int, Meta(ge=1, le=100)]
    names: list[str] = []
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "nested"),
        (b"[" * (JSON_DEPTH + 1) + b"]" * (JSON_DEPTH + 1), "nested"),
        (b'{"a": NaN}', "NaN in place of a number"),
        (b'{"a": -Infinity}', "-Infinity in place of a number"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b"\xff", "utf-8"),
        (b"{", "Expecting"),
        (b"", "Expecting"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_json_that_is_read():
    assert parse_json(b'{"a": [1, 2.5, {"b": null}]}') == {"a": [1, 2.5, {"b": None}]}
    assert parse_json(b"[" * JSON_DEPTH + b"]" * JSON_DEPTH)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"size": "32"}, r"Expected `int`, got `str` - at `\$.size`"),
        ({"size": 32.5}, "Expected `int`, got `float`"),
        ({"size": True}, "Expected `int`, got `bool`"),
        ({"size": 20000}, "<= 100"),
        ({}, "missing required field `size`"),
        ([], "Expected `object`, got `array`"),
        ({"size": 3, "names": ["a", 1]}, "Expected `str`, got `int`"),
        ({"size": 3, "kind": "\x1b[2J"}, r"Invalid enum value '\\x1b\[2J'"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(value, message):
    with pytest.raises(ValueError, match=message):
        check(value, Entry)


@pytest.mark.parametrize(
    "names", [["a", "b"], ["größe", "日本 語"], ["x" * 10_000, "="], ["<b>", "$x$"], ["שלום", "نی\u200cم"]]
)
def test_class_names_that_are_accepted(names):
    assert class_fault(names) == ""


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a"],
        ["a", "a"],
        ["a", ""],
        ["a", 1],
        ["a", None],
        ["a", ["b"]],
        ["a", "x" * 10_001],
        *(["a", f"b{c}"] for c in "\x1b\a\r\n\0\x7f\x9b\u202e\u2066\u200f\u2028\ud800\U000e0041"),
    ],
)
def test_class_names_that_are_refused(names):
    fault = class_fault(names)
    assert fault and fault.isprintable()


def test_only_regular_files_inside_the_folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.json").write_text('{"a": 1}')
    (tmp_path / "secret").write_text("secret")
    (folder / "inside").symlink_to("a.json")
    (folder / "out").symlink_to("../secret")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    (folder / "away").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    assert regular_file(folder, "inside") == (folder / "a.json").resolve()
    assert read_json(folder, "inside") == {"a": 1}
    assert regular_file(folder, "out", links_within=tmp_path).read_text() == "secret"
    absolute = str(folder / "a.json")
    for name in (
        "out",
        "zero",
        "pipe",
        "sub",
        "away/secret",
        "../secret",
        "sub/../../secret",
        absolute,
        "",
        ".",
        "a\0b",
        "a\nb",
    ):
        with pytest.raises(ValueError, match=r"inside the folder|out of the folder|regular file"):
            regular_file(folder, name)
    for name in ("loop", "nowhere", "x" * 300):
        with pytest.raises((ValueError, OSError)):
            regular_file(folder, name)
    (tmp_path / "linked").symlink_to(folder)  # the folder itself may be one
    assert read_json(tmp_path / "linked", "a.json") == {"a": 1}
