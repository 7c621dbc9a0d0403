"""The counts of a server: alarms on simulated shifts, and how many on days without one."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from alexnet.errors import DataError
from alexnet.evaluation.corruptions import corrupt
from alexnet.evaluation.drift import DISTANCE, DayCounts, examine, homogeneity, mean_of, merge, read_days
from alexnet.evaluation.evaluate import features_of
from alexnet.evaluation.ood import fit_reference
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model

SHARES = np.array([0.4, 0.3, 0.2, 0.1])


def day(
    generator,
    date,
    images=400,
    shares=SHARES,
    confidence=(6, 2),
    brightness=(120, 30),
    pixels=(90_000, 300_000),
    distance=(1, 1),
):
    counts = DayCounts(date, "a" * 64, list("abcd"), [0] * 4)
    labels = generator.choice(4, images, p=shares / shares.sum())
    scores, grays = generator.beta(*confidence, images), generator.normal(*brightness, images).clip(0, 255)
    sizes, distances = generator.choice(pixels, images), generator.beta(*distance, images)
    for label, score, gray, size, far in zip(labels, scores, grays, sizes, distances, strict=True):
        counts.add(int(label), float(score), float(gray), int(size), bool(score < 0.5), float(far))
    return counts


def dates(count):
    return [f"2026-11-{i:02}" for i in range(1, count + 1)]


@pytest.mark.parametrize(
    ("changed", "alarm"),
    [
        ({"shares": np.array([0.4, 0.0, 0.2, 0.1])}, "classes"),  # a class vanishes
        ({"confidence": (4, 2.5)}, "confidence"),  # corrupted images
        ({"brightness": (105, 40)}, "brightness"),  # another exposure
        ({"pixels": (90_000, 2_000_000)}, "image size"),  # another camera
        ({"confidence": (3, 3)}, "abstention"),
        ({"distance": (1.6, 1)}, "feature distance"),  # images of another kind
    ],
)
def test_a_shift_raises_its_alarm(changed, alarm):
    generator = np.random.default_rng(0)
    days = [day(generator, date) for date in dates(8)]
    last = day(generator, "2026-11-09", **changed)
    found = examine([*days, last])
    assert [one.baseline for one in found] == [True] * 7 + [False] * 2
    assert not found[7].alarms and alarm in found[8].alarms
    assert found[8].p_values[alarm] < 0.01 and set(found[8].to_dict()) >= {"images", "alarms", "p_values", "baseline"}


def test_days_together_show_what_one_day_cannot():
    generator = np.random.default_rng(6)
    first = [day(generator, date, images=75) for date in dates(7)]
    days = [*first, *(day(generator, date, images=75, shares=np.array([4, 3, 2, 0])) for date in dates(14)[7:])]
    found = examine(days)
    assert not any("classes" in one.alarms for one in found)
    assert found[-1].alarms == ("classes (7 days)",) and "classes (2 days)" in found[8].p_values
    few = [day(generator, date, images=30) for date in dates(10)]  # days that are too small to be tested alone
    few += [day(generator, date, images=30, shares=np.array([4, 0, 2, 1])) for date in dates(14)[10:]]
    assert "classes (5 days)" in examine(few, baseline=5)[-1].alarms and "classes" not in examine(few, 5)[-1].p_values


def test_days_without_a_shift_rarely_raise_one():
    generator, alarms = np.random.default_rng(1), 0
    for _ in range(60):
        found = examine([day(generator, date, images=150) for date in dates(5)], baseline=2, false_alarms=0.05)
        alarms += sum(bool(one.alarms) for one in found)
    assert alarms / 180 <= 0.075  # at most 5 %, and the spread of 180 days


def ranks_of(digits, changed=None):
    """Feature distances of 50 test images, after ``changed``, in a network that 160 training images describe."""
    network = create_model("lenet5", generator=torch.Generator().manual_seed(0)).eval()
    mean, std, axes = torch.full((3,), 40.0), torch.ones(3), torch.eye(3)
    normalization = Normalization(mean, std, axes, torch.tensor(80.0))
    reference = fit_reference(network, digits, normalization)
    test = digits.split("test")
    images = test.gather(np.arange(len(test)))
    images = images if changed is None else np.stack([changed(image) for image in images])
    return reference.rank(features_of(network, images, normalization))


def test_features_see_corruptions_and_rarely_raise_an_alarm_without_them(digits):
    clean, noisy = (ranks_of(digits, change) for change in (None, lambda one: corrupt(one, "gaussian_noise", 5)))
    generator = np.random.default_rng(4)

    def drawn(date, ranks):
        counts = day(generator, date, images=150)
        counts.distance = [0] * len(counts.distance)
        for rank in generator.choice(ranks, 150):
            counts.distance[int(np.searchsorted(DISTANCE, rank, side="right"))] += 1
        return counts

    alarms = seen = 0
    for _ in range(30):
        days = [drawn(date, clean) for date in dates(5)]
        found = examine([*days, drawn("2026-11-06", noisy)], baseline=2, false_alarms=0.05)
        alarms += sum(bool(one.alarms) for one in found[:-1])
        seen += bool(found[-1].alarms) and all(name.startswith("feature distance") for name in found[-1].alarms)
    assert alarms / 90 <= 0.09 and seen >= 27  # at most 5 %, and the spread of 90 days with 30 baselines


def test_counts_without_features_are_not_tested_for_them():
    generator = np.random.default_rng(5)
    days = [day(generator, date) for date in dates(3)]
    days[0].distance = days[1].distance = [0] * len(DISTANCE) + [0]
    assert "feature distance" not in examine(days, baseline=2)[2].p_values
    assert len(examine(days, baseline=2)[2].p_values) == 6


def test_the_test_is_scipys_where_bins_are_full():
    first, second = [40, 60, 100], [70, 50, 90]
    assert homogeneity(first, second) == pytest.approx(chi2_contingency([first, second], correction=False).pvalue)
    joined = chi2_contingency([[40, 160], [70, 140]], correction=False).pvalue  # rare neighbors are joined
    assert homogeneity([40, 2, 158], [70, 1, 139]) == pytest.approx(joined)
    assert homogeneity([5, 0], [9, 0]) == homogeneity([0, 0], [3, 4]) == 1.0


def test_few_images_and_other_models_are_not_compared():
    generator = np.random.default_rng(2)
    days = [day(generator, date) for date in dates(3)]
    days.append(day(generator, "2026-11-04", images=10, shares=np.array([0, 0, 0, 1.0])))
    other = day(generator, "2026-11-05", shares=np.array([0, 0, 0, 1.0]))
    other.model_sha256 = "b" * 64
    found = examine([*days, other], baseline=3)
    assert not found[3].p_values and not found[3].alarms and found[4].baseline


def test_files_of_several_processes_are_added(tmp_path):
    generator = np.random.default_rng(3)
    parts = [day(generator, "2026-11-01"), day(generator, "2026-11-01"), day(generator, "2026-11-02")]
    for name, one in zip(("x", "y", "z"), parts, strict=True):
        one.failed = 2
        (tmp_path / f"{name}.json").write_bytes(one.to_json())
    first, second = read_days(tmp_path)
    assert first == merge(parts[:2]) and second == parts[2]
    assert (first.images, first.failed) == (800, 4)
    assert mean_of([0, 3, 1], [1.0, 2.0], 3.0) == pytest.approx((3 * 1.5 + 2.5) / 4)
    broken = json.loads((tmp_path / "x.json").read_text()) | {"confidence": [1]}
    (tmp_path / "x.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match=r"x\.json is damaged: it has"):
        read_days(tmp_path)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.json is damaged"):
        read_days(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no counts yet"):
        read_days(tmp_path / "empty")
    with pytest.raises(DataError, match="is no folder"):
        read_days(tmp_path / "nowhere")


@pytest.mark.parametrize("date", ["2026-11-01", "2026-11-02"])
def test_one_model_has_the_same_classes_in_all_files(tmp_path, date):
    """A file with other classes was a ValueError of zip, or was added to the wrong classes."""
    first, other = (day(np.random.default_rng(3), one) for one in ("2026-11-01", date))
    (tmp_path / "x.json").write_bytes(first.to_json())
    for classes, predicted in ((["a", "b"], [1, 2]), (list("abce"), other.predicted)):
        other.classes, other.predicted = classes, predicted
        (tmp_path / "y.json").write_bytes(other.to_json())
        with pytest.raises(DataError, match=r"y\.json is damaged: its classes are not those"):
            read_days(tmp_path)
