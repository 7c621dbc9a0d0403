"""A trained network made small, from Python and from the command line: sizes, losses, who chose, what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import alexnet
from alexnet import api, cli
from alexnet.bundle import Bundle, find_bundle
from alexnet.compression import compress as compression
from alexnet.compression.deep import DeepCompression
from alexnet.data.atomic_io import sha256_of, whole_folder
from alexnet.data.run_file import write_run_file
from alexnet.data.store_backend import fingerprint_of
from alexnet.errors import AlexNetError, BundleError, RecipeError, TrainingError
from alexnet.export.classifier import Classifier
from alexnet.recipe import get_recipe
from alexnet.schema import checksum_of
from alexnet.training import loop

QUICK = api.CompressionOptions(epochs=3, tune_epochs=1)


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A trained LeNet-5: 240 KB."""
    folder = tmp_path_factory.mktemp("to-compress") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "TRAINING_PLOTS", ())
        api.train(digits.path, get_recipe("lenet5").replace(epochs=10, batch_size=16), folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """It in a sixth of its size."""
    target = compression.folder_size(run / "bundle") // 6
    return api.compress(
        run, tmp_path_factory.mktemp("small") / "out", target_size=target, compression_options=QUICK, device="cpu"
    )


def test_the_size_is_reached_and_sizes_add_up(run, made):
    original, folder = run / "bundle", made.folder / "bundle"
    assert made.original_bytes == sum(p.stat().st_size for p in original.rglob("*") if p.is_file())
    assert made.bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= made.original_bytes // 6
    assert made.bytes > 0.8 * made.original_bytes / 6, "much smaller than was asked for"
    assert made.ratio == made.original_bytes / made.bytes >= 6
    names = [stage.name for stage in made.stages]
    assert names in (
        ["original", "pruned", "retrained", "shared", "coded"],
        ["original", "pruned", "retrained", "shared", "tuned", "coded"],
    )
    network = Bundle.load(folder).network
    weights = [p for p in network.parameters() if p.dim() > 1]
    left, all_of_them = sum(int(w.count_nonzero()) for w in weights), sum(w.numel() for w in weights)
    rest = 4 * sum(p.numel() for p in network.parameters() if p.dim() < 2)
    by_name = {stage.name: stage for stage in made.stages}
    assert by_name["coded"].nonzero == left / all_of_them
    assert by_name["coded"].bytes == (folder / "model.safetensors").stat().st_size
    assert by_name["original"].bytes == 4 * all_of_them + rest
    assert by_name["retrained"].bytes == round(by_name["retrained"].nonzero * all_of_them) * 5 + rest
    assert by_name["original"].bytes > by_name["pruned"].bytes >= by_name["shared"].bytes
    for name, layer in made.layers.items():
        weight = network.get_parameter(name)
        assert layer["nonzero"] == int(weight.count_nonzero()) / weight.numel()
        assert layer["values"] == len(weight[weight != 0].unique()) <= (32 if name[0] in "fo" else 256)


def test_the_result_is_what_was_measured(run, made, digits):
    """Every number of the last stage is the file's, counted anew here."""
    classifier, before = Classifier.load(made.folder), Classifier.load(run)

    def right(who, split):
        part = digits.split(split)
        return who.probabilities(list(part.gather(np.arange(len(part))))).argmax(1) == part.labels

    coded = made.stages[-1]
    assert coded.validation.correct1 == right(classifier, "validation").sum()
    assert made.stages[0].validation.correct1 == right(before, "validation").sum()
    old, new = right(before, "test"), right(classifier, "test")
    assert (made.test.only_old, made.test.only_new) == ((old & ~new).sum(), (new & ~old).sum())
    assert made.test_scores.correct1 == new.sum()
    assert classifier.bundle.metrics["test"]["top1"] == new.mean()
    assert set(coded.latency) == {1, 32}
    assert all(value > 0 for pair in coded.latency.values() for value in pair)
    assert new.mean() > 0.5, "the network forgot"


def test_what_is_written_predictions_without_any_option(made, digit_file, capsys):
    folder = str(made.folder)
    assert alexnet.verify(folder).max_abs_diff < 1e-6
    assert cli.run(["evaluate", folder]) == 0
    assert "chosen" in capsys.readouterr().out
    assert cli.run(["evaluate", folder, "--details"]) == 0
    assert cli.run(["predict", folder, str(digit_file)]) == 0
    written = json.loads((made.folder / "compression.json").read_text())
    assert written["ratio"] == pytest.approx(made.ratio)
    assert [stage["name"] for stage in written["stages"]] == [stage.name for stage in made.stages]
    assert (made.folder / "plots" / "compression.png").read_bytes()[:4] == b"\x89PNG"
    assert "Compressed (deep)" in (made.folder / "bundle" / "README.md").read_text()


@pytest.mark.slow
def test_it_is_exported_and_has_a_report(made, tmp_path, monkeypatch):
    """Of which a compression knows less than a training: no epochs, no speed."""
    monkeypatch.chdir(tmp_path)
    assert cli.run(["export", str(made.folder), "--output", "small.onnx"]) == 0
    assert cli.run(["verify", "small.onnx", "--against", str(made.folder)]) == 0
    assert cli.run(["report", str(made.folder), "--no-doctor"]) == 0
    page = (made.folder / "report.html").read_text(encoding="utf-8")
    assert f"<td>{100 * made.test_scores.top1:.3g} %</td>" in page


def looks(run):
    """Who looked at the run's test split since it was trained."""
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [event["by"] for event in events if event["event"] == "evaluated"]


def test_validation_chooses_and_the_test_split_is_looked_at_once(run, digits, tmp_path, monkeypatch):
    seen, gather = [], type(digits.split("test")).gather

    def watched(self, indices, out=None):
        seen.append((self.name, len(indices)))
        return gather(self, indices, out)

    monkeypatch.setattr("alexnet.data.store.Split.gather", watched)
    copied = shutil.copytree(run, tmp_path / "run")
    before = len(looks(copied))
    made = api.compress(copied, tmp_path / "out", target_size=60_000, compression_options=QUICK, device="cpu")
    names = [name for name, _ in seen]
    first = names.index("test")
    assert set(names[:first]) == {"train", "validation"}
    assert set(names[first:]) == {"test"}, "something was chosen after the test split was seen"
    assert sum(n for name, n in seen if name == "test") == 2 * 50  # the original and the compressed network
    assert looks(copied)[before:] == ["compress"]
    assert "nothing by the test split" in made.chosen


def test_other_test_images_change_nothing_but_the_test_numbers(run, digits, made, tmp_path):
    """The same command on a store whose test labels are turned around: the same file, bit for bit."""
    store = shutil.copytree(digits.path, tmp_path / "store")
    labels = np.load(store / "test" / "labels.npy")
    np.save(store / "test" / "labels.npy", labels[::-1])
    description = json.loads((store / "dataset.json").read_text())
    description["sha256"]["test/labels.npy"] = sha256_of(store / "test" / "labels.npy")
    description["fingerprint"] = fingerprint_of(
        description["classes"], description["splits"], description["sha256"], description.get("encoding", "raw")
    )
    description["source_fingerprint"] = "0" * 64  # or it would be the run's own data, split otherwise
    (store / "dataset.json").write_text(json.dumps(description | {"checksum": checksum_of(description)}))
    about = json.loads((run / "run.json").read_text()) | {"store": str(store)}
    copied = shutil.copytree(run, tmp_path / "run")
    write_run_file(copied, about)
    bundle = Bundle.load(copied / "bundle")
    replace(bundle, data=dict(bundle.data) | {"fingerprint": description["fingerprint"]}).save(copied / "bundle")
    target = compression.folder_size(run / "bundle") // 6
    other = api.compress(copied, tmp_path / "out", target_size=target, compression_options=QUICK, device="cpu")
    weights = [folder / "bundle" / "model.safetensors" for folder in (made.folder, other.folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert other.test_scores.correct1 != made.test_scores.correct1


def test_as_small_as_the_loss_allows(run, tmp_path, monkeypatch):
    """Sizes are tried one after the other; the last one that keeps the accuracy is taken, whatever comes after."""
    monkeypatch.setattr(compression, "MAX_DROP_RATIOS", (7, 8, 9))
    asked, to_size = [], DeepCompression.to_size

    def watched(self, network, budget):
        asked.append(budget)
        return to_size(self, network, budget)

    monkeypatch.setattr(DeepCompression, "to_size", watched)
    first = api.compress(run, tmp_path / "any", max_accuracy_drop=99.0, compression_options=QUICK, device="cpu")
    assert len(asked) == 3
    assert first.ratio >= 9
    lost = 100 * (first.stages[0].validation.top1 - first.stages[-1].validation.top1)
    assert lost <= 99
    asked.clear()

    def keeps(self, stage, points):
        return len(asked) < 2  # the second size is too much

    monkeypatch.setattr(compression.CompressionJob, "_within_limit", keeps)
    second = api.compress(run, tmp_path / "one", max_accuracy_drop=0.5, compression_options=QUICK, device="cpu")
    assert len(asked) == 2
    assert 7 <= second.ratio < 8
    assert "pruned" in [stage.name for stage in second.stages]


def test_a_loss_that_can_not_be_kept_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "MAX_DROP_RATIOS", (3,))
    monkeypatch.setattr(compression.CompressionJob, "_within_limit", lambda self, stage, points: False)
    with pytest.raises(BundleError, match=r"loses more than 0\.5 points of validation accuracy at any size tried"):
        api.compress(
            run,
            tmp_path / "out",
            max_accuracy_drop=0.5,
            compression_options=api.CompressionOptions(epochs=1),
            device="cpu",
        )
    assert not list(tmp_path.iterdir())


def test_without_an_option_a_size_that_costs_too_much_is_not_kept(run, tmp_path, monkeypatch, capsys):
    """Without learning every size costs more than the limit of 1 point: refused. A limit of 3 points backs off."""
    monkeypatch.setattr(compression, "DEFAULT_RATIOS", (1000, 8, 2))
    words = ["compress", str(run), "-o", str(tmp_path / "out"), "--tune-epochs", "0", "--lr", "1e-9"]
    words += ["--epochs", "1"]
    assert cli.run(words) == 1
    assert "deep loses more than 1 points of validation accuracy at any size tried" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(compression, "DEFAULT_MAX_DROP", 3.0)
    assert cli.run(words) == 0
    out, err = capsys.readouterr()
    assert "1000 times smaller is not possible" in err
    assert "8 times smaller loses" in err
    written = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert written["max_accuracy_drop"] == 3.0
    assert 0 < written["points_lost"] <= 3.0
    assert "at most 3 allowed" in out


@pytest.mark.parametrize(("method", "least"), [("int8", 3.5), ("int4", 6.0)])
def test_integers_need_no_training(run, tmp_path, method, least):
    made = api.compress(run, tmp_path / "out", method=method, max_accuracy_drop=99.0, device="cpu")
    assert [stage.name for stage in made.stages] == ["original", method, "coded"]
    assert made.stages[0].bytes / made.stages[-1].bytes > least
    assert made.stages[-1].validation.correct1 == made.stages[1].validation.correct1
    assert alexnet.verify(tmp_path / "out").max_abs_diff < 1e-6


def test_a_bundle_alone_is_shared_and_coded_and_it_says_so(run, tmp_path, capsys):
    assert cli.run(["compress", str(run / "bundle"), "-o", str(tmp_path / "out"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "there are no images: nothing is pruned" in err
    made = json.loads(out)
    assert [stage["name"] for stage in made["stages"]] == ["original", "shared", "coded"]
    assert made["test"] is None
    assert made["weights_ratio"] > 4
    assert alexnet.verify(tmp_path / "out").max_abs_diff < 1e-6
    assert not (tmp_path / "out" / "run.json").exists()
    small = ["--target-size", "20KB"]
    assert cli.run(["compress", str(run / "bundle"), "-o", str(tmp_path / "less"), *small]) == 1
    assert "as --target-size says; pruning needs images: give the run, or DATA" in capsys.readouterr().err
    assert not (tmp_path / "less").exists()


def test_a_bundle_with_data_is_pruned(run, digits, tmp_path):
    made = api.compress(
        run / "bundle", tmp_path / "out", digits.path, target_size=60_000, compression_options=QUICK, device="cpu"
    )
    assert made.stages[1].name == "pruned"
    assert api.evaluate(tmp_path / "out", device="cpu").correct1 == made.test_scores.correct1


def test_what_is_refused(run, made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, status, said in (
        (["--target-size", "7MB", "--max-accuracy-drop", "1"], 2, "exclude each other; leave one out"),
        (["--target-size", "seven"], 2, "--target-size is 'seven'; must be a size such as 7MB"),
        (["--target-size", "0"], 2, "--target-size is 0 bytes; must be at least 1"),
        (["--max-accuracy-drop", "-1"], 2, "--max-accuracy-drop is -1.0; must be points of accuracy"),
        (["--fc-bits", "9"], 2, "--fc-bits is 9; must be from 1 to 8"),
        (["--epochs", "0"], 2, "--epochs is 0; must be from 1"),
        (["--target-size", "900"], 1, "bytes; must be less than 900; ask for a larger --target-size"),
        (["--method", "int8", "--target-size", "9KB"], 1, "take --method deep"),
    ):
        assert cli.run(["compress", str(run), "-o", "out", "--quiet", *words]) == status, words
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert cli.run(["compress", str(made.folder), "-o", "out"]) == 1
    assert "is compressed already" in capsys.readouterr().err
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("")
    assert cli.run(["compress", str(run), "-o", "used"]) == 1
    assert "exists already" in capsys.readouterr().err
    with whole_folder(tmp_path / "busy"):  # as another process does while it compresses
        assert cli.run(["compress", str(run), "-o", "busy"]) == 1
        assert "another process is writing busy" in capsys.readouterr().err
    (tmp_path / "busy").rmdir()
    assert cli.run(["compress", str(run / "bundle"), "-o", "out", "--max-accuracy-drop", "1"]) == 1
    assert "--max-accuracy-drop without images" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["used"]


def test_what_was_trained_on_its_validation_images_chooses_nothing(run, tmp_path):
    import dataclasses

    copied = shutil.copytree(run, tmp_path / "run")
    bundle = Bundle.load(find_bundle(copied))
    dataclasses.replace(bundle, recipe=dict(bundle.recipe) | {"train_on_val_from_epoch": 2}).save(find_bundle(copied))
    with pytest.raises(BundleError, match="trained on its validation images too"):
        api.compress(copied, tmp_path / "out", device="cpu")


def test_a_damaged_record_is_reported_even_if_quiet(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"started", b"stirred", 1))
    words = ["compress", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--method", "int8", "--quiet"]
    assert cli.run([*words, "--max-accuracy-drop", "99", "--device", "cpu"]) == 0
    errors = capsys.readouterr().err
    assert errors == f"{journal} is damaged: line 1 changed after it was written and is left out\n"


def test_a_signal_leaves_nothing_behind(run, tmp_path, monkeypatch):
    from alexnet.errors import Interrupted
    from alexnet.training import loop

    step = loop.train_step

    def interrupted(state, batch):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)
        return step(state, batch)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(Interrupted, match="nothing was kept"):
        api.compress(run, tmp_path / "out", target_size=60_000, compression_options=QUICK, device="cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["nan", "memory"])
def test_a_training_that_fails_names_no_file_that_is_deleted(run, tmp_path, monkeypatch, capsys, fault):
    """Its hint is for ``compress``, which has neither a checkpoint nor --batch-size."""

    def failed(state, batch):
        if fault == "nan":
            return float("nan"), 0
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "train_step", failed)
    with pytest.raises(TrainingError) as caught:
        api.compress(run, tmp_path / "out", target_size=60_000, compression_options=QUICK, device="cpu")
    message = str(caught.value)
    assert message.startswith("retraining: ") and message.endswith("; nothing was kept")
    assert ("lower --lr (now " if fault == "nan" else "; close other programs") in message
    printed = message + capsys.readouterr().err
    assert ".partial" not in printed and "--batch-size" not in printed and "--resume" not in printed
    assert not list(tmp_path.iterdir())


def test_tuning_is_kept_only_where_it_pays(run, digits, tmp_path, monkeypatch):
    """With one bit for a code sharing costs a lot; tuning must give some of it back, or be left out."""
    effort = api.CompressionOptions(epochs=2, tune_epochs=2, conv_bits=2, fc_bits=1)
    made = api.compress(run, tmp_path / "out", target_size=60_000, compression_options=effort, device="cpu")
    stages = {stage.name: stage.validation.loss for stage in made.stages}
    assert stages["shared"] > stages["retrained"]
    assert stages["tuned"] < stages["shared"]
    assert stages["coded"] == pytest.approx(stages["tuned"], abs=1e-6)
    for weight in (p for p in Bundle.load(made.folder / "bundle").network.parameters() if p.dim() > 1):
        assert len(weight[weight != 0].unique()) <= 4
    monkeypatch.setattr("alexnet.compression.deep.LOSS_TOLERANCE", 1e9)
    left = api.compress(run, tmp_path / "left", target_size=60_000, compression_options=effort, device="cpu")
    assert "tuned" not in [stage.name for stage in left.stages]


def test_the_original_is_left_as_it_was(run, made):
    """No weight of it, nor a file of its bundle."""
    assert alexnet.verify(run).max_abs_diff < 1e-6
    assert not Bundle.load(run / "bundle").coding
    weights = Bundle.load(run / "bundle").network.state_dict()
    assert all(torch.count_nonzero(t) > 0.99 * t.numel() for t in weights.values())
    with pytest.raises(AlexNetError):
        api.compress(run, made.folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs is 0; must be from 1 to 10000"),
        ({"tune_epochs": -1}, "--tune-epochs is -1"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"lr": 0.0}, "--lr is 0.0"),
        ({"conv_bits": 9}, "--conv-bits is 9"),
        ({"fc_bits": 0}, "--fc-bits is 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        api.CompressionOptions(**options)


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_options_of_retraining_are_refused_where_nothing_is_retrained(method, tmp_path):
    for option in ("epochs", "tune_epochs", "conv_bits", "fc_bits"):
        changed = api.CompressionOptions(**{option: 2})
        with pytest.raises(RecipeError, match=f"--{option.replace('_', '-')} has no effect with --method {method}"):
            compression.CompressionJob(tmp_path, tmp_path, method, None, None, changed, api.DataOptions())
