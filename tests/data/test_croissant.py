"""Croissant metadata of a store, read by mlcroissant; skipped without it."""

import csv
import hashlib
import json

import numpy as np
import pytest

from alexnet import cli
from alexnet.data.croissant import write_croissant
from alexnet.data.decode import encode_png
from alexnet.data.store import Store
from alexnet.terminal import csv_cell

NAMES = ("a cat", 'dog, "big"', "<bird>")


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def folder(request, tmp_path_factory):
    """A store of 36 images in several shards, with its metadata."""
    root = tmp_path_factory.mktemp("croissant")
    images = np.random.default_rng(0).integers(0, 256, (36, 16, 16, 3), np.uint8)
    for number, image in enumerate(images):
        path = root / "images" / NAMES[number % 3] / f"{number}, é.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))
    shard = {"raw": "0.004", "jpeg": "0.001"}[request.param]  # five and ten images
    options = ["--size", "16", "--shard-mb", shard, "--encoding", request.param, "--croissant"]
    assert cli.run(["prepare", str(root / "images"), str(root / "store"), *options]) == 0
    return root / "store"


def test_every_image_has_a_row_that_leads_to_its_pixels(folder):
    store = Store.open(folder)
    with (folder / "images.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["shard"] for row in rows}) > 3
    for name, split in store.splits.items():
        own = [row for row in rows if row["split"] == name]
        assert [row["class"] for row in own] == [store.classes[label] for label in split.labels]
        assert [row["origin"] for row in own] == [origin["origin"] for origin in split.origins()]
        if "encoding" not in store.metadata:
            for index, row in enumerate(own):
                pixels = np.load(folder / row["shard"])[int(row["row"])]
                assert np.array_equal(pixels, split.gather(np.array([index]))[0])


def test_every_file_is_described_and_the_store_is_unchanged(folder):
    metadata = json.loads((folder / "croissant.json").read_text())
    files = {file["contentUrl"]: file for file in metadata["distribution"]}
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(files) == on_disk - {"croissant.json"}
    for name, file in files.items():
        data = (folder / name).read_bytes()
        assert file["sha256"] == hashlib.sha256(data).hexdigest() and file["contentSize"] == f"{len(data)} B"
    before = {name: (folder / name).read_bytes() for name in on_disk}
    assert Store.open(folder).damaged() == []
    write_croissant(Store.open(folder), folder)
    assert {name: (folder / name).read_bytes() for name in on_disk} == before


@pytest.mark.filterwarnings("default")
def test_mlcroissant_accepts_it_and_reads_the_records(folder, caplog):
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=folder / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    assert "not standard" not in caplog.text
    unknown = ("license", "datePublished", "citeAs", "creator", "url")  # only the owner of the images knows them
    assert all(any(word in warning for word in unknown) for warning in issues.warnings)
    classes = list(dataset.records("classes"))
    assert [text(record["classes/class"]) for record in classes] == list(Store.open(folder).classes)
    records = list(dataset.records("images"))
    assert len(records) == 36 and {text(record["images/split"]) for record in records} == {
        "train",
        "validation",
        "test",
    }
    assert {text(record["images/class"]) for record in records} == set(NAMES)
    assert all("é" in text(record["images/origin"]) and record["images/row"] >= 0 for record in records)


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def test_what_is_refused(folder, capsys):
    for store, options, message in (
        (
            "s3://bucket/store",
            ["--croissant"],
            "--croissant with STORE s3://bucket/store; must be a store on the local",
        ),
        (str(folder), ["--croissant", "--check"], "--croissant with --check; must be a store on the local disk"),
    ):
        assert cli.run(["prepare", "digits", store, *options]) == 1
        assert message in capsys.readouterr().err


def test_cells_are_no_formulas_and_records_keep_their_class(tmp_path):
    """The class of an image is one of the classes that the metadata list, so both are escaped."""
    names = ("=cmd|' /C calc'!A0", "@b", "c")
    for number in range(18):
        path = tmp_path / "images" / names[number % 3].replace("/", "\N{DIVISION SLASH}") / f"-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.full((8, 8, 3), number, np.uint8)))
    words = ["prepare", str(tmp_path / "images"), str(tmp_path / "store"), "--size", "8", "--croissant"]
    assert cli.run(words) == 0
    classes = Store.open(tmp_path / "store").classes
    with (tmp_path / "store" / "images.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {csv_cell(name) for name in classes} != set(classes)
    assert all(row["origin"].startswith(("'=", "'@", "c/")) for row in rows)
    metadata = json.loads((tmp_path / "store" / "croissant.json").read_text())
    (listed,) = [records for records in metadata["recordSet"] if records["name"] == "classes"]
    assert [row["classes/class"] for row in listed["data"]] == [csv_cell(name) for name in classes]
