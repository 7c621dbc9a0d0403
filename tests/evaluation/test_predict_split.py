"""What is collected is what is evaluated."""

import dataclasses

import numpy as np
import pytest
import torch

from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.errors import DataError
from alexnet.evaluation.detailed import column, slices
from alexnet.evaluation.evaluate import evaluate, predict_split
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model


@pytest.fixture(scope="module")
def cameras(tmp_path_factory):
    """Digits with two columns of a table, grouped by one of them."""
    source, number = open_source("digits"), 0
    rows = []
    for number, image in enumerate(source.splits["all"][:120]):
        columns = {"camera": f"cam{number % 3}", "light": "" if number % 2 else "day"}
        rows.append(dataclasses.replace(image, group=f"patient{number % 20}" * (number > 5), columns=columns))
    few = dataclasses.replace(source, splits={"all": tuple(rows)}, fingerprint="cameras")
    return prepare(few, tmp_path_factory.mktemp("cameras") / "store", size=32, validation=0.2, test=0.4)


def network_of(store):
    network = create_model("lenet5", num_classes=10, generator=torch.Generator().manual_seed(0)).train()
    normalization = Normalization(
        torch.tensor(store.channel_means).float(), torch.ones(3), torch.eye(3), torch.tensor(64.0)
    )
    return network, normalization


@pytest.mark.parametrize("crops", [1, 10])
def test_the_scores_are_those_of_an_evaluation(digits, crops):
    network, normalization = network_of(digits)
    given = {"image_size": 32, "channels": 1, "crops": crops}
    found = predict_split(network, digits.split("test"), normalization, batch_size=17, **given)
    expected = evaluate(network, digits.split("test"), normalization, num_classes=10, **given)
    scores = found.scores()
    assert (scores.count, scores.correct1, scores.correct5) == (50, expected.correct1, expected.correct5)
    assert scores.loss == pytest.approx(expected.loss, rel=1e-6)
    assert torch.equal(scores.confusion, expected.confusion)
    assert network.training
    assert found.groups == () and len(found) == 50
    assert np.array_equal(found.correct, found.predicted == digits.split("test").labels)


def test_an_empty_split_is_refused(digits):
    network, normalization = network_of(digits)
    empty = digits.split("test").__class__(digits.path, "validation", digits.metadata["splits"]["validation"], 32)
    empty.labels = empty.labels[:0]
    with pytest.raises(DataError, match="the validation split is empty"):
        predict_split(network, empty, normalization, image_size=32, channels=1)


def test_groups_come_from_the_store(cameras):
    split = cameras.split("test")
    names, rows = split.groups, split.origins()
    assert len(names) == len(split)
    for i, row in enumerate(rows):
        for j, other in enumerate(rows[:i]):
            same = bool(row.get("group")) and row.get("group") == other.get("group")
            assert (names[i] == names[j]) is same
    assert cameras.split("train").groups != ()


def test_slices_by_a_column(cameras):
    network, normalization = network_of(cameras)
    split = cameras.split("test")
    predictions = predict_split(network, split, normalization, image_size=32, channels=1)
    values = column(split, "Camera")
    found = slices(predictions, values)
    assert [one.value for one in found] == sorted(set(values))
    assert sum(one.images for one in found) == len(split)
    for one in found:
        own = [i for i, value in enumerate(values) if value == one.value]
        assert one.top1.value == pytest.approx(predictions.correct[own].mean())
        assert one.groups == len({predictions.groups[i] for i in own})
    assert "(empty)" in column(split, "light")
    assert set(column(split, "group")) > {"(empty)"} or "(empty)" not in column(split, "group")
    with pytest.raises(DataError, match=r"no column 'lens'.*one of camera, light"):
        column(split, "lens")


def test_folders_have_no_columns(digits):
    with pytest.raises(DataError, match="a column of the CSV or TSV that the images came from"):
        column(digits.split("test"), "camera")
