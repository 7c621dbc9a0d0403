"""Names of other people never break a line, nor speak to a terminal."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from alexnet.weights.restricted_pickle import MOST, readable


def test_plain_names_stay_and_others_are_spelled_out():
    assert readable("conv1") == "conv1"
    assert readable("größe 2") == "größe 2"
    assert readable("a\nb\x1b[2Jc\u202e\ud800") == "a\\x0ab\\x1b[2Jc\\u202e\\ud800"
    assert readable(7) == "7"
    assert len(readable("x" * 10_000)) == MOST


@given(st.text())
def test_any_text_is_one_printable_line(text):
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in readable(text))  # Zs: spaces of other widths
