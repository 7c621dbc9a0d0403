"""The command line as a person meets it: separate processes, real images, right and wrong use."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alexnet import api, cli, kernels
from alexnet import recipe as recipes
from alexnet.cli import output, train
from alexnet.data.sources import open_source
from alexnet.errors import RecipeError
from alexnet.training.finetune import default_recipe


def alexnet(*words: str | Path, cwd: Path | None = None, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"ALEXNET_CACHE": str(cache)} if cache else {})
    return subprocess.run(
        [sys.executable, "-m", "alexnet", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A person's folder: real digits as image files in class folders, and a classifier trained on them."""
    home = tmp_path_factory.mktemp("home")
    for i, image in enumerate(open_source("digits").splits["all"][:300]):
        if image.label < 3:
            folder = home / "images" / ["zero", "one", "two"][image.label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(image.load())).resize((40, 36)).save(folder / f"{i:03d}.png")
    (home / "images" / "one" / "broken.jpg").write_bytes(b"<html>not found</html>")
    done = alexnet(
        "train",
        "images",
        "--output-dir",
        "run",
        "--model",
        "lenet5",
        "--epochs",
        30,
        "--batch-size",
        8,
        cwd=home,
        cache=home / "cache",
    )
    assert done.returncode == 0, done.stderr
    (home / "train.out").write_text(done.stdout)
    (home / "train.err").write_text(done.stderr)
    return home


def test_training_ends_with_a_table_and_says_where_everything_lies(home):
    out, err = (home / "train.out").read_text(), (home / "train.err").read_text()
    for word in (
        "top-1",
        "top-1 error",
        "loss",
        "images/s",
        "run/plots",
        "run/report.html",
        "alexnet predict",
    ):
        assert word in out, word
    assert f"preparing into {home / 'cache'}" in err
    assert "left out: 1 unusable image, listed in" in err
    assert "epoch   1  train loss" in err
    assert "broken.jpg" in next((home / "cache").glob("*/skipped.jsonl")).read_text()


def test_evaluate(home):
    scores = json.loads(alexnet("evaluate", "run", "--json", cwd=home).stdout)
    assert {"top1", "top5", "loss", "count", "split", "crops"} <= set(scores)
    assert (scores["split"], scores["crops"]) == ("test", 1)
    assert 0.8 <= scores["top1"] <= 1
    assert scores["top5"] is scores["top5_error"] is None  # of three classes
    # the images it was trained on, given as a folder: recognized, split alike, the same test split
    again = json.loads(alexnet("evaluate", "run", "--data", "images", "--json", cwd=home, cache=home / "cache").stdout)
    assert (again["count"], again["top1"]) == (scores["count"], scores["top1"])
    table = alexnet("evaluate", "run", "--split", "validation", cwd=home).stdout
    assert "validation" in table
    assert "error" in table


def test_evaluate_other_images_as_a_whole(home, tmp_path):
    for name in ("zero", "one", "two"):
        folder = tmp_path / "other" / name
        folder.mkdir(parents=True)
        for file in sorted((home / "images" / name).glob("*.png"))[:4]:
            Image.open(file).point(lambda value: 255 - value).save(folder / file.name)  # not an image of the run
    done = alexnet("evaluate", home / "run", "--data", tmp_path / "other", "--json", cache=tmp_path / "cache")
    assert json.loads(done.stdout)["count"] == 12
    assert "all images are the test split" in done.stderr


def test_evaluate_refuses_other_classes(home, tmp_path):
    for name in ("zero", "one", "three"):
        (tmp_path / "other" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (30, 30), 20 * i).save(tmp_path / "other" / name / f"{i}.png")
    done = alexnet("evaluate", home / "run", "--data", tmp_path / "other", cache=tmp_path / "cache")
    assert done.returncode == 1
    assert "it lacks two; it also has three" in done.stderr
    assert "Traceback" not in done.stderr


def test_predict_files_folders_and_globs(home):
    done = alexnet("predict", "run", "images/zero", "images/two/0*.png", "--format", "json", cwd=home)
    found = json.loads(done.stdout)
    images = sorted((home / "images/zero").iterdir()) + sorted((home / "images/two").glob("0*.png"))
    assert [entry["filename"] for entry in found] == [str(p.relative_to(home)) for p in images]
    for entry in found:
        probabilities = [prediction["score"] for prediction in entry["top_k"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
    right = [entry["top_k"][0]["label"] == entry["filename"].split("/")[1] for entry in found]
    assert np.mean(right) > 0.8


def test_predict_csv_and_table(home):
    image = next((home / "images/zero").iterdir())
    done = alexnet("predict", "run", image, "--format", "csv", "--top", 2, cwd=home)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert rows[0]["label"] == "zero"
    table = alexnet("predict", "run", image, "--crops", 10, "--top", 1, cwd=home)
    assert table.returncode in (0, 1)  # a 32-pixel view in a 32-pixel image: all ten are the center
    assert image.name in table.stdout


def test_predict_in_bf16(home):
    image = next((home / "images/zero").iterdir())
    found = [
        json.loads(alexnet("predict", "run", image, "--precision", kind, "--format", "json", cwd=home).stdout)
        for kind in ("fp32", "bf16")
    ]
    exact, half = ({prediction["label"]: prediction["score"] for prediction in entry[0]["top_k"]} for entry in found)
    assert exact != half and all(abs(exact[name] - half[name]) < 0.03 for name in exact)


def test_predict_predictions_the_good_and_reports_the_bad(home):
    done = alexnet("predict", "run", "images/one", "--format", "json", cwd=home)
    found = {Path(entry["filename"]).name: entry for entry in json.loads(done.stdout)}
    assert done.returncode == 1
    assert "HTML" in found.pop("broken.jpg")["error"]
    assert "broken.jpg" in done.stderr
    assert all("top_k" in entry for entry in found.values())


@pytest.mark.parametrize(("damaged", "passes"), [(None, 2), (3, 2)])
def test_many_files_are_predicted_in_few_passes(home, tmp_path, damaged, passes, capsys):
    """40 files: 32 and 8 in one pass each, one of them damaged or not."""
    import torch

    from alexnet import cli
    from alexnet.models.network import Network

    file = next((home / "images" / "zero").glob("*.png")).read_bytes()
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(file if number != damaged else file[:50])
    calls = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: calls.append(1) if isinstance(module, Network) else None
    )
    try:
        status = cli.run(["predict", str(home / "run"), str(tmp_path), "--format", "json"])
    finally:
        handle.remove()
    predictions = json.loads(capsys.readouterr().out)
    assert len(calls) == passes and status == (damaged is not None)
    assert [Path(one["filename"]).name for one in predictions] == [f"{number:02}.png" for number in range(40)]
    assert [number for number, one in enumerate(predictions) if "error" in one] == ([] if damaged is None else [3])


def test_a_bundle_is_all_that_predicting_needs(home, tmp_path):
    (home / "run" / "bundle").rename(tmp_path / "classifier")
    try:
        image = next((home / "images/two").iterdir())
        done = alexnet("predict", tmp_path / "classifier", image, "--format", "json", cwd=tmp_path)
        assert json.loads(done.stdout)[0]["top_k"][0]["label"] == "two"
    finally:
        (tmp_path / "classifier").rename(home / "run" / "bundle")


def test_draw(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    for what in ("filters", "curves", "confusion", "predictions"):
        assert cli.run(["plot", what, "run", "--output", str(tmp_path / f"{what}.png")]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / f"{what}.png")
        with Image.open(tmp_path / f"{what}.png") as image:
            assert image.size[0] > 300


def test_prepare_and_its_check(home, tmp_path):
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (50, 50, 3), np.uint8)).save(
                root / name / f"{i}.jpg"
            )
    done = alexnet("prepare", root, tmp_path / "store", "--size", 40, "--fit", "pad")
    assert done.returncode == 0, done.stderr
    assert "2 classes, 40 pixels" in done.stdout
    assert alexnet("prepare", root, tmp_path / "store", "--check").returncode == 0
    image = root / "a" / "3.jpg"
    data = bytearray(image.read_bytes())
    data[-20] ^= 8  # decodes all the same
    image.write_bytes(data)
    done = alexnet("prepare", root, tmp_path / "store", "--check")
    assert done.returncode == 1
    assert "3.jpg" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["trian"], 2, "unknown command 'trian'. Did you mean 'train'?"),
        (["train"], 2, "train needs DATA"),
        (["train", "digitz"], 1, "digits"),
        (["train", "digits", "--weight-dekay", "1"], 2, "unknown option --weight-dekay. Did you mean --weight-decay?"),
        (["train", "--resume-from", "digits", "photos"], 2, "unknown option --resume-from. Did you mean --resume?"),
        (["train", "digits", "photos"], 2, "unexpected argument 'photos'"),
        (["train", "digits", "--no-json"], 2, "unknown option --no-json. Did you mean --json?"),
        (["train", "digits", "--epochs"], 2, "--epochs needs a value"),
        (["train", "digits", "--epochs", "ten"], 2, "--epochs: 'ten' is not an integer"),
        (["train", "digits", "--lr", "fast"], 2, "--lr: 'fast' is not a number"),
        (["train", "digits", "--lr-milestones", "3,4"], 2, "Separate the values by spaces: --lr-milestones 3 4"),
        (["train", "digits", "--fit", "crup"], 2, "--fit is 'crup'. Did you mean 'crop'?"),
        (["plot"], 2, "plot needs KIND and RUN"),
        (["study", "clams"], 2, "unknown study 'clams'. Did you mean 'claims'?"),
        (["train", "digits", "--lr", "-1"], 2, "--lr is -1.0; must be from"),
        (["train", "digits", "--recipe", "papper"], 2, "Did you mean 'paper'?"),
        (["train", "digits", "--model", "alexnett"], 1, "alexnet"),
        (["train", "digits", "--schedule", "plateau", "--validation", "0"], 2, "needs a validation split"),
        (["train", "--resume", "nowhere"], 1, "nowhere is no run folder"),
        (["train", "digits", "--resume", "nowhere"], 2, "DATA cannot change when a run is resumed"),
        (["train", "--resume", "nowhere", "--epochs", "3"], 2, "--epochs cannot change when a run is resumed"),
        (["train", "--resume", "nowhere", "--model", "lenet5"], 2, "--model cannot change when a run is resumed"),
        (["train", "--resume=nowhere", "--recipe=paper"], 2, "--recipe cannot change when a run is resumed"),
        (
            ["train", "--resume", "nowhere", "--group_column", "patient"],
            2,
            "--group-column cannot change when a run is resumed",
        ),
        (["train", "digits", "--store", "elsewhere"], 2, "--store is for --resume only"),
        (["train", "--json=True", "digits"], 2, "digits"),
        (["train", "digits", "--device", "cuda:99x"], 2, "--device"),
        (["evaluate", "nowhere"], 1, "there is no nowhere; must be a run folder or a bundle"),
        (["predict", "nowhere", "x.jpg"], 1, "there is no nowhere"),
        (["plot", "filter", "nowhere"], 2, "filters"),
        (["models", "alexnet2"], 1, "alexnet"),
        (["recipes", "modren"], 2, "Did you mean 'modern'?"),
    ],
)
def test_wrong_use_gets_one_clear_line(words, status, said, tmp_path, capsys):
    assert cli.run(words) == status
    output = capsys.readouterr()
    assert said in " ".join(output.err.split())
    assert "Traceback" not in output.err and output.err.count("\n") == 1
    assert output.out == ""


def test_every_command_has_help(capsys):
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as left:
            cli.run([*command.split(), "--help"])
        assert left.value.code == 0
        assert "--help" in capsys.readouterr().out
    assert cli.run(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(command in listed for command in cli.COMMANDS)


def test_train_help_shows_the_recipe_that_would_run(capsys):
    with pytest.raises(SystemExit):
        cli.run(["train", "--help", "--recipe", "paper"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "images per step (paper, 5: 128); auto: the largest power of two that memory and data allow (default: 128)"
        in text.replace(" │ │ ", " ")
    )


def test_train_help_has_one_titled_group_per_recipe_group(capsys):
    with pytest.raises(SystemExit):
        cli.run(["train", "--help"])
    lines = [line.strip(" │╭╮─") for line in capsys.readouterr().out.splitlines()]  # boxes in a terminal, else spaces
    titles = [line.removesuffix(" options") for line in lines if line.endswith(" options")]
    assert titles[-len(recipes.GROUPS) :] == list(recipes.GROUPS)
    text = "".join("".join(lines).split())  # a line may end behind any character
    for name, meaning in recipes.help_text().items():
        assert recipes.option(name) in text
        assert name == "recipe" or "".join(meaning.split()) in text


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_printed_recipe_is_a_recipe_file(name, capsys, tmp_path):
    """``alexnet recipes NAME > mine.toml; alexnet train DATA --recipe mine.toml`` trains as ``--recipe NAME`` does."""
    assert cli.run(["recipes", name]) == 0
    file = tmp_path / "mine.toml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert recipes.Recipe.from_file(file) == recipes.get_recipe(name)
    assert default_recipe("digits", str(file)) == default_recipe("digits", name)


def test_a_run_starts_from_the_recipe_file_of_another_run(tmp_path):
    """The options override the file, and what they leave idle is no fault of theirs."""
    file = tmp_path / "my.toml"
    written = recipes.get_recipe("digits").replace(schedule="multistep", lr_milestones=(2,), lr=0.005)
    file.write_text(recipes.to_toml(written))
    args, base, _ = train.parse(["digits", "--recipe", str(file), "--schedule", "cosine", "--epochs", "1"])
    assert base == written
    assert args.hyperparameters.changes(base) == {"schedule": "cosine", "epochs": 1}
    recipes.check_effect(base.replace(schedule="cosine", epochs=1), base)
    file.write_text("[optimizer]\nlearning_rate = 1")
    with pytest.raises(RecipeError, match=r"my\.toml: unknown key 'optimizer\.learning_rate'\. Did you mean"):
        train.parse(["digits", "--recipe", str(file)])


_SPELLED = {  # options of train, and what they change in the recipe of the digits
    ("--epochs", "7"): {"epochs": 7},
    ("--lr", "0.01"): {"lr": 0.01},
    ("--learning-rate", "0.02"): {"lr": 0.02},
    ("--fc-weight-decay", "-1"): {},
    ("--layer-lr-mult", "conv1=0.1,fc8=10"): {"layer_lr_mult": "conv1=0.1,fc8=10"},
    ("--checkpoint-every", "1epoch"): {"checkpoint_every": "1epoch"},
    ("--model", "alexnet_single"): {"model": "alexnet_single"},
    ("--output-dir", "digits"): {},
    ("--cache-gb", "1"): {},
    ("--no-divide-std",): {},
    ("--hflip", "0.5"): {"hflip": 0.5},
    ("--bias-weight-decay",): {"bias_weight_decay": True},
    ("--allow-truncated",): {},
    ("--no-report",): {},
    ("--quiet",): {},
    ("--json",): {},
}


def test_an_empty_name_is_no_data():
    """``alexnet train "$DATA"`` without the variable."""
    with pytest.raises(RecipeError, match="DATA is empty; must be digits, a folder"):
        train.parse([""])


@settings(max_examples=10)
@given(data=st.data())
def test_every_spelling_of_the_same_options_gives_the_same_run(data):
    options = data.draw(st.lists(st.sampled_from(list(_SPELLED)), unique_by=lambda o: o[0].removeprefix("--no-")))
    argv, plain, expected = [], ["digits"], recipes.get_recipe("digits")
    for name, *value in options:
        plain += [name, *value]
        expected = expected.replace(**_SPELLED[(name, *value)])
        spelling = "--" + name[2:].replace("-", data.draw(st.sampled_from("-_")))
        joined = value and data.draw(st.booleans())
        argv.append([f"{spelling}={value[0]}"] if joined else [spelling, *value])
    place = data.draw(st.integers(0, len(argv)))
    last = place == len(argv) and data.draw(st.booleans())
    argv.insert(place, ["--", "digits"] if last else ["digits"])
    args, base, start = train.parse([word for words in argv for word in words])
    same_base = api._base_recipe("digits", args.run.recipe or None, start.pretrained, args.overrides(base))
    assert same_base.replace(**args.overrides(base)) == base.replace(**args.overrides(base))
    assert args == train.parse(plain)[0]
    assert (args.data, base.replace(**args.hyperparameters.changes(base)), start.pretrained) == (
        "digits",
        expected,
        None,
    )


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--recipe=paper", "digits"], "paper"),
        (["--recipe", "paper", "--", "digits"], "paper"),
        (["digits", "--recipe", "modern", "--model", "lenet5"], "modern"),
        (["digits", "--model", "cifar_13pct", "--epochs", "200"], "cifar_13pct"),
        (["--lr-milestones", "1", "2", "--model=lenet5", "--", "digits"], "lenet5"),
        (["--layers", "net.cfg", "--layer_params=params.cfg", "digits"], "layer_file"),
    ],
)
def test_the_recipe_is_chosen_by_what_the_parser_reads(argv, name):
    assert train.parse(argv)[1].recipe == name


def test_models(capsys):
    assert cli.run(["models"]) == 0
    assert "lenet5" in capsys.readouterr().out
    assert cli.run(["models", "alexnet_single"]) == 0
    out = capsys.readouterr().out
    assert "(227 − 11 + 2·0) / 4 + 1 = 55" in out
    assert "62,378,344" in out
    assert cli.run(["models", "alexnet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 60_965_224


def test_recipes(capsys):
    assert cli.run(["recipes"]) == 0
    assert "paper" in capsys.readouterr().out
    assert cli.run(["recipes", "paper"]) == 0
    assert "momentum = 0.9" in capsys.readouterr().out
    assert cli.run(["recipes", "paper", "modern", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"]["optimizer"]["values"] == ["paper", "adamw"]
    assert cli.run(["recipes", "paper", "code2012", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"]["lr_milestones"]["values"] == [[], [25, 51, 79]]
    assert cli.run(["recipes", "paper", "code2012"]) == 0
    text = capsys.readouterr().out
    for word in (
        "--pca-noise-until-epoch",
        "67",
        "25, 51, 79",
        "`alexnet models alexnet` and `alexnet models alexnet_2012`",
        "docs/models.md",
        "2178 crops",
    ):
        assert word in text, word
    assert cli.run(["recipes", "cifar_18pct", "cifar_19pct"]) == 0
    assert "`alexnet models cifar_18pct` and `alexnet models cifar_19pct`" in capsys.readouterr().out


def test_help_and_import_are_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys, alexnet, alexnet.cli; alexnet.cli.run(['--help']);"
        "sys.exit(' '.join({'torch', 'numpy', 'matplotlib', 'sklearn', 'PIL'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import sys, alexnet; sys.exit(' '.join({'tyro', 'torch', 'numpy', 'rich'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_predict_imports_only_what_predicts(home):
    code = (
        "import sys, alexnet.cli; alexnet.cli.run(['predict', 'run', 'images/zero', '--format', 'csv']);"
        "heavy = {'matplotlib', 'sklearn', 'scipy', 'torchvision', 'pyarrow', 'pandas', 'onnxruntime', 'rich.table'};"
        "heavy |= {f'alexnet.{name}' for name in ('api', 'visualize', 'history', 'training.loop', 'data.doctor')};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(home):
    done = subprocess.run(
        f"{sys.executable} -m alexnet predict run images/zero --format csv | head -1",
        shell=True,
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("filename,rank")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", ["--help", "models", "train --help"])
def test_a_reader_that_has_left_before_the_first_line_is_no_error(words):
    line = f"{sys.executable} -m alexnet {words} | true"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr


def test_ten_crops_of_what_was_trained_without_mirrors_come_with_a_warning(home):
    assert "trained without horizontal flips" in alexnet("evaluate", "run", "--crops", 10, cwd=home).stderr
    assert "mirrors" not in alexnet("evaluate", "run", cwd=home).stderr


@pytest.mark.parametrize("command", ["train", "evaluate", "predict run", "bench --only nosuch"])
def test_kernels_off_turns_all_kernels_off(command):
    """The commands end with status 2 after they have read their options: something else is missing."""
    with kernels.using("auto"):
        assert cli.run([*command.split(), "--kernels", "off"]) == 2
        assert not any(map(kernels.enabled, kernels.KERNELS))
        assert cli.run(command.split()) == 2
        assert all(map(kernels.enabled, kernels.KERNELS))


def test_kernels_off_changes_no_count(home):
    fast = json.loads(alexnet("evaluate", "run", "--json", cwd=home).stdout)
    reference = json.loads(alexnet("evaluate", "run", "--kernels", "off", "--json", cwd=home).stdout)
    assert reference["loss"] == pytest.approx(fast["loss"], rel=1e-4)
    assert (reference["top1"], reference["count"]) == (fast["top1"], fast["count"])


@pytest.mark.parametrize("command", [["prepare", "IMAGES", "STORE", "--size", "32"], ["doctor", "IMAGES"]])
def test_data_commands_do_not_import_pytorch(tmp_path, command):
    """It takes seconds, and four times the memory that preparing ten thousand images takes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    for number, image in enumerate(pixels):
        folder = tmp_path / "images" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    paths = {"IMAGES": str(tmp_path / "images"), "STORE": str(tmp_path / "store")}
    code = (
        "import sys\nfrom alexnet.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    )
    arguments = [sys.executable, "-c", code, *(paths.get(word, word) for word in command)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_a_second_preparation_has_a_clock_of_its_own(monkeypatch, capsys):
    """A study prepares one part of its data after the other: the hours of training between them are not counted."""
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    progress = output.Progress("preparing")
    for start in (0.0, 3600.0):
        for done in (1, 51, 101):
            now[0] = start + done / 100
            progress(done, 101)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "preparing: 1 of 101 images",
        "preparing: 51 of 101 images, 100 images/s, 0 s left",
        "preparing: 101 of 101 images, 100 images/s",
    ]
    assert lines[3:] == lines[:3]


def test_a_slow_work_is_not_silent_until_a_tenth_is_done(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    progress = output.Progress("predicting")
    for done in range(0, 200, 10):
        now[0] = 500 + done / 2  # 2 images/s
        progress(done, 100_000)
    assert [line.split(",")[0].split()[1] for line in capsys.readouterr().err.splitlines()] == ["0", "60", "120", "180"]
