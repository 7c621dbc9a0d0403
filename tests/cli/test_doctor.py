"""The doctor from a terminal: exit status, JSON, page and list; groups and lists where they are used."""

import json

import numpy as np
import pytest
from PIL import Image

from alexnet import api
from alexnet.cli import run
from alexnet.data.sources import open_source
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.report import facts


@pytest.fixture
def digits_folder(tmp_path):
    """120 handwritten digits 0 and 1 in class folders; the first two files are the same."""
    root = tmp_path / "few"
    listed = [p for p in open_source("digits").splits["all"] if p.label < 2][:120]
    for number, image in enumerate(listed):
        place = root / str(image.label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(image.load(), np.ones((4, 4, 1), np.uint8))).save(place / f"{number:03d}.png")
    return root


def label_twice(root):
    twin = root / "1" / "999.png"
    twin.write_bytes((root / "0" / "000.png").read_bytes())
    return twin


def test_exit_status_and_text(digits_folder, capsys):
    assert run(["doctor", str(digits_folder)]) == 0
    out = capsys.readouterr().out
    assert "random splits as in training" in out and "error" not in out
    label_twice(digits_folder)
    assert run(["doctor", str(digits_folder)]) == 1
    out = capsys.readouterr().out
    assert (
        "two-labels: 2 images (1 group of copies: 2 byte-identical) with two labels" in out
        and "Do not train on this data yet" in out
    )
    assert "0/000.png, 1/999.png" in out or "1/999.png, 0/000.png" in out


def test_json_page_list_and_a_clean_bill_after_leaving_out(digits_folder, tmp_path, capsys):
    label_twice(digits_folder)
    page, listed = tmp_path / "page.html", tmp_path / "list.txt"
    words = ["doctor", str(digits_folder), "--json", "--html", str(page), "--exclude-list", str(listed)]
    assert run(words) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["honest"] is False and report["splits_drawn"] is True
    assert {"0/000.png", "1/999.png"} <= {line.split("\t")[0] for line in listed.read_text().splitlines()}
    assert page.read_text().count("data:image/jpeg;base64,") >= 2
    assert run(["doctor", str(digits_folder), "--exclude-list", str(listed)]) == 1
    assert f"to leave out: alexnet train {digits_folder} --exclude {listed}" in capsys.readouterr().out
    assert run(["doctor", str(digits_folder), "--exclude", str(listed)]) == 0


def test_prepare_leaves_out_and_groups(digits_folder, tmp_path):
    (tmp_path / "list").write_text("0/000.png\n")
    words = [str(digits_folder), str(tmp_path / "store"), "--size", "32", "--exclude", str(tmp_path / "list")]
    assert run(["prepare", *words, "--group-pattern", r"(\d\d)\d\.png"]) == 0
    store = Store.open(tmp_path / "store")
    groups = [{row["group"] for row in store.split(name).origins()} for name in ("train", "validation", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 12
    assert sum(len(split) for split in store.splits.values()) == 119
    words = [*words, "--group-pattern", r"(\d\d)\d\.png"]
    assert run(["prepare", *words, "--check"]) == 0


def test_wrong_use(digits_folder, tmp_path, capsys):
    assert run(["doctor", str(tmp_path / "none")]) == 1
    assert run(["doctor", str(digits_folder), "--group-pattern", "("]) == 1
    assert run(["doctor", str(digits_folder), "--html", str(tmp_path / "no" / "x.html")]) == 1
    assert run(["doctor", str(digits_folder), "--exclude-list", str(tmp_path / "no" / "x")]) == 1
    assert capsys.readouterr().err.count("alexnet: ") == 4


def test_a_trained_network_finds_a_wrong_label_and_is_evaluated_by_its_groups(digits_folder, tmp_path, capsys):
    options = DataOptions(cache=tmp_path / "cache", group_pattern=r"(\d\d)\d\.png")
    changes = {"epochs": 5, "stored_size": 32, "select_weights": "last"}
    result = api.train(digits_folder, run=tmp_path / "run", model="lenet5", options=options, device="cpu", **changes)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts.train_command(about, result.recipe).endswith(r"--group-pattern '(\d\d)\d\.png'")
    told = []
    scores = api.evaluate(
        tmp_path / "run", digits_folder, options=DataOptions(cache=tmp_path / "cache", log=told.append)
    )
    assert scores.count == result.scores["test"].count < 120, "the same test split, by the recorded groups"
    assert scores.top1 == result.scores["test"].top1 and not any("all of it is the test" in line for line in told)
    moved = sorted((digits_folder / "0").iterdir())[5]
    moved.rename(digits_folder / "1" / "moved.png")
    assert run(["doctor", str(digits_folder), "--bundle", str(tmp_path / "run"), "--json", "--device", "cpu"]) == 0
    doubts = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["check"] == "label-doubt"]
    assert [case["images"][0] for case in doubts[0]["examples"]] == ["1/moved.png"]


def test_layout_options_reach_the_reader(tmp_path, capsys):
    """--ignore is repeatable, --classes and the columns of a table decide what is a class; prepare prints the notes."""
    for number, place in enumerate(["a/x", "a/y", "b/z", "masks", "old"]):
        (tmp_path / "set" / place).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (8, 8), (40 * number, 40 * index, 9)).save(tmp_path / f"set/{place}/{index}.png")
    (tmp_path / "set/a/x/0.xcf").write_bytes(b"x")
    words = ["--ignore", "masks", "--ignore", "ol*", "--classes", "leaves"]
    assert run(["prepare", str(tmp_path / "set"), str(tmp_path / "store"), "--size", "8", *words]) == 0
    assert json.loads((tmp_path / "store/dataset.json").read_text())["classes"] == ["a/x", "a/y", "b/z"]
    told = capsys.readouterr().err
    assert "not read as images: 1 file with the suffix '.xcf'" in told and "2 left out by --ignore: masks, old" in told
    assert "3 classes: every folder that holds images" in told
    (tmp_path / "set/list.csv").write_text("where;kind\n" + "".join(f"old/{i}.png;{'pq'[i % 2]}\n" for i in range(6)))
    words = ["--image-column", "where", "--label-column", "kind", "--delimiter", ";"]
    run(["doctor", str(tmp_path / "set/list.csv"), "--json", *words])
    assert json.loads(capsys.readouterr().out)["classes"] == ["p", "q"]
