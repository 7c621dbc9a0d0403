"""Prediction of many images: every format, every interruption, the same results as one image at a time."""

import csv
import dataclasses
import fcntl
import io
import json
import os
import re
import resource
import subprocess
import sys
import threading
from itertools import islice

import numpy as np
import pytest

from alexnet import cli
from alexnet.data.decode import encode_png
from alexnet.errors import AlexNetError, BundleError, DataError, ImageError, RecipeError, RunError
from alexnet.export.batch_prediction import (
    BatchPredictor,
    PredictionOptions,
    Unreadable,
    predict_files,
    stream_predictions,
)
from alexnet.export.classifier import Classifier

COUNT, BATCH, BAD = 23, 4, (5, 12)  # images, images of a batch, images that cannot be read


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of many sizes; two of them are damaged."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = random.integers(0, 256, (20 + number, 50 - number, 3), np.uint8)
        (root / f"{number:02d}.png").write_bytes(encode_png(pixels) if number not in BAD else b"<html>no image</html>")
    return root


@pytest.fixture(scope="module")
def expected(photos, saved_bundle):
    """The results of one image at a time, as plain values."""
    classifier = Classifier.load(saved_bundle)
    results = []
    for number in range(COUNT):
        path = photos / f"{number:02d}.png"
        try:
            results.append(classifier.predict(path, top=2)[0].to_dict())
        except ImageError as error:
            results.append({"filename": str(path), "error": str(error)})
    return results


def same(results, expected):
    assert [result["filename"] for result in results] == [result["filename"] for result in expected]
    for result, right in zip(results, expected, strict=True):
        assert result.get("error") == right.get("error")
        assert [e["label"] for e in result.get("top_k", [])] == [e["label"] for e in right.get("top_k", [])]
        assert [e["score"] for e in result.get("top_k", [])] == pytest.approx(
            [e["score"] for e in right.get("top_k", [])], abs=1e-5
        )


def write(saved_bundle, photos, path, **more):
    return predict_files(saved_bundle, [photos], path, **{"top": 2, "batch_size": BATCH} | more)


def test_a_file_of_json_lines(saved_bundle, photos, expected, tmp_path):
    seen, lines = [], []
    path = tmp_path / "out.jsonl"
    summary = write(saved_bundle, photos, path, progress=lambda *counts: seen.append(counts), log=lines.append)
    assert summary[:4] == (path, COUNT, len(BAD), 0)
    same([json.loads(line) for line in path.read_text().splitlines()], expected)
    assert seen == [(done, COUNT) for done in (0, 4, 8, 12, 16, 20, 23)]
    assert [line.split(":")[0] for line in lines] == [str(photos / f"{number:02d}.png") for number in BAD]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_csv_file_has_the_rows_of_the_standard_output(saved_bundle, photos, tmp_path, capsys):
    write(saved_bundle, photos, tmp_path / "out.csv", target_risk=None, confidence_threshold=0.5)
    words = ["predict", str(saved_bundle), str(photos), "--top", "2", "--confidence-threshold", "0.5"]
    assert cli.run([*words, "--batch-size", str(BATCH), "--format", "csv"]) == 1
    assert (tmp_path / "out.csv").read_text() == capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert len(rows) == 2 * (COUNT - len(BAD)) + len(BAD)
    for row in rows:
        first = next(other for other in rows if other["filename"] == row["filename"])
        abstained = str(float(first["score"]) < 0.5).lower() if first["score"] else ""
        assert row["abstained"] == abstained


def test_a_parquet_file(saved_bundle, photos, expected, tmp_path, monkeypatch):
    import pyarrow.parquet as parquet

    monkeypatch.setattr("alexnet.export.batch_prediction._ROW_GROUP", 10)
    write(saved_bundle, photos, tmp_path / "out.parquet")
    assert parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    for row, right in zip(rows, expected, strict=True):
        assert (row["filename"], row["error"]) == (right["filename"], right.get("error"))
        top_k = right.get("top_k", [{"label": None, "score": None}])
        assert row["label"] == top_k[0]["label"] and row["score"] == pytest.approx(top_k[0]["score"], abs=1e-5)
        assert [e["label"] for e in row["top_k"] or []] == [e["label"] for e in right.get("top_k", [])]


def test_the_formats_of_the_standard_output(saved_bundle, photos, capsys):
    words = ["predict", str(saved_bundle), str(photos), "--top", "1", "--format"]
    assert cli.run([*words, "json"]) == 1
    text = capsys.readouterr().out
    results = json.loads(text)
    assert len(results) == COUNT and text == json.dumps(results, indent=1) + "\n"
    assert cli.run([*words, "jsonl"]) == 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == results


def test_results_come_while_later_images_are_not_decoded_yet(saved_bundle, photos, monkeypatch):
    """The memory does not grow: images are decoded at most so far ahead."""
    loaded, load = [], BatchPredictor.decode
    monkeypatch.setattr(BatchPredictor, "decode", lambda self, image: loaded.append(image.name) or load(self, image))
    results = stream_predictions(saved_bundle, [photos], batch_size=2, num_workers=1)
    first = list(islice(results, 2))
    assert isinstance(first[0].top_k, tuple) and len(loaded) <= 2 + 2 * 2 + 2
    assert isinstance(list(results)[3], Unreadable)
    assert sorted(loaded) == sorted(str(photos / f"{number:02d}.png") for number in range(COUNT))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_any_part_of_the_journal_is_continued_to_the_same_bytes(saved_bundle, photos, tmp_path, monkeypatch, suffix):
    """A killed process or a full disk leaves a beginning of FILE.partial. No image is lost or predicted twice."""
    path, partial = tmp_path / f"out.{suffix}", tmp_path / f"out.{suffix}.partial"
    monkeypatch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: self.rename(tmp_path / "kept"))
    write(saved_bundle, photos, path)
    monkeypatch.undo()
    whole, journal = path.read_bytes(), (tmp_path / "kept").read_bytes()
    starts = np.cumsum([0, *(len(line) for line in journal.splitlines(keepends=True))]).tolist()
    decoded, decode = [], BatchPredictor.decode
    monkeypatch.setattr(BatchPredictor, "decode", lambda self, image: decoded.append(image.name) or decode(self, image))
    ends = {0, 1, starts[1] - 1, *starts[1::3], *(start + 7 for start in starts[1:-1:5]), starts[-1] - 1, starts[-1]}
    for end in ends if suffix == "jsonl" else (0, starts[12] + 7, len(journal)):
        path.unlink(missing_ok=True)
        partial.write_bytes(journal[:end])
        (tmp_path / f"{path.name}.0123abcd.tmp").write_bytes(b"of a process that was killed while it converted")
        decoded.clear()
        finished = sum(start <= end for start in starts[2:])
        resumed = finished if finished == COUNT else finished - finished % BATCH
        summary = write(saved_bundle, photos, path)
        assert path.read_bytes() == whole
        assert summary[1:4] == (COUNT, len(BAD), resumed)
        assert sorted(decoded) == sorted(str(photos / f"{number:02d}.png") for number in range(resumed, COUNT))
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["kept", path.name]


def test_zeros_of_a_lost_power_supply_are_removed(saved_bundle, photos, tmp_path):
    write(saved_bundle, photos, tmp_path / "whole.jsonl")
    interrupt(saved_bundle, photos, tmp_path / "out.jsonl", 8)
    with (tmp_path / "out.jsonl.partial").open("ab") as file:
        file.write(bytes(4096) + b'\n{"filename": "x"}\n')
    assert write(saved_bundle, photos, tmp_path / "out.jsonl").resumed == 8
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def interrupt(saved_bundle, photos, path, after, **more):
    def progress(done, total):
        if done >= after:
            raise KeyboardInterrupt(15)

    with pytest.raises(KeyboardInterrupt):
        write(saved_bundle, photos, path, progress=progress, **more)


def test_the_command_continues_and_says_so(saved_bundle, photos, tmp_path, monkeypatch, capsys):
    path = tmp_path / "out.csv"
    words = ["predict", str(saved_bundle), str(photos), "-o", str(path), "--batch-size", str(BATCH)]
    predict, calls = BatchPredictor.predict, []

    def interrupted(self, batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt(15)
        return predict(self, batch)

    monkeypatch.setattr(BatchPredictor, "predict", interrupted)
    assert cli.run(words) == 128 + 15
    assert "interrupted after 8 of 23 images; the same command continues" in capsys.readouterr().err
    assert not path.exists()
    assert cli.run(words) == 1
    done = capsys.readouterr()
    assert f"continuing after 8 of 23 images ({path}.partial)" in done.err
    assert "2 images could not be read: see the errors in" in done.err
    assert re.fullmatch(rf"{re.escape(str(path))}  23 images, [\d,.]+ images/s; total time .+ s\n", done.out)
    assert len({row[0] for row in csv.reader(path.read_text().splitlines())}) == COUNT + 1
    assert cli.run(words) == 1
    assert f"{path} exists; must be a new file; delete it, or choose another name" in capsys.readouterr().err


def test_results_of_other_images_or_settings_are_not_continued(saved_bundle, photos, tmp_path):
    path = tmp_path / "out.jsonl"
    interrupt(saved_bundle, photos, path, 8)
    journal = (tmp_path / "out.jsonl.partial").read_bytes()

    def refused(text, **more):
        with pytest.raises(RunError, match=text):
            write(saved_bundle, photos, path, **more)
        assert (tmp_path / "out.jsonl.partial").read_bytes() == journal

    refused(r"has results of another threshold and top\. Repeat", top=3, confidence_threshold=0.2)
    hint = r"Repeat the command with the options that began it, or delete out\.jsonl\.partial"
    refused(r"another batch_size\. " + hint, batch_size=5)
    with pytest.raises(RunError, match=r"image 1 '.*00\.png'; now it is '.*01\.png'\. Repeat the command with the in"):
        predict_files(saved_bundle, [photos / "01.png"], path, top=2, batch_size=BATCH)
    with pytest.raises(RunError, match=r"has image 2 '.*01\.png'; now it is no more images"):
        predict_files(saved_bundle, [photos / "00.png"], path, top=2, batch_size=BATCH)
    (tmp_path / "out.jsonl.partial").write_text('{"format": "another"}\n')
    with pytest.raises(RunError, match="is not of this version of alexnet predict"):
        write(saved_bundle, photos, path)


def test_a_damaged_line_is_predicted_again(saved_bundle, photos, tmp_path):
    """A line that another program has changed was taken over: wrong scores, or a KeyError at the end."""
    whole = tmp_path / "whole.jsonl"
    write(saved_bundle, photos, whole)
    interrupt(saved_bundle, photos, tmp_path / "out.jsonl", 12)
    partial = tmp_path / "out.jsonl.partial"
    journal = partial.read_bytes()
    lines = journal.splitlines(keepends=True)
    for number, line, resumed in (
        (2, lines[2].replace(b'"score": 0.', b'"score": 1.', 1), 0),
        (6, b'{"filename": 3}\n', 4),
        (9, b"[" * 100_000 + b"\n", 8),
        (5, lines[0], 4),
    ):
        partial.write_bytes(b"".join([*lines[:number], line, *lines[number + 1 :]]))
        assert write(saved_bundle, photos, tmp_path / "out.jsonl").resumed == resumed
        assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()
        (tmp_path / "out.jsonl").unlink()


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", None])
def test_a_file_that_is_not_ours_stays(saved_bundle, photos, tmp_path, content):
    """A file of notes without a line feed was emptied; a pipe was waited for."""
    partial = tmp_path / "out.csv.partial"
    if content is None:
        os.mkfifo(partial)
    else:
        partial.write_bytes(content)
    with pytest.raises(RunError, match=r"out\.csv\.partial is not .*; move it away"):
        predict_files(saved_bundle, [photos], tmp_path / "out.csv")
    assert content is None or partial.read_bytes() == content


def test_two_processes_do_not_write_one_file(saved_bundle, photos, tmp_path):
    """The second is refused, and takes nothing from the first, which has not written a byte yet."""
    out = tmp_path / "out.csv"
    with (tmp_path / "out.csv.partial").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(RunError, match="another process writes it; must be one process at a time"):
            predict_files(saved_bundle, photos, out)
        assert os.fstat(first.fileno()).st_nlink == 1


def test_a_full_disk_is_one_line_and_the_command_continues(saved_bundle, photos, expected, tmp_path):
    path = tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(RunError, match=r"out\.jsonl\.partial: .*; make room and repeat the command: it continues"):
            write(saved_bundle, photos, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < write(saved_bundle, photos, path).resumed < COUNT
    same([json.loads(line) for line in path.read_text().splitlines()], expected)


def test_nothing_is_left_where_nothing_begins(saved_bundle, photos, tmp_path, monkeypatch):
    def refused(kind, text, inputs=(photos,), model=saved_bundle, name="out.csv", **more):
        with pytest.raises(kind, match=text):
            predict_files(model, list(inputs), tmp_path / name, **more)
        assert not any(tmp_path.iterdir())

    refused(
        RunError,
        r"out\.txt is of no known format; must be a name that ends in \.csv, \.jsonl, \.parquet",
        name="out.txt",
    )
    refused(RunError, "there is no folder", name="nowhere/out.csv")
    refused(ImageError, "holds no images", inputs=[str(tmp_path / "*.png")])
    refused(BundleError, "there is no nowhere", model="nowhere")
    refused(RecipeError, "--top is 0; must be at least 1", top=0)
    refused(RecipeError, "--batch-size is 0; must be at least 1", batch_size=0)
    refused(RecipeError, "--engine is 'dask'; must be threads or ray", engine="dask")
    refused(TypeError, "colour", colour="red")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(RunError, r"parquet needs pyarrow; must be installed; pip install 'alexnet\[data\]'", name="out.parquet")


def test_a_list_on_standard_input(saved_bundle, photos, expected, monkeypatch, capsys):
    paths = [str(photos / "03.png"), str(photos / "01.png"), str(photos / "no[1].png")]
    for separator in ("\n", "\0", "\r\n"):  # the last with a byte order mark, as an editor writes it
        mark = "\ufeff" * (separator == "\r\n")
        stream = io.TextIOWrapper(io.BytesIO((mark + separator.join(paths) + separator).encode()))
        monkeypatch.setattr(sys, "stdin", stream)
        assert cli.run(["predict", str(saved_bundle), "-", "--format", "json", "--top", "2"]) == 1
        results = json.loads(capsys.readouterr().out)
        same(results[:2], [expected[3], expected[1]])
        assert results[2]["filename"] == paths[2] and "cannot be read" in results[2]["error"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert cli.run(["predict", str(saved_bundle), "-"]) == 2
    assert "the list on standard input is empty" in capsys.readouterr().err


def test_a_format_and_a_file_are_one_too_many(saved_bundle, photos, tmp_path, capsys):
    assert cli.run(["predict", str(saved_bundle), str(photos), "-o", str(tmp_path / "a.csv"), "--format", "csv"]) == 2
    assert "--format is csv, of standard output; must be left out; the name of FILE decides" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_an_exported_file(cifar, onnx_file, photos, expected, tmp_path, suffix):
    """ONNX takes one image of any size, OpenVINO here a batch in the stored size."""
    from alexnet.export.export import export

    path = onnx_file if suffix == ".onnx" else tmp_path / "net.xml"
    if suffix == ".xml":
        export(cifar, path, format="openvino", input="decoded")
    same([result.to_dict() for result in stream_predictions(path, [photos], top=2, batch_size=BATCH)], expected)


def test_a_target_risk_is_a_threshold_of_the_bundle(saved_bundle):
    with pytest.raises(BundleError, match="has no threshold for a target error of"):
        BatchPredictor(saved_bundle, PredictionOptions(target_risk=0.02))


def test_prediction_sets_are_those_of_the_bundles_thresholds(cifar, photos, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    limits = [0.05 * (k % 3) for k in range(10)]
    calibration = {"temperature": 1.0, "conformal": {"0.95": [0.0] * 10, "0.9": limits}}
    bundle = dataclasses.replace(cifar, calibration=calibration).save(tmp_path / "bundle")
    summary = predict_files(bundle, [photos], tmp_path / "out.jsonl", conformal=0.85, top=1)
    results = [json.loads(line) for line in summary.path.read_text().splitlines()]
    classifier = Classifier.load(bundle)
    for result in results:
        if "error" not in result:
            row = classifier.probabilities(result["filename"])[0]
            order = np.argsort(-row, kind="stable")
            assert result["prediction_set"] == [classifier.classes[k] for k in order if row[k] >= limits[k]]
    words = ["predict", str(bundle), str(photos), "--conformal", "0.9", "--top", "1"]
    assert (
        cli.run([*words, "-o", str(tmp_path / "out.csv")]) == cli.run([*words, "-o", str(tmp_path / "x.parquet")]) == 1
    )
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [result.get("prediction_set") for result in results]
    assert [json.loads(row["prediction_set"] or "null") for row in rows] == expected
    assert parquet.read_table(tmp_path / "x.parquet")["prediction_set"].to_pylist() == expected
    capsys.readouterr()
    assert cli.run(words) == 1
    assert "prediction set" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"conformal": 0.99}, "has no prediction sets for a coverage of 0.99; must be at most 0.9"),
        ({"conformal": 0.3}, "--conformal is 0.3"),
        ({"conformal": 0.9, "crops": 10}, "--conformal with --crops 10; must be the center crop"),
    ],
)
def test_prediction_sets_that_a_bundle_does_not_have(cifar, onnx_file, tmp_path, options, text):
    bundle = dataclasses.replace(cifar, calibration={"conformal": {"0.9": [0.1] * 10}}).save(tmp_path / "bundle")
    with pytest.raises(AlexNetError) as caught:
        BatchPredictor(bundle, PredictionOptions(**options))
    assert text in str(caught.value)
    bare = cifar.save(tmp_path / "bare")
    with pytest.raises(BundleError, match=r"has no prediction sets .*; must be calibrated; alexnet evaluate RUN"):
        BatchPredictor(bare, PredictionOptions(conformal=0.9))
    with pytest.raises(BundleError, match="--conformal has no effect on an exported file"):
        BatchPredictor(onnx_file, PredictionOptions(conformal=0.9))


def test_too_many_open_files_are_no_damage(saved_bundle, photos, tmp_path, monkeypatch):
    """Every image would be listed as unreadable."""

    def decode(self, image):
        raise ImageError(f"{image.name}: cannot be read") from OSError(24, "Too many open files")

    monkeypatch.setattr(BatchPredictor, "decode", decode)
    with pytest.raises(ImageError):
        write(saved_bundle, photos, tmp_path / "out.csv")


def test_a_server_that_stays_broken_stops_and_the_results_are_kept(saved_bundle, photos, tmp_path, monkeypatch):
    decode, broken = BatchPredictor.decode, threading.Event()

    def failing(self, image):
        if broken.is_set() and image.name.endswith("13.png"):
            raise DataError("s3://bucket/13.png: cannot be read")
        return decode(self, image)

    broken.set()
    monkeypatch.setattr(BatchPredictor, "decode", failing)
    with pytest.raises(AlexNetError, match="cannot be read"):
        write(saved_bundle, photos, tmp_path / "out.csv")
    broken.clear()
    assert write(saved_bundle, photos, tmp_path / "out.csv").resumed == 12


@pytest.mark.slow
def test_the_memory_is_flat(saved_bundle, photos, tmp_path):
    """20,000 images need at most 40 MB more than 1,000."""
    for number in range(20_000):
        os.link(photos / f"{number % 5:02d}.png", tmp_path / f"{number:05d}.png")
    code = f"""
import resource, alexnet
peaks = []
for pattern in ("00*.png", "*.png"):
    inputs = [{str(tmp_path)!r}] if pattern == "*.png" else [{str(tmp_path)!r} + "/" + pattern]
    for result in alexnet.stream_predictions({str(saved_bundle)!r}, inputs, top=1):
        pass
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ray's own, in its threads
def test_two_nodes_of_ray_predict_what_one_process_predicts(saved_bundle, photos, tmp_path):
    ray = pytest.importorskip("ray", reason="pip install 'alexnet[cluster]'")
    from ray.cluster_utils import Cluster

    write(saved_bundle, photos, tmp_path / "one.jsonl")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
        interrupt(saved_bundle, photos, tmp_path / "many.jsonl", 8)
        assert write(saved_bundle, photos, tmp_path / "many.jsonl", engine="ray").resumed == 8
    finally:
        ray.shutdown()
        cluster.shutdown()
    results, whole = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("many", "one"))
    same([*map(json.loads, results)], [*map(json.loads, whole)])


def test_without_ray_the_line_says_what_to_install(saved_bundle, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"engine ray needs ray; must be installed; pip install 'alexnet\[cl"):
        write(saved_bundle, photos, tmp_path / "out.csv", engine="ray")
