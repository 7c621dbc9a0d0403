"""Each check alone, on looks made by hand."""

import numpy as np
import pytest

from alexnet.data.sources.selection import group_images
from alexnet.data.sources.source import Sample, Source
from alexnet.doctor.balance import check_classes, counts_of
from alexnet.doctor.duplicates import check_duplicates, crowd_numbers, same_images
from alexnet.doctor.findings import Example, Finding, Report, by_severity
from alexnet.doctor.groups import check_groups
from alexnet.doctor.images import ImageInfo, Seen, check_files, check_shapes
from alexnet.doctor.labels import check_labels, neighbor_shares
from alexnet.doctor.shortcuts import check_colors, check_shortcuts
from alexnet.errors import DataError


def look(index, split="train", label=0, origin="", group="", **facts):
    one = ImageInfo(Sample(label, origin or f"{split}/{label}/{index}.png", bytes, group), split)
    draw = np.random.default_rng(index)
    values = {"sha256": f"{index:064x}", "size": 5000 + index, "width": 100, "height": 80, "format": "PNG"}
    one.thumb = np.kron(draw.integers(0, 256, (6, 6, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    for name, value in (values | facts).items():
        setattr(one, name, value)
    return one


def data(looks, classes=2, drawn=False):
    return Seen("set", tuple("abcdefghijkl"[:classes]), looks, drawn)


def many(count, **facts):
    return [look(i, split, i % 2, **facts) for i, split in enumerate(["train", "train", "train", "test"] * count)]


def copies(looks, **more):
    return check_duplicates(data(looks)._replace(**more), same_images(looks))


def checks(findings):
    return {finding.check: finding for finding in findings}


def test_copies_within_across_and_under_two_labels():
    same = look(1).thumb
    looks = [
        *(look(1, origin="one"), look(2, origin="two", sha256=f"{1:064x}")),
        *(look(3, origin="c", thumb=same[::-1]), look(4, "test", origin="d", thumb=same[::-1])),
        *(look(5, origin="e", thumb=same[:, ::-1]), look(6, label=1, origin="f", thumb=same[:, ::-1])),
    ]
    found = checks(copies([*looks, look(9)]))
    assert found.keys() == {"duplicate", "leak", "two-labels"}
    assert found["duplicate"].exclude == ("two",) and found["duplicate"].severity == "warning"
    assert found["leak"].examples[0].origins == ("d", "c") and found["leak"].exclude == ("c",), "the test keeps its own"
    assert set(found["two-labels"].exclude) == {"e", "f"} and found["two-labels"].severity == "error"
    assert "a in train and b in train" in found["two-labels"].examples[0].why


def test_copies_are_counted_as_images_by_their_kind():
    """Groups are not images, byte-identical is not near-identical, and what the validation cut makes is no leak."""
    thumb = look(1).thumb
    near = [look(i, origin=f"near{i}", thumb=thumb) for i in range(10, 15)]
    near[1].sha256 = near[0].sha256
    same = [look(20 + i, origin=f"same{i}", thumb=thumb[::-1], sha256="7" * 64) for i in range(3)]
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
    looks = [look(i, thumb=look(0).thumb) for i in range(5)] + [look(7), look(8)]
    crowds = same_images(looks)
    assert [len(own) for own in crowds] == [5]
    numbers = crowd_numbers(looks, crowds)
    assert len(set(numbers[:5].tolist())) == 1 and len(set(numbers.tolist())) == 3


def test_named_groups_across_splits():
    looks = [look(i, "train" if i < 6 else "test", i % 2, group=f"p{i % 4}") for i in range(8)]
    [finding] = check_groups(data(looks))
    assert finding.severity == "error" and len(finding.examples) == 2 and "2 groups" in finding.what
    assert set(finding.exclude) == {look.origin for look in looks if look.image.group in ("p2", "p3")} - {
        looks[6].origin,
        looks[7].origin,
    }
    whole = [look(i, "train" if i % 4 < 2 else "test", group=f"p{i % 4}") for i in range(8)]
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
    looks = [look(i, "train" if i % 3 else "test", i % 2, origin=name.format(g=1 + i // 3, i=i)) for i in range(60)]
    [finding] = check_groups(data(looks))
    assert finding.check == "group-suspected" and finding.severity == "warning" and len(finding.examples) == 20
    assert pattern_has in finding.numbers["pattern"] and finding.numbers["pattern"] in finding.todo
    apart = [look(i, "train" if i < 30 else "test", i % 2, origin=look_.origin) for i, look_ in enumerate(looks)]
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
    ],
)
def test_groups_that_are_named_anew_in_each_class_are_found(name):
    """Frame f of track t of a class: the track's number is another object in another class."""
    looks, draw = [], np.random.default_rng(0)
    for c in range(6):
        for t in range(8):
            object_ = look(1000 * c + t).thumb.astype(int)
            for f in range(5):
                thumb = np.clip(object_ + draw.integers(-20, 20, object_.shape), 0, 255).astype(np.uint8)
                origin = name.format(c="abcdef"[c], t=t, f=f)
                looks.append(look(len(looks), "test" if f == 4 else "train", c, origin=origin, thumb=thumb))
    [finding] = check_groups(data(looks, 6))
    assert finding.check == "group-suspected" and len(finding.examples) == 48, finding.what
    assert "48 groups (240 images)" in finding.what
    names = group_images(
        Source("x", tuple("abcdef"), {"all": tuple(one.image for one in looks)}, ""),
        pattern=finding.numbers["pattern"],
    )
    assert len({image.group for image in names.splits["all"]}) == 48, "the pattern that is recommended groups so"


def test_an_example_of_a_group_shows_each_split_first_and_names_all():
    looks = [look(i, "train" if i < 9 else "test", i % 2, group=f"p{i % 2}") for i in range(12)]
    [finding] = check_groups(data(looks))
    first = finding.examples[0]
    assert len(first.origins) == 6 and {origin.split("/")[0] for origin in first.origins[:2]} == {"train", "test"}
    assert finding.what.startswith("2 groups (12 images) are in two splits")


def test_a_name_and_a_number_is_a_group_only_if_its_images_are_alike():
    names = [f"x/{chr(97 + i // 4)}_{i}.png" for i in range(60)]
    split = ["train", "train", "train", "test"]
    looks = [look(i, split[i % 4], i % 2, origin=name) for i, name in enumerate(names)]
    assert list(check_groups(data(looks))) == []
    draw = np.random.default_rng(0)
    for i, one in enumerate(looks):
        noise = draw.integers(-60, 60, one.thumb.shape)
        one.thumb = np.clip(looks[4 * (i // 4)].thumb.astype(int) + noise, 0, 255).astype(np.uint8)
    [finding] = check_groups(data(looks))
    assert finding.check == "group-suspected" and len(finding.examples) == 15


@pytest.mark.parametrize("name", ["x/{i}.png", "x/img_{i}.png", "n0144{k}_{i}.JPEG", "ILSVRC2012_val_0000{i}.JPEG"])
def test_ordinary_names_are_no_groups(name):
    looks = [look(i, "train" if i % 3 else "test", i % 2, origin=name.format(i=i, k=i % 2)) for i in range(60)]
    assert list(check_groups(data(looks))) == []


def test_classes_that_are_missing_few_or_unequal():
    looks = [look(i, "train", 0) for i in range(110)] + [look(200 + i, "test", 0) for i in range(10)]
    looks += [look(300 + i, "train", 1) for i in range(20)] + [look(400, "test", 2), look(401, "train", 3, error="bad")]
    found = list(check_classes(data(looks, 4), []))
    assert counts_of(data(looks, 4)) == {"train": (110, 20, 0, 0), "validation": (0,) * 4, "test": (10, 0, 1, 0)}
    errors = [finding.what for finding in found if finding.severity == "error"]
    assert errors == ["2 classes have no usable training image: 'c', 'd'"]
    assert any("test has no image of 'b'" in finding.what for finding in found)
    [unequal] = [finding for finding in found if finding.check == "imbalance"]
    assert unequal.numbers["ratio"] == 5.5 and "85 % accuracy" in unequal.what
    even = [look(i, split, i % 2) for i, split in enumerate(["train"] * 60 + ["test"] * 30)]
    assert list(check_classes(data(even), [])) == []


def test_many_faults_and_missing_classes_of_one_kind_are_one_finding():
    problems = [DataError(f"set: class folder 'empty{i}' holds no image", "", "remove it") for i in range(300)]
    found = list(check_classes(data([look(0)], 12), [*problems, DataError("set: another fault", "", "mend it")]))
    assert [(one.what, one.todo, len(one.examples)) for one in found if one.check == "refused"] == [
        ("set: class folder 'empty0' holds no image (and 299 more like this)", "remove it", 299),
        ("set: another fault", "mend it", 0),
    ]
    assert len([one for one in found if one.check == "class-missing"]) == 1


def test_shapes_and_what_the_center_cut_loses():
    looks = [look(i, width=400, height=100) for i in range(3)] + [look(9, width=100, height=90)]
    found = checks(check_shapes(data(looks)))
    assert found.keys() == {"center-cut"} and found["center-cut"].severity == "warning"
    assert found["center-cut"].numbers["mean"] == pytest.approx((3 * 0.75 + 0.1) / 4)
    assert found["center-cut"].numbers["over_half"] == 3 and found["center-cut"].examples[0].why == "75 % removed"
    odd = checks(check_shapes(data([*many(3), look(50, width=6, height=6), look(51, width=900, height=100)])))
    assert [example.why for example in odd["tiny"].examples] == ["6 × 6"]
    assert [example.why for example in odd["elongated"].examples] == ["900 × 100"]
    assert odd["tiny"].exclude == ("train/0/50.png",) and odd["center-cut"].severity == "note"
    small = checks(check_shapes(data(many(3, width=8, height=8))))
    assert small.keys() == {"small"}, "a whole set of small images has no tiny ones"
    assert list(check_shapes(data([]))) == []


def test_files_are_named_with_their_reason():
    looks = [look(1, error="a/1.png: is empty"), look(2, notes=("truncated",)), look(3, notes=("PNG named .jpg",))]
    found = checks(check_files(data(looks)))
    assert found.keys() == {"unreadable", "truncated", "misnamed"}
    assert found["truncated"].what == "1 image is truncated and will be left out"
    assert found["truncated"].exclude == ("train/0/2.png",) and found["misnamed"].exclude == ()


@pytest.mark.parametrize("by", ["size", "format", "bytes", "border", "color", ""])
def test_a_shortcut_is_found_by_what_it_is(by):
    looks = []
    for i in range(120):
        one, first = look(i, "train" if i % 4 else "test", i % 2), i % 2 == 0
        one.size = 4000 + int(np.random.default_rng(i).integers(0, 3000)) + 9000 * (by == "bytes" and first)
        if by == "size" and first:
            one.width, one.height = 120, 100
            one.size = one.size * 3 // 2  # as many bytes a pixel
        one.format = "JPEG" if by == "format" and first else "PNG"
        if by == "border" and first:
            one.thumb[:1], one.thumb[-1:] = 250, 250
        if by == "color" and first:
            one.thumb[:] = one.thumb.mean(axis=2, keepdims=True)
        looks.append(one)
    [finding] = check_shortcuts(data(looks))
    if by:
        assert finding.check == "shortcut" and f"from {by}" in finding.what.replace("size and bytes", "size")
        assert finding.numbers["reached"][by]["accuracy"] > 0.9 and "chance is 50 %" in finding.what
    else:
        assert finding.check == "no-shortcut" and finding.severity == "note"
        assert all(one["p_value"] > 0.001 for one in finding.numbers["reached"].values())
    assert {f.check for f in check_colors(data(looks))} == ({"some-gray"} if by == "color" else set())


def test_half_right_of_twelve_classes_by_the_border_is_a_shortcut():
    """As with 51 % where chance is 8 %. With the tracks kept together the same border tells nothing."""
    looks, draw = [], np.random.default_rng(0)
    for i in range(480):
        one = look(i, label=i % 12)
        color = np.array([i % 12 * 20, (i % 12) % 4 * 60, 90])
        ring = np.ones((24, 24), bool)
        ring[1:-1, 1:-1] = False
        one.thumb[ring] = np.clip(color + draw.normal(0, 33, 3), 0, 255).astype(np.uint8)
        looks.append(one)
    [finding] = check_shortcuts(data(looks, 12))
    reached = finding.numbers["reached"]["border"]
    assert 0.4 < reached["accuracy"] < 0.6 and reached["p_value"] < 1e-9
    assert finding.check == "shortcut" and "from border" in finding.what and "chance is 8.3 %" in finding.what


def test_a_border_that_goes_with_the_group_is_no_shortcut():
    looks, draw = [], np.random.default_rng(0)
    for group in range(24):
        color = draw.integers(0, 256, 3)
        for i in range(16):
            one = look(16 * group + i, label=group % 2, group=f"track{group}")
            one.thumb[[0, -1]], one.thumb[:, [0, -1]] = color, color
            looks.append(one)
    [finding] = check_shortcuts(data(looks))
    reached = finding.numbers["reached"]["border"]
    assert reached["accuracy_without_groups"] > 0.8 > 0.7 > reached["accuracy"]
    assert finding.check == "no-shortcut" and "% with groups kept together)" in finding.what


def test_a_gray_data_set():
    looks = many(3)
    for one in looks:
        one.thumb[:] = one.thumb[..., :1]
    assert checks(check_colors(data(looks))).keys() == {"gray"}
    assert list(check_shortcuts(data([]))) == [] and list(check_colors(data([]))) == []


def test_wrong_labels_are_found_by_their_neighbors():
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(2, 200)) * 2
    labels = np.arange(120) % 2
    features = (centers[labels] + draw.normal(size=(120, 200))).astype(np.float32)
    looks = [look(i, label=int(label)) for i, label in enumerate(labels)]
    assert list(check_labels(data(looks), looks, [], features)) == []
    for wrong in (10, 33):
        looks[wrong] = look(wrong, label=int(1 - labels[wrong]))
    [finding] = check_labels(data(looks), looks, [], features)
    assert {example.origins[0] for example in finding.examples} == {looks[10].origin, looks[33].origin}
    assert finding.numbers["agree"] == 118 / 120 and "98 % of all labels, so some of these are" in finding.what
    assert "labeled b; 100 % of its nearest neighbors are a" in " ".join(example.why for example in finding.examples)


def test_neighbor_shares_against_a_slow_formula_and_without_copies():
    draw = np.random.default_rng(1)
    features, labels = draw.normal(size=(60, 12)).astype(np.float32), draw.integers(0, 3, 60)
    crowds = np.arange(60)
    crowds[7] = crowds[3]
    features[7] = features[3]
    shares, _ = neighbor_shares(features, labels, 3, crowds)
    points = features.astype(np.float64) - features.astype(np.float64).mean(axis=0)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for i in range(60):
        order = [j for j in np.argsort(-(points @ points[i])) if crowds[j] != crowds[i]][:10]
        votes = np.array([sum(1 / (labels == k).sum() for j in order if labels[j] == k) for k in range(3)])
        assert np.allclose(shares[i], votes / votes.sum(), atol=1e-6)


def test_the_report_in_words_and_values():
    worst, note = Finding("leak", "error", "w", "t", (Example(("a", "b"), "y"),), ("b",)), Finding("x", "note", "n")
    report = Report("set", ("a", "b"), {"train": (1, 2)}, False, by_severity([note, worst]))
    assert report.findings == (worst, note) and not report.honest and "1 problem would" in report.verdict
    assert report.exclusion_list().splitlines()[1:] == ["b\tleak"]
    assert report.to_dict()["findings"][0]["examples"] == [{"images": ["a", "b"], "why": "y"}]
    mild = Report("set", ("a", "b"), {}, False, (Finding("x", "warning", "n"),))
    assert mild.honest and "Read 1 warning first" in mild.verdict
