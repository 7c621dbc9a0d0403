"""The page needs nothing from outside, and no file name or class name gets a word in it as HTML."""

import re
from html.parser import HTMLParser

import pytest

from alexnet.data.sources.source import Sample, Source
from alexnet.doctor.findings import Example, Finding, Report, page, write_page
from alexnet.errors import DataError

from .faulty_data import paint, saved

EVIL = '<script>alert("x")</script>'


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.opened, self.closed, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.opened.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])

    def handle_endtag(self, tag):
        self.closed.append(tag)


def report(count=30):
    cases = tuple(Example((f"{EVIL}{i}", "bad.jpg"), f"why {EVIL}") for i in range(count))
    findings = (Finding("leak", "error", f"what {EVIL}", f"do {EVIL}", cases, ("bad.jpg",)),)
    return Report(EVIL, (EVIL, "b"), {"train": (5, 0), "test": (1, 1)}, True, findings)


def images():
    good = {f"{EVIL}{i}": Sample(0, f"{EVIL}{i}", lambda: saved(paint(1))) for i in range(30)}
    return good | {"bad.jpg": Sample(0, "bad.jpg", lambda: b"<html>")}


def test_nothing_is_taken_from_outside_and_all_is_escaped():
    text = page(report(), images())
    tags = Tags(text)
    assert "script" not in tags.opened and "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)=\"(?!data:image/jpeg;base64,)", text) and "url(" not in text
    void = {"meta", "img"}
    assert sorted(tag for tag in tags.opened if tag not in void) == sorted(tags.closed)
    assert "prefers-color-scheme: dark" in text and "Content-Security-Policy" in text


def test_thumbnails_are_shown_up_to_a_number_and_missing_ones_said():
    text = page(report(), images())
    assert len(Tags(text).images) == 12 and text.count("no image</div>") == 12 and "and 18 more" in text
    assert '<td class="zero">0</td>' in text and "the splits that training would make" in text
    assert len(text) < 200_000


def test_it_is_written_whole_or_refused(tmp_path):
    source = Source("x", ("a", "b"), {"all": tuple(images().values())}, "f")
    write_page(report(), source, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(DataError, match="cannot be written"):
        write_page(report(), source, tmp_path / "no" / "page.html")


def test_what_does_not_fit_beside_six_thumbnails_is_counted():
    case = Example(tuple(f"{EVIL}{i}" for i in range(9)), "near-identical")
    text = page(Report("x", ("a", "b"), {}, False, (Finding("leak", "error", "w", "t", (case,)),)), images())
    assert len(Tags(text).images) == 6 and text.count("+3 more") == 1
    few = Finding("leak", "error", "w", "t", (Example(case.origins[:6]),))
    assert "more" not in page(Report("x", ("a", "b"), {}, False, (few,)), images()).split("</style>")[1]


def test_a_long_class_name_does_not_fill_the_page():
    long = Report("x", ("y" * 10_000, "b"), {"train": (5, 0)}, True, ())
    assert "y" * 199 + "…" in page(long, {}) and "y" * 200 not in page(long, {})
