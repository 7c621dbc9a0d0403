"""Which images to label next: uncertainty, k-center against a slow formula, and the choice of a real classifier."""

import csv
from pathlib import Path

import numpy as np
import pytest

from alexnet.api import load
from alexnet.cli import execute
from alexnet.data import decode
from alexnet.data.sources.corrections import Decision, read_corrections, write_corrections
from alexnet.errors import AlexNetError, DataError
from alexnet.review.active_learning import POOL, candidates, k_center, uncertainty
from alexnet.review.session import Change
from alexnet.review.suggest import session, suggest, training_data, unlabeled


def test_uncertainty_is_one_minus_the_margin():
    probabilities = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.7, 0.1]])
    assert uncertainty(probabilities) == pytest.approx([1.0, 0.0, 0.5])
    scores = np.random.default_rng(0).random(100)
    assert candidates(scores, 3).tolist() == sorted(range(100), key=lambda i: -scores[i])[: POOL * 3]


def test_k_center_against_a_slow_formula():
    points = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    expected = [0]
    for _ in range(9):
        rest = [i for i in range(40) if i not in expected]
        expected.append(max(rest, key=lambda i: min(np.linalg.norm(points[i] - points[j]) for j in expected)))
    assert k_center(points, 10).tolist() == expected
    assert sorted(k_center(points, 99).tolist()) == list(range(40)) and not len(k_center(points[:0], 3))


@pytest.fixture
def folder(digits, tmp_path) -> Path:
    """Twenty digits as files, one of them twice, and a file that is not an image."""
    new = tmp_path / "new"
    new.mkdir()
    for number, image in enumerate(digits.split("test").gather(np.arange(20))):
        (new / f"{number:02d}.png").write_bytes(decode.encode_png(image))
    (new / "20.png").write_bytes((new / "00.png").read_bytes())
    (new / "broken.png").write_bytes(b"<html>")
    return new


def test_the_choice_of_a_classifier(saved_bundle, folder, tmp_path):
    classifier = load(saved_bundle, "cpu")
    samples = unlabeled(folder, tmp_path, {"new/05.png"})
    assert [sample.origin for sample, _ in samples][:2] == ["new/00.png", "new/01.png"] and len(samples) == 21
    chosen, failures = suggest(classifier, samples, 4)
    assert [str(error).partition(":")[0] for error in failures] == [str(folder / "broken.png")]
    assert len({one.sample.origin for one in chosen}) == 4 and len(chosen[0].top_k) == 5
    uncertain, _ = suggest(classifier, samples, 4, "uncertain")
    every, _ = suggest(classifier, samples, 99, "uncertain")
    assert [one.uncertainty for one in uncertain] == pytest.approx([one.uncertainty for one in every[:4]], abs=1e-4)
    assert [one.uncertainty for one in every] == sorted((one.uncertainty for one in every), reverse=True)
    assert {one.path for one in chosen} <= {one.path for one in every[: 4 * POOL]} and len(every) == 20
    draws = [[one.path for one in suggest(classifier, samples, 4, "random", seed=seed)[0]] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    review = session(classifier.classes, chosen, tmp_path / "x.csv")
    label = classifier.classes[3]
    review.decide([Change(0, "add", label)])
    assert read_corrections(tmp_path / "x.csv") == {chosen[0].sample.origin: Decision("add", label, "")}
    assert training_data(saved_bundle) is None, "a bundle alone does not name its data"


def test_folders_without_images(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        unlabeled(tmp_path / "none", tmp_path, set())
    with pytest.raises(DataError, match="no image without a decision"):
        unlabeled(tmp_path, tmp_path, set())


def test_the_command_writes_a_list(saved_bundle, folder, tmp_path, capsys):
    words = [str(saved_bundle), str(folder), "--count", "3", "--device", "cpu", "--output", str(tmp_path / "list.csv")]
    assert execute("suggest", words) == 0
    printed = capsys.readouterr()
    assert "3 images to label next, of 22 in" in printed.out and "broken.png" in printed.err
    rows = list(csv.reader((tmp_path / "list.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["path", "label", "score", "uncertainty"] and len(rows) == 4
    write_corrections(tmp_path / "new.labels.csv", {f"new/{rows[1][0][-6:]}": Decision("add", "0")})
    execute("suggest", words)
    again = list(csv.reader((tmp_path / "list.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[1][0] not in [row[0] for row in again], "what has a label is not suggested again"
    with pytest.raises(AlexNetError, match="--count is 0"):
        execute("suggest", [*words[:2], "--count", "0"])
