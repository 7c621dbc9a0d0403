"""Each check of the doctor, on hand-made images."""

import itertools
import re
import uuid

import numpy as np
import pytest

from alexnet.data.sources.options import group_images
from alexnet.data.sources.source import Sample, Source
from alexnet.doctor.duplicates import check_duplicates, duplicate_ids, find_duplicates
from alexnet.doctor.findings import Example, Finding, Report, by_severity
from alexnet.doctor.groups import check_groups
from alexnet.doctor.images import ImageDataset, ImageInfo, check_files, check_shapes
from alexnet.doctor.labels import check_classes, check_labels, counts_of, label_issues
from alexnet.doctor.shortcuts import check_colors, check_shortcuts
from alexnet.errors import DataError


def info(index, split="train", label=0, origin="", group="", **facts):
    one = ImageInfo(Sample(label, origin or f"{split}/{label}/{index}.png", bytes, group), split)
    draw = np.random.default_rng(index)
    values = {"sha256": f"{index:064x}", "size": 5000 + index, "width": 100, "height": 80, "format": "PNG"}
    one.thumbnail = np.kron(draw.integers(0, 256, (6, 6, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    for name, value in (values | facts).items():
        setattr(one, name, value)
    return one


def data(infos, classes=2, drawn=False):
    return ImageDataset("set", tuple("abcdefghijkl"[:classes]), infos, drawn)


def frames(name, object_of):
    """Five similar images of eight tracks in six classes, named by ``name``; the last one of each track is in test."""
    infos, draw = [], np.random.default_rng(0)
    for c, t, f in itertools.product(range(6), range(8), range(5)):
        object_ = info(object_of(c, t)).thumbnail.astype(int)
        thumbnail = np.clip(object_ + draw.integers(-20, 20, object_.shape), 0, 255).astype(np.uint8)
        values = {"g": (3 * f + t) % 7, "letter": "abcde"[f], "digest": f"{c}{t}{f}".zfill(32)}
        values |= {"view": ("left", "right", "front", "back", "top")[f], "uuid": uuid.UUID(int=t << 96)}
        values["name"] = ("anna", "bill", "eve", "kim", "lea", "max", "tom", "zoe")[t]
        origin = name.format(c="abcdef"[c], t=t, o=t, f=f, **values)
        infos.append(info(len(infos), "test" if f == 4 else "train", c, origin=origin, thumbnail=thumbnail))
    return infos


def many(count, **facts):
    return [info(i, split, i % 2, **facts) for i, split in enumerate(["train", "train", "train", "test"] * count)]


def copies(infos, **more):
    return check_duplicates(data(infos)._replace(**more), find_duplicates(infos))


def checks(findings):
    return {finding.check: finding for finding in findings}


def test_copies_within_across_and_under_two_labels():
    same = info(1).thumbnail
    infos = [
        *(info(1, origin="one"), info(2, origin="two", sha256=f"{1:064x}")),
        *(info(3, origin="c", thumbnail=same[::-1]), info(4, "test", origin="d", thumbnail=same[::-1])),
        *(info(5, origin="e", thumbnail=same[:, ::-1]), info(6, label=1, origin="f", thumbnail=same[:, ::-1])),
    ]
    found = checks(copies([*infos, info(9)]))
    assert found.keys() == {"duplicate", "leak", "two-labels"}
    assert found["duplicate"].exclude == ("two",) and found["duplicate"].severity == "warning"
    assert found["leak"].examples[0].origins == ("d", "c") and found["leak"].exclude == ("c",), "the test keeps its own"
    assert set(found["two-labels"].exclude) == {"e", "f"} and found["two-labels"].severity == "error"
    assert "a in train and b in train" in found["two-labels"].examples[0].why


def test_copies_are_counted_as_images_by_their_kind():
    """Groups are not images, byte-identical is not near-identical, and what the validation cut makes is no leak."""
    thumbnail = info(1).thumbnail
    near = [info(i, origin=f"near{i}", thumbnail=thumbnail) for i in range(10, 15)]
    near[1].sha256 = near[0].sha256
    same = [info(20 + i, origin=f"same{i}", thumbnail=thumbnail[::-1], sha256="7" * 64) for i in range(3)]
    [leak] = [one for one in copies([*near[:3], *same]) if one.check == "near-duplicate"]
    assert leak.what == "3 images (1 group of copies: 2 byte-identical, 1 near-identical) in one split"
    assert leak.numbers == {"groups": 1, "images": 3, "byte_identical": 2, "near_identical": 1}
    for one in near[2:]:
        one.split = "validation"
    assert checks(copies(near)).keys() == {"leak"}, "a validation split that the data brings is a split"
    cut = checks(copies([*near, *same], validation_drawn=True))
    assert cut.keys() == {"leak-validation", "duplicate"} and cut["leak-validation"].severity == "warning"
    assert (
        cut["leak-validation"].numbers["images"] == 5
        and "both in train and in validation" in cut["leak-validation"].what
    )
    assert cut["duplicate"].what.startswith("3 images (1 group of copies: 3 byte-identical)")
    assert cut["leak-validation"].examples[0].why == "near-identical: a in validation and a in train"
    near[4].split = "test"
    assert checks(copies(near, validation_drawn=True)).keys() == {"leak"}


def test_a_crowd_is_one_finding():
    infos = [info(i, thumbnail=info(0).thumbnail) for i in range(5)] + [info(7), info(8)]
    duplicate_sets = find_duplicates(infos)
    assert [len(own) for own in duplicate_sets] == [5]
    numbers = duplicate_ids(infos, duplicate_sets)
    assert len(set(numbers[:5].tolist())) == 1 and len(set(numbers.tolist())) == 3


def test_named_groups_across_splits():
    infos = [info(i, "train" if i < 6 else "test", i % 2, group=f"p{i % 4}") for i in range(8)]
    [finding] = check_groups(data(infos))
    assert finding.severity == "error" and len(finding.examples) == 2 and "2 groups" in finding.what
    assert set(finding.exclude) == {info.origin for info in infos if info.sample.group in ("p2", "p3")} - {
        infos[6].origin,
        infos[7].origin,
    }
    whole = [info(i, "train" if i % 4 < 2 else "test", group=f"p{i % 4}") for i in range(8)]
    assert list(check_groups(data(whole))) == []


@pytest.mark.parametrize(
    ("name", "pattern_has"),
    [
        ("x/patient{g:03d}_{i}.png", ")patient["),
        ("x/Cam-{g}/f{i}.jpg", ")cam["),
        ("x/2021-03-{g:02d}_{i}.png", r"(?:19|20)"),
    ],
)
def test_groups_are_predictioned_from_names(name, pattern_has):
    infos = [info(i, "train" if i % 3 else "test", i % 2, origin=name.format(g=1 + i // 3, i=i)) for i in range(60)]
    [finding] = check_groups(data(infos))
    assert finding.check == "group-suspected" and finding.severity == "warning" and len(finding.examples) == 20
    assert pattern_has in finding.numbers["pattern"] and finding.numbers["pattern"] in finding.todo
    apart = [info(i, "train" if i < 30 else "test", i % 2, origin=look_.origin) for i, look_ in enumerate(infos)]
    assert list(check_groups(data(apart))) == []


@pytest.mark.parametrize(
    "name",
    [
        "{c}/{t:05d}_{f:05d}.ppm",
        "train/{c}/{t:05d}_{f:05d}.ppm",
        "{c}/obj{t}-{f}.png",
        "{c}/video{t}_frame{f}.jpg",
        "{c}/v_{c}_g{t:02d}_c{f:02d}.jpg",
        "{c}/run{t}frame{f}.png",
        "{c}/{t}/{f}.png",
        "{c}/{c}_{t}_{f}_crop.png",
        "{c}/item{t} ({f}).jpg",
        "{c}/{t}{letter}.png",
        "{c}/{t}_{view}.jpeg",
        "{c}/{f:04d}_{c}{t}.png",
        "{c}/{c}{t}_jpg.rf.{digest}.jpg",
        "{c}/{t}_x{f}_y{g}.png",
        "{c}/{c}-{t:03d}-{f:02d}-{g}.bmp",
        "{c}/frame_{f}_of_{t}.png",
        "{c}/{f}_{t}.png",
        "{c}/{view}-{t}.jpg",
        "{c}/{letter}{t}.png",
        "{c}/{view}/{t}.png",
        "{c}/{t}/{view}/{f}.png",
        "{c}/TCGA-{c}{c}-{c}{t:03d}-01Z-00-DX1_{f}.png",
        "{c}/{name}_{view}.png",
        "{c}/{name}_{view}_{f}.png",
        "{c}/{name}-{digest}.png",
        "{c}/{view}_{name}.png",
        "{c}/{name}{f}.png",
        "{c}/{name}.{f}.png",
        "{c}/frame{f:05d}_{name}.png",
        "{c}/img{t}_{digest}.png",
        "{c}/{t}_{f}_{digest}.png",
        "{c}/scan({t})({f}).png",
    ],
)
def test_groups_that_are_named_anew_in_each_class_are_found(name):
    """Frame f of track t of a class: the track's number is another object in another class."""
    infos = frames(name, lambda c, t: 1000 * c + t)
    [finding] = check_groups(data(infos, 6))
    assert finding.check == "group-suspected" and len(finding.examples) == 48, finding.what
    assert "48 groups (240 images)" in finding.what
    names = group_images(
        Source("x", tuple("abcdef"), {"all": tuple(info.sample for info in infos)}, ""),
        pattern=finding.numbers["pattern"],
    )
    assert len({image.group for image in names.splits["all"]}) == 48, "the pattern that is recommended groups so"


@pytest.mark.parametrize(
    "name",
    [
        "{c}/{o}_{f}.png",
        "{c}/patient{o:02d}_{f}.png",
        "{c}/IMG_20200101_patient{o:02d}_{f}.png",
        "{c}/cam{o}-{f:04d}.png",
        "{c}/scan({o})({f}).png",
        "{c}/{uuid}_{f}.png",
        "{c}/{name}/{f}.png",
        "{c}/{name}_{view}.png",
        "{o}_{c}_{f}.png",
        "{c}/{f}-{o}.png",
        "{c}/{view}/{o}.png",
        "{c}/{o}_{f}_1.png",
        "{c}/sub-{o:03d}_ses-{f:02d}_T1w.png",
        "{o}_{c}_{f}_x.png",
        "{c}/{f}_{uuid}.png",
    ],
)
def test_a_group_with_images_of_several_classes_is_found_whole(name):
    """Object o is in every class: a pattern that looks into each folder alone would leave it in two splits."""
    infos = frames(name, lambda c, o: 1000 + o)
    [finding] = check_groups(data(infos, 6))
    assert finding.check == "group-suspected" and "8 groups (240 images)" in finding.what, finding.what


def test_an_example_of_a_group_shows_each_split_first_and_names_all():
    infos = [info(i, "train" if i < 9 else "test", i % 2, group=f"p{i % 2}") for i in range(12)]
    [finding] = check_groups(data(infos))
    first = finding.examples[0]
    assert len(first.origins) == 6 and {origin.split("/")[0] for origin in first.origins[:2]} == {"train", "test"}
    assert finding.what.startswith("2 groups (12 images) are in two splits")


def test_a_name_and_a_number_is_a_group_only_if_its_images_are_alike():
    names = [f"x/{chr(97 + i // 4)}_{i}.png" for i in range(60)]
    split = ["train", "train", "train", "test"]
    infos = [info(i, split[i % 4], i % 2, origin=name) for i, name in enumerate(names)]
    assert list(check_groups(data(infos))) == []
    draw = np.random.default_rng(0)
    for i, one in enumerate(infos):
        noise = draw.integers(-60, 60, one.thumbnail.shape)
        one.thumbnail = np.clip(infos[4 * (i // 4)].thumbnail.astype(int) + noise, 0, 255).astype(np.uint8)
    [finding] = check_groups(data(infos))
    assert finding.check == "group-suspected" and len(finding.examples) == 15


@pytest.mark.parametrize("name", ["x/{i}.png", "x/img_{i}.png", "n0144{k}_{i}.JPEG", "ILSVRC2012_val_0000{i}.JPEG"])
def test_ordinary_names_are_no_groups(name):
    infos = [info(i, "train" if i % 3 else "test", i % 2, origin=name.format(i=i, k=i % 2)) for i in range(60)]
    assert list(check_groups(data(infos))) == []


def test_classes_that_are_missing_few_or_unequal():
    infos = [info(i, "train", 0) for i in range(110)] + [info(200 + i, "test", 0) for i in range(10)]
    infos += [info(300 + i, "train", 1) for i in range(20)] + [info(400, "test", 2), info(401, "train", 3, error="bad")]
    found = list(check_classes(data(infos, 4), []))
    assert counts_of(data(infos, 4)) == {"train": (110, 20, 0, 0), "validation": (0,) * 4, "test": (10, 0, 1, 0)}
    errors = [finding.what for finding in found if finding.severity == "error"]
    assert errors == ["2 classes have no usable training image: 'c', 'd'"]
    assert any("test has no image of 'b'" in finding.what for finding in found)
    nine = [info(i, "train", 0) for i in range(30)] + [info(40 + i, "test", i) for i in range(10)]
    whats = [finding.what for finding in check_classes(data(nine, 10), [])]
    assert any(what.endswith("'i' and 1 more class") for what in whats), whats
    one = [info(i, "train", i % 3) for i in range(90)] + [info(90 + i, "test", i % 2) for i in range(30)]
    assert any("no image of 'c': its accuracy" in finding.what for finding in check_classes(data(one, 3), []))
    [unequal] = [finding for finding in found if finding.check == "imbalance"]
    assert unequal.numbers["ratio"] == 5.5 and "85 % accuracy" in unequal.what
    even = [info(i, split, i % 2) for i, split in enumerate(["train"] * 60 + ["test"] * 30)]
    assert list(check_classes(data(even), [])) == []


def test_many_faults_and_missing_classes_of_one_kind_are_one_finding():
    problems = [DataError(f"set: class folder 'empty{i}' holds no image", "", "remove it") for i in range(300)]
    found = list(check_classes(data([info(0)], 12), [*problems, DataError("set: another fault", "", "mend it")]))
    assert [(one.what, one.todo, len(one.examples)) for one in found if one.check == "refused"] == [
        ("set: class folder 'empty0' holds no image (and 299 more like this)", "remove it", 299),
        ("set: another fault", "mend it", 0),
    ]
    assert len([one for one in found if one.check == "class-missing"]) == 1


def test_shapes_and_what_the_center_cut_loses():
    infos = [info(i, width=400, height=100) for i in range(3)] + [info(9, width=100, height=90)]
    found = checks(check_shapes(data(infos)))
    assert found.keys() == {"center-cut"} and found["center-cut"].severity == "warning"
    assert found["center-cut"].numbers["mean"] == pytest.approx((3 * 0.75 + 0.1) / 4)
    assert found["center-cut"].numbers["over_half"] == 3 and found["center-cut"].examples[0].why == "75 % removed"
    odd = checks(check_shapes(data([*many(3), info(50, width=6, height=6), info(51, width=900, height=100)])))
    assert [example.why for example in odd["tiny"].examples] == ["6 × 6"]
    assert [example.why for example in odd["elongated"].examples] == ["900 × 100"]
    assert odd["tiny"].exclude == ("train/0/50.png",) and odd["center-cut"].severity == "note"
    small = checks(check_shapes(data(many(3, width=8, height=8))))
    assert small.keys() == {"small"}, "a whole set of small images has no tiny ones"
    assert list(check_shapes(data([]))) == []


def test_files_are_named_with_their_reason():
    infos = [info(1, error="a/1.png: is empty"), info(2, notes=("truncated",)), info(3, notes=("PNG named .jpg",))]
    found = checks(check_files(data(infos)))
    assert found.keys() == {"unreadable", "truncated", "misnamed"}
    assert found["truncated"].what == "1 image is truncated and will be left out"
    assert found["truncated"].exclude == ("train/0/2.png",) and found["misnamed"].exclude == ()


@pytest.mark.parametrize("by", ["size", "format", "bytes", "border", "color", ""])
def test_a_shortcut_is_found_by_what_it_is(by):
    infos = []
    for i in range(120):
        one, first = info(i, "train" if i % 4 else "test", i % 2), i % 2 == 0
        one.size = 4000 + int(np.random.default_rng(i).integers(0, 3000)) + 9000 * (by == "bytes" and first)
        if by == "size" and first:
            one.width, one.height = 120, 100
            one.size = one.size * 3 // 2  # as many bytes a pixel
        one.format = "JPEG" if by == "format" and first else "PNG"
        if by == "border" and first:
            one.thumbnail[:1], one.thumbnail[-1:] = 250, 250
        if by == "color" and first:
            one.thumbnail[:] = one.thumbnail.mean(axis=2, keepdims=True)
        infos.append(one)
    [finding] = check_shortcuts(data(infos))
    if by:
        assert finding.check == "shortcut" and f"from {by}" in finding.what.replace("size and bytes", "size")
        assert finding.numbers["reached"][by]["accuracy"] > 0.9 and "chance is 50 %" in finding.what
    else:
        assert finding.check == "no-shortcut" and finding.severity == "note"
        assert all(one["p_value"] > 0.001 for one in finding.numbers["reached"].values())
    assert {f.check for f in check_colors(data(infos))} == ({"some-gray"} if by == "color" else set())


def test_half_right_of_twelve_classes_by_the_border_is_a_shortcut():
    """As with 51 % where chance is 8 %. With the tracks kept together the same border tells nothing."""
    infos, draw = [], np.random.default_rng(0)
    for i in range(480):
        one = info(i, label=i % 12)
        color = np.array([i % 12 * 20, (i % 12) % 4 * 60, 90])
        ring = np.ones((24, 24), bool)
        ring[1:-1, 1:-1] = False
        one.thumbnail[ring] = np.clip(color + draw.normal(0, 33, 3), 0, 255).astype(np.uint8)
        infos.append(one)
    [finding] = check_shortcuts(data(infos, 12))
    reached = finding.numbers["reached"]["border"]
    assert 0.4 < reached["accuracy"] < 0.6 and reached["p_value"] < 1e-9
    assert finding.check == "shortcut" and "from border" in finding.what and "chance is 8.3 %" in finding.what


def test_a_border_that_goes_with_the_group_is_no_shortcut():
    infos, draw = [], np.random.default_rng(0)
    for group in range(24):
        color = draw.integers(0, 256, 3)
        for i in range(16):
            one = info(16 * group + i, label=group % 2, group=f"track{group}")
            one.thumbnail[[0, -1]], one.thumbnail[:, [0, -1]] = color, color
            infos.append(one)
    [finding] = check_shortcuts(data(infos))
    reached = finding.numbers["reached"]["border"]
    assert reached["accuracy_without_groups"] > 0.8 > 0.7 > reached["accuracy"]
    assert finding.check == "no-shortcut" and "% with groups kept together)" in finding.what


def test_a_gray_data_set():
    infos = many(3)
    for one in infos:
        one.thumbnail[:] = one.thumbnail[..., :1]
    assert checks(check_colors(data(infos))).keys() == {"gray"}
    assert list(check_shortcuts(data([]))) == [] and list(check_colors(data([]))) == []


def test_wrong_labels_are_found_by_a_classifier_that_has_not_seen_them():
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(2, 200)) * 2
    labels = np.arange(120) % 2
    features = (centers[labels] + draw.normal(size=(120, 200))).astype(np.float32)
    infos = [info(i, label=int(label)) for i, label in enumerate(labels)]
    assert list(check_labels(data(infos), infos, [], features)) == []
    for wrong in (10, 33):
        infos[wrong] = info(wrong, label=int(1 - labels[wrong]))
    [finding] = check_labels(data(infos), infos, [], features)
    assert {example.origins[0] for example in finding.examples} == {infos[10].origin, infos[33].origin}
    assert finding.numbers["agree"] == 118 / 120 and "98 % of all labels, so some of these are" in finding.what
    assert finding.numbers["suggested"] == {infos[10].origin: "a", infos[33].origin: "b"}
    whys = " ".join(example.why for example in finding.examples)
    assert re.search(r"labeled b \(\d+ % likely\); a is \d+ % likely", whys)


def test_a_copy_does_not_confirm_a_wrong_label():
    """With its copy in another fold, the classifier has seen the wrong label; copies stay in one fold."""
    draw = np.random.default_rng(1)
    labels = np.arange(60) % 2
    features = (draw.normal(size=(2, 600))[labels] + draw.normal(size=(60, 600))).astype(np.float32)
    features[1:13] = features[1]
    infos = [info(i, label=0 if 1 <= i < 13 else int(label)) for i, label in enumerate(labels)]

    def doubted(duplicate_sets):
        found = [f for f in check_labels(data(infos), infos, duplicate_sets, features) for f in f.examples]
        return {example.origins[0] for example in found} & {one.origin for one in infos[1:13]}

    assert doubted([infos[1:13]]) == {one.origin for one in infos[1:13]} and doubted([]) == set()


def test_small_classes_and_single_classes_are_not_checked():
    draw = np.random.default_rng(2)
    infos = [info(i, label=int(i >= 20)) for i in range(24)]
    features = draw.normal(size=(24, 8)).astype(np.float32)
    assert list(check_labels(data(infos), infos, [], features)) == []
    assert list(check_labels(data([]), [], [], features[:0])) == []


def test_label_issues_against_the_definition():
    draw = np.random.default_rng(3)
    probabilities, labels = draw.dirichlet(np.ones(4), 200), draw.integers(0, 3, 200)  # no image of class 3
    expected = {}
    for i, row in enumerate(probabilities):
        reached = {}
        for k in range(3):
            threshold = np.mean([probabilities[j, k] for j in range(200) if labels[j] == k])
            if row[k] >= threshold:
                reached[k] = row[k]
        if reached and (best := max(reached, key=reached.get)) != labels[i]:
            expected[i] = best
    issues = label_issues(probabilities, labels)
    assert dict(zip(issues.indices.tolist(), issues.suggested.tolist(), strict=True)) == expected and len(expected) > 20
    assert (np.diff(probabilities[issues.indices, labels[issues.indices]]) >= 0).all()


def test_the_report_in_words_and_values():
    worst, note = Finding("leak", "error", "w", "t", (Example(("a", "b"), "y"),), ("b",)), Finding("x", "note", "n")
    report = Report("set", ("a", "b"), {"train": (1, 2)}, False, by_severity([note, worst]))
    assert report.findings == (worst, note) and not report.honest and "1 problem would" in report.verdict
    assert report.exclusion_list().splitlines()[1:] == ["b\tleak"]
    assert report.to_dict()["findings"][0]["examples"] == [{"images": ["a", "b"], "why": "y"}]
    mild = Report("set", ("a", "b"), {}, False, (Finding("x", "warning", "n"),))
    assert mild.honest and "Read 1 warning first" in mild.verdict


def test_hints_for_one_image_are_in_the_singular():
    hints = []
    for count in (1, 2):
        broken = [info(i, error=f"{i} is broken") for i in range(count)]
        truncated = [info(10 + i, notes=("truncated",)) for i in range(count)]
        tiny = [info(20 + i, width=4, height=4) for i in range(count)]
        images = data([*broken, *truncated, *tiny, *many(5)])
        findings = checks([*check_files(images), *check_shapes(images)])
        hints.append([findings[name].todo for name in ("unreadable", "truncated", "tiny")])
    assert hints == [
        ["replace or remove it", "get the file again, or pass --allow-truncated", "remove it: it has too few pixels"],
        [
            "replace or remove them",
            "get the files again, or pass --allow-truncated",
            "remove them: they have too few pixels",
        ],
    ]
