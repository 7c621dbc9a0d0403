"""Every planted fault is found and none is invented; what the doctor would leave out mends the data set."""

from dataclasses import replace

import pytest

from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.data.sources.options import exclude_images
from alexnet.doctor.examine import examine

from .faulty_data import KINDS, contents, diagnose, found, healthy, paint, plant, saved, write


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted") / "set"
    expected = plant(root)
    before = contents(root)
    report = diagnose(root)
    assert contents(root) == before, "the doctor changes nothing"
    return root, expected, report


def test_all_planted_faults_are_found_and_none_invented(planted):
    _, expected, report = planted
    assert found(report) == expected and len(expected) >= 20
    assert not report.honest and "Do not train on this data yet" in report.verdict
    assert [finding.severity for finding in report.findings] == sorted(
        (finding.severity for finding in report.findings), key=["error", "warning", "note"].index
    )
    errors = {finding.check for finding in report.findings if finding.severity == "error"}
    assert errors == {"leak", "two-labels", "refused"}


def test_the_exclusion_list_mends_what_leaving_out_can_mend(planted, tmp_path):
    root, _, report = planted
    listed = tmp_path / "list.txt"
    listed.write_text(report.exclusion_list())
    source = exclude_images(open_source(root, problems=[]), listed)
    again = examine(source)
    errors = {finding.check for finding in again.findings if finding.severity == "error"}
    assert errors == {"class-missing"}, "an empty class is not mended by leaving images out"
    checks = {finding.check for finding in again.findings}
    assert not checks & {"leak", "two-labels", "duplicate", "near-duplicate", "unreadable", "truncated", "bomb", "tiny"}


def test_a_healthy_data_set_is_healthy(tmp_path):
    report = diagnose(healthy(tmp_path / "set", {"train": 24, "val": 10, "test": 10}))
    assert found(report) == {} and report.honest and report.verdict.startswith("Ready for training: no problems")
    assert report.exclusions() == {} and report.counts["test"] == (10, 10, 10)


def test_what_only_looks_like_a_fault_is_none(tmp_path):
    """Similar images, plain ones, names with numbers, one odd size: no copies."""
    root = healthy(tmp_path / "set", {"": 51})
    for index in range(6):  # one background, another subject
        write(root / KINDS[index % 3] / f"same-{index}.png", saved(paint(5000 + index // 3, index % 3)))
    for index in range(9):  # plain colors
        write(root / KINDS[index % 3] / f"plain-{index}.png", saved(paint(1).resize((1, 1)).resize((70 + index, 70))))
    report = diagnose(root)
    assert [finding.what for finding in report.findings if finding.severity == "error"] == []
    assert found(report).keys() <= {
        "group-suspected",
        "blank",
    }  # its patients are in splits that are drawn image by image


def test_groups_that_are_named_are_drawn_whole(tmp_path):
    from alexnet.data.sources.options import group_images

    root = healthy(tmp_path / "set", {"": 60})
    assert "group-suspected" in found(diagnose(root))
    report = examine(group_images(open_source(root), pattern=r"patient(\d+)"))
    assert found(report) == {} and report.honest


def test_what_the_doctor_excludes_prepare_leaves_out(planted, tmp_path):
    root, _, report = planted
    (root / "train/hollow").rmdir()
    listed = tmp_path / "list.txt"
    listed.write_text(report.exclusion_list())
    source = exclude_images(open_source(root), listed)
    store = prepare(source, tmp_path / "store", size=8)
    origins = {row["origin"] for split in store.splits.values() for row in split.origins()}
    assert not origins & source.excluded and store.skipped == 0
    assert origins | source.excluded == {p.origin for own in source.splits.values() for p in own}
    (root / "train/hollow").mkdir()


def test_one_note_is_one_line_and_each_phase_has_its_progress(tmp_path):
    source = open_source(healthy(tmp_path / "set", {"": 24}))
    notes = [f"row {i}: path 'x\\{i}.png' was read with /" for i in range(401)]
    bars: dict[str, list[tuple[int, int]]] = {}

    def bar(phase):
        return lambda done, total: bars.setdefault(phase, []).append((done, total))

    report = examine(replace(source, notes=(*notes, "another note")), progress=bar)
    reading = [finding for finding in report.findings if finding.check == "reading"]
    assert [finding.what for finding in reading] == [f"{notes[0]} (and 400 more like this)", "another note"]
    assert len(reading[0].examples) == 400
    assert bars.keys() == {"looking", "comparing", "looking for shortcuts"}
    assert all(own[-1][0] == own[-1][1] and own == sorted(own) for own in bars.values())
