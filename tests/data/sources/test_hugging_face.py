"""Data sets of the library datasets, written and read by the real library without a network."""

import io

import numpy as np
import pytest
from PIL import Image

import alexnet
from alexnet.data.sources import open_source, read_dataset, saved_folder
from alexnet.errors import DataError
from alexnet.recipe import Recipe

datasets = pytest.importorskip("datasets")


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8)


def png(seed):
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(count, first=0, **more):
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), **more}
    )
    cells = {"picture": [png(first + i) for i in range(count)], "label": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(cells | {name: ["x"] * count for name in more}, features=features)


def test_a_saved_data_set_and_an_object_become_the_same_store(tmp_path):
    data = datasets.DatasetDict({"train": table(8), "test": table(4, 100)})
    data.save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved")
    assert source.classes == ("cat", "dog") and {k: len(v) for k, v in source.splits.items()} == {"train": 8, "test": 4}
    recipe = Recipe(stored_size=12, fit="squash", validation=0.25)
    stores = [
        alexnet.prepare(data, tmp_path / "one", recipe),
        alexnet.prepare(tmp_path / "saved", tmp_path / "other", recipe),
    ]
    for name in ("train", "validation", "test"):
        first, second = (store.split(name) for store in stores)
        assert np.array_equal(first.gather(np.arange(len(first))), second.gather(np.arange(len(second))))
        assert first.labels.tolist() == second.labels.tolist()
    sample = source.splits["test"][3]
    with Image.open(io.BytesIO(sample.load())) as image:
        assert np.array_equal(np.asarray(image), pixels(103)) and sample.label == 1
    again = open_source(tmp_path / "saved")
    assert again.fingerprint == source.fingerprint


def test_an_object_is_trained_on_and_its_run_can_be_evaluated_and_resumed(tmp_path):
    data = datasets.DatasetDict({"train": table(8), "test": table(4, 100)})
    options = alexnet.api.DataOptions(cache=tmp_path / "cache")
    kwargs = {"model": "lenet5", "epochs": 1, "batch_size": 4, "device": "cpu", "options": options}
    result = alexnet.train(data, run=tmp_path / "run", **kwargs)
    assert result.scores["test"].count == 4
    assert alexnet.evaluate(tmp_path / "run", options=options).top1 == result.scores["test"].top1
    assert saved_folder(data, tmp_path / "cache") in (tmp_path / "cache").iterdir()  # again: it was saved once
    message = r'data is a DatasetDict; must be a path or a name; write a store with alexnet.prepare\(data, "store"\)'
    with pytest.raises(DataError, match=message):
        alexnet.evaluate(tmp_path / "run", data, options=options)
    for wrong in (table(8).to_iterable_dataset(), [1, 2]):
        with pytest.raises(DataError, match=r"is a (IterableDataset|list); must be a datasets.Dataset or DatasetDict"):
            alexnet.train(wrong, run=tmp_path / "none", **kwargs)


def test_a_name_is_fetched_only_when_that_is_asked_for(tmp_path):
    for split, first in (("train", 0), ("test", 50)):
        (tmp_path / "repository").mkdir(exist_ok=True)
        table(4, first).to_parquet(str(tmp_path / "repository" / f"{split}-0.parquet"))
    name = f"hf:{tmp_path}/repository"
    with pytest.raises(DataError, match="is on the Hugging Face hub; must be fetched; pass --download"):
        open_source(name)
    source = open_source(name, download=True)
    assert source.name == "repository" and source.classes == ("cat", "dog") and len(source.splits["test"]) == 4
    with pytest.raises(DataError, match=r"hf:.*/nothing could not be read"):
        open_source(f"hf:{tmp_path}/nothing", download=True)


def test_columns_and_labels_that_have_no_meaning():
    text = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    source = read_dataset(datasets.Dataset.from_dict({"image": [png(0), png(1)], "label": ["b", "a"]}, features=text))
    assert source.classes == ("a", "b") and [sample.label for sample in source.splits["all"]] == [1, 0]
    cases = {
        "0 columns of images; must be one": table(2).remove_columns("picture"),
        "2 columns of images": table(2).add_column("other", [png(0), png(1)]).cast_column("other", datasets.Image()),
        "has no labels": table(2).remove_columns("label"),
        "split unsupervised; must be train, validation or test": datasets.DatasetDict({"unsupervised": table(2)}),
        "row 1 has no label": datasets.Dataset.from_dict(
            {"image": [png(0), png(1)], "label": ["b", None]}, features=text
        ),
        "is a list; must be a datasets.Dataset": [1],
        "label -1; must be from 0 to 1": datasets.Dataset.from_dict(
            {"picture": [png(0)], "label": [-1]}, features=table(1).features
        ),
    }
    for message, wrong in cases.items():
        with pytest.raises(DataError, match=message):
            read_dataset(wrong)


def numbered(labels, kind):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    return datasets.Dataset.from_dict({"image": [png(i) for i in range(len(labels))], "label": labels}, features)


def test_numbers_that_are_no_class_labels_keep_their_names():
    """Label 2 is class 2, not the third of the texts 0, 1, 10, 11, 2."""
    numbers = [2, 10, 0, 11, 1, 7]
    source = read_dataset(numbered(numbers, "int64"))
    assert source.classes == ("0", "1", "2", "7", "10", "11")
    assert [source.classes[sample.label] for sample in source.splits["all"]] == list(map(str, numbers))
    assert read_dataset(numbered([True, False], "bool")).classes == ("False", "True")
    source = read_dataset(numbered([" b", "a", "b "], "string"))
    assert source.classes == ("a", "b") and [sample.label for sample in source.splits["all"]] == [1, 0, 1]


@pytest.mark.parametrize("label", ["nan", "NULL", " ", ""])
def test_a_text_that_means_no_label_is_refused(label):
    with pytest.raises(DataError, match="row 1 has no label"):
        read_dataset(numbered(["a", label, "b"], "string"))


def test_splits_whose_labels_mean_other_classes_are_refused():
    other = table(4).cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))
    for wrong in (other, table(4).remove_columns("label"), table(4).rename_column("picture", "photo")):
        with pytest.raises(DataError, match="columns picture and label of test are not those of train"):
            read_dataset(datasets.DatasetDict({"train": table(4), "test": wrong}))


def test_image_files_that_change_are_another_data_set(tmp_path):
    """Cells with paths: the fingerprint of the library stays when two files are exchanged."""
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(ord(name))["bytes"])
    cells = {"image": [str(tmp_path / f"{name}.png") for name in "ab"], "label": ["a", "b"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(cells, features).save_to_disk(str(tmp_path / "saved"))
    data = datasets.Dataset.from_dict(cells, features)
    first = read_dataset(data).fingerprint
    assert read_dataset(data).fingerprint == first
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    (tmp_path / "b.png").rename(tmp_path / "a.png")
    (tmp_path / "c.png").rename(tmp_path / "b.png")
    assert read_dataset(data).fingerprint != first
    saved = open_source(tmp_path / "saved").fingerprint
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes())
    assert open_source(tmp_path / "saved").fingerprint != saved
