"""A review: suggested decisions, the file they are saved in, and what is refused."""

import os

import pytest

from alexnet.data.sources.corrections import Decision, read_corrections, write_corrections
from alexnet.data.sources.source import Sample
from alexnet.errors import DataError
from alexnet.review.session import Case, Change, Session, Topic

from .conftest import review_of


def index(session, origin):
    return [image.origin for image in session.images].index(origin)


def topic(session, name):
    return next(topic for topic in session.to_dict()["topics"] if topic["name"] == name)


def test_suggestions_follow_the_findings(review):
    page = review.to_dict()
    assert page["classes"] == ["cats", "dogs", "owls"] and page["file"].endswith("images.labels.csv")
    doubted = topic(review, "label-doubt")["cases"][0]
    assert page["images"][doubted["images"][0]] == {
        "origin": "cats/wrong.png",
        "split": page["images"][doubted["images"][0]]["split"],
        "label": "cats",
        "decision": None,
    }
    assert doubted["suggested"] == [{"action": "relabel", "label": "dogs"}] and "labeled cats" in doubted["why"]
    [broken] = topic(review, "unreadable")["cases"]
    assert broken["suggested"] == [{"action": "exclude", "label": ""}]
    names = {one["name"] for one in page["topics"]}
    copies = topic(review, "duplicate" if "duplicate" in names else "leak")["cases"]
    assert [one is None for one in copies[0]["suggested"]] == [True, False], "the first copy stays"
    assert not any(one["severity"] == "note" for one in page["topics"])


def test_decisions_are_saved_at_once_and_read_again(faulty_images, review):
    wrong, blank = index(review, "cats/wrong.png"), index(review, "dogs/blank.png")
    review.decide([Change(wrong, "relabel", "dogs"), Change(blank, "keep")])
    expected = {"cats/wrong.png": Decision("relabel", "dogs", "cats"), "dogs/blank.png": Decision("keep", "", "dogs")}
    assert read_corrections(review.path) == expected
    review.decide([Change(blank, None)])
    assert read_corrections(review.path) == {"cats/wrong.png": expected["cats/wrong.png"]}
    review.decide([Change(blank, "keep")])
    again = review_of(faulty_images, review.path)
    names = [one["name"] for one in again.to_dict()["topics"]]
    assert "blank" not in names, "what is kept is not reported again"
    doubts = topic(again, "label-doubt")["cases"] if "label-doubt" in names else []
    assert all(again.images[case["images"][0]].origin != "cats/wrong.png" for case in doubts)
    decided = topic(again, "decided")["cases"]
    assert {again.images[case["images"][0]].origin for case in decided} == set(expected)
    again.decide([Change(index(again, "cats/wrong.png"), "exclude")])
    assert read_corrections(again.path)["cats/wrong.png"] == Decision("exclude", "", "cats")


def test_all_changes_are_made_or_none(review):
    wrong = index(review, "cats/wrong.png")
    for change, message in [
        (Change(999, "keep"), "image 999 is not in this review"),
        (Change(-1, "keep"), "image -1 is not in this review"),
        (Change(wrong, "drop"), "action 'drop'"),
        (Change(wrong, "add", "dogs"), "action 'add'"),
        (Change(wrong, "relabel", "dgos"), "class 'dgos': Did you mean 'dogs'"),
        (Change(wrong, "keep", "dogs"), "has no class"),
    ]:
        with pytest.raises(ValueError, match=message):
            review.decide([Change(wrong, "exclude"), change])
    assert review.decisions == {} and not review.path.exists()


def test_a_file_that_was_changed_meanwhile_is_not_overwritten(review):
    wrong = index(review, "cats/wrong.png")
    review.decide([Change(wrong, "exclude")])
    write_corrections(review.path, {"cats/00.png": Decision("keep", "", "cats")})
    with pytest.raises(DataError, match="was changed by another program"):
        review.decide([Change(wrong, "keep")])
    assert read_corrections(review.path) == {"cats/00.png": Decision("keep", "", "cats")}
    assert review.decisions["cats/wrong.png"].action == "exclude"


def test_decisions_on_other_images_stay_and_other_files_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    write_corrections(path, {"cats/far.png": Decision("exclude", "", "cats")})
    new = {"new/1.png": Sample(0, "new/1.png", bytes)}
    scores = (("dogs", 0.6), ("cats", 0.4))
    session = Session(
        "new", ("cats", "dogs"), {}, new, [Topic("t", "note", "", "", (Case(("new/1.png",), "", {}, scores),))], path
    )
    assert session.to_dict()["topics"][0]["cases"][0]["scores"][0] == {"label": "dogs", "score": 0.6}
    with pytest.raises(ValueError, match="action 'relabel'"):
        session.decide([Change(0, "relabel", "dogs")])
    session.decide([Change(0, "add", "dogs")])
    assert read_corrections(path) == {
        "cats/far.png": Decision("exclude", "", "cats"),
        "new/1.png": Decision("add", "dogs", ""),
    }
    path.write_text("path,label\na.png,cats\n")
    with pytest.raises(DataError, match="first line is 'path,label'"):
        Session("new", ("cats", "dogs"), {}, new, [], path)


def test_a_corrections_file_that_never_ends_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"x\.csv: cannot be read \(not a regular file\)"):
        Session("new", ("cats", "dogs"), {}, {}, [], tmp_path / "x.csv")
