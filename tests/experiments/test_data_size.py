"""Parts of a dataset that lie within each other, and the size from which a network is better."""

import pytest

from alexnet.data.sources import open_source
from alexnet.data.sources.options import DataOptions
from alexnet.errors import RecipeError, RunError
from alexnet.experiments import data_size
from alexnet.experiments.data_size import DataSizeConfig, Point, crossing, part, run_data_size, split_once
from alexnet.training import run_folder


def test_parts_are_nested_balanced_and_share_their_test_images():
    source = split_once(open_source("digits"))
    small, large, other = part(source, 50, 0), part(source, 200, 0), part(source, 50, 1)
    names = [{image.origin for image in each.splits["train"]} for each in (small, large, other)]
    assert [len(each) for each in names] == [50, 200, 50]
    assert names[0] < names[1]
    assert names[0] != names[2]
    labels = [image.label for image in small.splits["train"]]
    assert [labels.count(k) for k in range(10)] == [5] * 10
    assert small.splits["test"] == large.splits["test"] == other.splits["test"]
    assert (len(small.splits["validation"]), len(large.splits["validation"])) == (10, 23)
    assert not names[1] & {image.origin for image in large.splits["validation"] + large.splits["test"]}
    assert len({each.fingerprint for each in (source, small, large, other)}) == 4


def points(network: dict[int, int], fisher: dict[int, int]) -> list[Point]:
    rows = [("scratch", network), ("fisher", fisher)]
    return [Point(method, size, 0, right, 100, 1.0) for method, by_size in rows for size, right in by_size.items()]


def test_the_crossing_is_interpolated_over_the_logarithm():
    fisher = {100: 50, 1000: 60, 10_000: 70}
    assert crossing(points({100: 30, 1000: 50, 10_000: 80}, fisher), "scratch") == pytest.approx(1000 * 10**0.5)
    assert crossing(points({100: 60, 1000: 50, 10_000: 80}, fisher), "scratch") > 1000  # only where it stays ahead
    assert crossing(points({100: 51, 1000: 61, 10_000: 71}, fisher), "scratch") == 100
    assert crossing(points({100: 30, 1000: 50, 10_000: 70}, fisher), "scratch") is None
    assert crossing(points({100: 30}, {}), "scratch") is None


def test_a_study_of_two_sizes(tmp_path, monkeypatch):
    """Networks are LeNet-5 here; Fisher vectors are the real ones, with few Gaussians."""
    from alexnet.experiments.fisher.classifier import FisherSettings
    from alexnet.recipe import get_recipe

    small = get_recipe("lenet5").replace(epochs=0, warmup_epochs=0.0, stored_size=32)
    monkeypatch.setattr(data_size, "get_recipe", lambda name: small)
    monkeypatch.setattr(data_size, "Recipe", lambda **fields: small.replace(**fields))
    monkeypatch.setattr(data_size, "FisherSettings", lambda: FisherSettings(gaussians=4, axes=8, sample=2000))
    lines = []
    options = DataOptions(cache=tmp_path / "cache", log=lines.append)
    config = DataSizeConfig((40, 80), ("scratch", "fisher"), epochs=1)
    folder = tmp_path / "study"
    result = run_data_size("digits", config, folder, options, device="cpu")
    assert [(p.method, p.images) for p in result.points] == [
        ("scratch", 40), ("fisher", 40), ("scratch", 80), ("fisher", 80),
    ]  # fmt: skip
    assert {p.count for p in result.points} == {359}
    assert result.plot.read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("*/checkpoints"))
    again = run_data_size("digits", config, folder, options, device="cpu")  # all is reused, with its time
    assert again.points == result.points
    size, mean, low, high = result.curve("fisher")[1]
    assert size == 80
    assert low < mean < high


def test_what_can_not_be_studied():
    with pytest.raises(RecipeError, match="--sizes is 1 5; must be different numbers of at least 2 images"):
        DataSizeConfig((1, 5))
    with pytest.raises(RecipeError, match="--methods names 'svm'; must be one of scratch, starter, fisher"):
        DataSizeConfig(methods=("svm",))
    with pytest.raises(RecipeError, match="--seeds is 0; must be at least 1"):
        DataSizeConfig(seeds=0)


def test_two_studies_in_one_folder_are_refused(tmp_path):
    options = DataOptions(cache=tmp_path / "cache")
    with run_folder.locked(tmp_path / "study"), pytest.raises(RunError, match="in use by another process"):
        run_data_size("digits", DataSizeConfig(), tmp_path / "study", options)
