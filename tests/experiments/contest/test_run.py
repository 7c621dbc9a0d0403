"""A small contest on 250 digits: its files, what is reused, interruption, and the command."""

import csv
import json
import shutil
import signal
import threading

import numpy as np
import pytest
import torch

from alexnet import cli
from alexnet.api import DataOptions
from alexnet.data.atomic_io import sha256_of
from alexnet.data.store import Split
from alexnet.errors import BundleError, Interrupted, RecipeError, RunError
from alexnet.evaluation.intervals import mcnemar
from alexnet.experiments import runner
from alexnet.experiments.contest import plan as plan_module
from alexnet.experiments.contest import train
from alexnet.experiments.contest import train as budget_module
from alexnet.experiments.contest.plan import CONTESTANTS, Contestant, ContestConfig, make_plan
from alexnet.experiments.contest.run import run_contest
from alexnet.experiments.contest.train import Predictions, TimeLog, fit_plan, reduce_epochs
from alexnet.experiments.fisher import train as fisher
from alexnet.experiments.runner import display_name, open_dataset, read_plan
from alexnet.training import loop, time_budget
from alexnet.training.run_folder import times_tested
from alexnet.training.time_budget import SAFETY_FACTOR, TrainingSpeed, fit_epochs

pytest.importorskip("cv2")
pytest.importorskip("torchvision.models")
NETS = ("alexnet", "lenet5", "resnet18", "fisher")
SIZE = 32  # pixels of all crops
# Small networks under the contestants' names, because the contest is tested. test_plan.py tests the real recipes.
SMALL = (
    Contestant(
        "alexnet", "AlexNet, two towers", 2012, "alexnet_small", {"initialization": "own"}, "15.3 % (2012, first)"
    ),
    Contestant("alexnet_owt", "AlexNet, one weird trick", 2014, "alexnet_small_single", {"initialization": "own"}),
    Contestant("resnet18", "ResNet-18", 2015, "residual_8", {"initialization": "own", "divide_std": True}),
)


@pytest.fixture(scope="module", autouse=True)
def small_contestants():
    with pytest.MonkeyPatch.context() as patch:
        for contestant in SMALL:
            patch.setitem(CONTESTANTS, contestant.name, contestant)
        yield


def run(store, folder, log=None, nets=NETS, **config):
    dataset = open_dataset(str(store.path), DataOptions())
    plan = make_plan(dataset, "few digits", ContestConfig(nets, **{"epochs": 1, "image_size": SIZE} | config))
    options = DataOptions(log=log.append if log is not None else None)
    return run_contest(plan, dataset, folder, options, device="cpu")


@pytest.fixture(scope="module")
def contest(digits, tmp_path_factory, small_contestants):
    folder = tmp_path_factory.mktemp("contest") / "run"
    log, read = [], []
    whole = Split.gather

    def spying(split, indices, out=None):
        read.append(split.name)
        return whole(split, indices, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Split, "gather", spying)
        result = run(digits, folder, log)
    return folder, result, log, read


def test_every_contestant_has_results(contest, digits):
    folder, result, log, _ = contest
    assert {row.contestant.name for row in result.rows} == set(NETS)
    assert [row.top1.value for row in result.rows] == sorted(row.top1.value for row in result.rows)
    for row in result.rows:
        path, labels = folder / f"{row.contestant.name}.npz", digits.split("test").labels
        predictions = Predictions.load(path, row.result.predictions_sha256, labels)
        assert predictions.scores.shape == (50, 10) and len(row.result.predictions_sha256) == 64
        assert row.top1.value == pytest.approx(1 - (predictions.scores.argmax(1) == predictions.labels).mean())
        assert row.top1.low <= row.top1.value <= row.top1.high and row.top5.value <= row.top1.value
        assert row.latency.low <= row.latency.median <= row.latency.high
        assert row.result.seconds > row.result.training_seconds > 0 and row.result.bytes > 0
    assert any("SIFT" in line for line in log)


def test_errors_are_those_of_the_bundles(contest, digits):
    folder, result, _, _ = contest
    for row in result.rows:
        if row.contestant.model:
            config = json.loads((folder / row.contestant.name / "bundle" / "config.json").read_text())
            assert row.top1.value == pytest.approx(config["metrics"]["test"]["top1_error"])
            assert row.result.bytes == (folder / row.contestant.name / "bundle" / "model.safetensors").stat().st_size
            assert not (folder / row.contestant.name / "checkpoints").exists()
            assert times_tested(folder / row.contestant.name) == 1, "the contest's look is noted, once"


@pytest.mark.parametrize("name", ["plan", "store", "clock", "alexnet", "fisher", "latency"])
def test_a_damaged_file_of_a_contest_is_one_line(contest, digits, tmp_path, name):
    folder = shutil.copytree(contest[0], tmp_path / "contest")
    path = folder / f"{name}.json"
    for text in ("[1]", "null", '{"recipe": 3, "x": null}', "{", "NaN", "[" * 100_000, "\x00"):
        path.write_text(text)
        with pytest.raises(RunError) as caught:
            run(digits, folder)
        assert str(path) in str(caught.value) or "holds another contest" in str(caught.value)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["plan", "store", "clock", "alexnet", "fisher", "latency"])
def test_an_edited_number_of_a_contest_is_noticed(contest, digits, tmp_path, name):
    """Each is a plain JSON file; an edited one was taken over into the table."""
    folder = shutil.copytree(contest[0], tmp_path / "contest")
    path = folder / f"{name}.json"
    text = path.read_text()
    at = next(i for i, c in enumerate(text) if c in "123456789" and text[i - 1] in " .0")
    path.write_text(text[:at] + str(int(text[at]) % 9 + 1) + text[at + 1 :])
    with pytest.raises(RunError, match=f"{name}.json has changed since it was written: its checksum differs"):
        run(digits, folder)


@pytest.mark.parametrize("name", ["plan", "store", "clock", "alexnet", "fisher", "latency"])
def test_a_file_of_a_contest_without_its_checksum_is_refused(contest, digits, tmp_path, name):
    """Who deletes it with a number would have an edited result in the table."""
    folder = shutil.copytree(contest[0], tmp_path / "contest")
    path = folder / f"{name}.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"})
    )
    with pytest.raises(
        RunError, match=f"{name}.json has changed since it was written: its checksum is missing"
    ) as caught:
        run(digits, folder)
    if name == "plan":  # without it the folder is refused as a whole
        assert caught.value.todo == "choose another --output-dir"
    else:
        assert caught.value.todo.startswith("delete it and run the same command again, or ")
    if name == "latency":
        path.unlink()
        run(digits, folder)


def test_predictions_of_another_contestant_are_refused(contest, digits, tmp_path):
    folder = shutil.copytree(contest[0], tmp_path / "contest")
    shutil.copy(folder / "fisher.npz", folder / "alexnet.npz")
    with pytest.raises(RunError, match=r"alexnet\.npz is damaged: alexnet.npz has changed since it was written"):
        run(digits, folder)
    with pytest.raises(RunError, match=r"alexnet\.npz is damaged: it is of other images"):
        Predictions.load(folder / "alexnet.npz", sha256_of(folder / "alexnet.npz"), digits.split("validation").labels)


def test_mcnemar_is_on_the_same_images(contest, digits):
    folder, result, _, _ = contest
    labels = digits.split("test").labels
    correct = {name: Predictions.load(path := folder / f"{name}.npz", sha256_of(path), labels).correct for name in NETS}
    for row in result.rows:
        if row.contestant.name == "alexnet":
            assert row.comparison is None
            continue
        a, b = correct["alexnet"], correct[row.contestant.name]
        assert row.comparison.p_value == mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))
        assert row.comparison.difference.value == pytest.approx(b.mean() - a.mean(), abs=1e-6)


def test_fisher_vectors_are_better_on_few_images(contest):
    """One epoch of 160 images teaches AlexNet nothing; descriptors that need no learning are ahead."""
    _, result, _, _ = contest
    by_name = {row.contestant.name: row for row in result.rows}
    assert by_name["fisher"].top1.value < 0.3
    assert "Fisher vectors" in result.verdict and "better" in result.verdict


def test_fisher_vectors_read_the_test_split_last(contest):
    """It is the first to begin: until its predictions, train and validation alone are read."""
    _, _, _, read = contest
    first = read.index("test")
    assert set(read[:first]) == {"train", "validation"}
    assert "validation" in read[:first]


def test_files_of_a_contest(contest):
    folder, result, _, _ = contest
    written = json.loads((folder / "contest.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert "15.3 %" in written["in_2012"] and "26.2 %" in written["in_2012"]
    with (folder / "contest.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [row.contestant.name for row in result.rows]
    assert [float(line["top1_error"]) for line in lines] == [row.top1.value for row in result.rows]
    assert (folder / "contest.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "contest.md").read_text()
    assert all(row.contestant.title in page for row in result.rows) and "26.2 %" in page
    assert written["counts"] == {"train": 160, "validation": 40, "test": 50}


def test_finished_contestants_are_reused(contest, digits, monkeypatch):
    folder, result, _, _ = contest
    for module, name in ((loop, "train"), (fisher, "train")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("trained again"))
    again = run(digits, folder)
    before, after = result.to_dict(), again.to_dict()
    assert before.pop("seconds") and after.pop("seconds")
    assert before == after
    (folder / "contest.json").write_text(json.dumps(result.to_dict()))


def test_more_contestants_may_come_with_equal_epochs(contest, digits, monkeypatch):
    folder, _, _, _ = contest
    trained = []

    def spying(job, *args, **kwargs):
        trained.append(job.recipe.model)
        return runner.get_or_train(job, *args, **kwargs)

    monkeypatch.setattr(train, "get_or_train", spying)
    fewer = run(digits, folder, nets=("alexnet", "alexnet_owt"))
    assert trained == ["alexnet_small_single"] and len(fewer.rows) == 2
    assert fewer.verdict.endswith(": Fisher vectors did not take part")


@pytest.mark.parametrize(
    ("config", "field"), [({"epochs": 2}, "epochs"), ({"seed": 1}, "seed"), ({"image_size": 72}, "image_size")]
)
def test_another_contest_is_refused(contest, digits, config, field):
    folder, _, _, _ = contest
    with pytest.raises(RunError) as caught:
        run(digits, folder, **config)
    assert str(caught.value) == f"{folder} holds another contest: {field} differs; choose another --output-dir"


def test_a_folder_of_something_else(digits, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="exists already and holds no contest; must be a new folder"):
        run(digits, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_interrupted_contest_continues(digits, tmp_path, monkeypatch):
    """SIGTERM in the second network's first epoch: the first stays, the second goes on, and the time_log adds up."""
    whole, calls = loop.train_epoch, []

    def stopping(training):
        calls.append(training.folder.name)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        whole(training)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(loop, "train_epoch", stopping)
    with pytest.raises(Interrupted, match="the same command continues"):
        run(digits, tmp_path / "run", nets=("lenet5", "resnet18"))
    time_log = TimeLog(tmp_path / "run")
    first = time_log.of("resnet18")
    assert first > 0 and (tmp_path / "run" / "lenet5.json").exists()
    assert not (tmp_path / "run" / "resnet18.json").exists()
    again = run(digits, tmp_path / "run", nets=("lenet5", "resnet18"))
    assert calls == ["lenet5", "resnet18", "resnet18"]
    row = next(row for row in again.rows if row.contestant.name == "resnet18")
    assert row.result.seconds > first


def test_equal_time_is_planned_and_the_plan_is_found_again(digits, tmp_path, monkeypatch):
    """Two networks of known speed: each has the epochs that fit into its share, and its schedule ends with them."""
    speeds = {
        "lenet5_shrunk": TrainingSpeed(0.02, 0.02, 0.001, 1.0),
        "residual_8": TrainingSpeed(0.05, 0.05, 0.001, 1.0),
    }
    monkeypatch.setattr(time_budget, "measure_training", lambda recipe, *_: speeds[recipe.model])
    monkeypatch.setattr(
        budget_module, "next_share", lambda _budget, _elapsed, _remaining, equal: equal
    )  # however busy the machine is
    folder = tmp_path / "run"
    result = run(digits, folder, nets=("lenet5", "resnet18"), epochs=None, budget="90s")
    share = SAFETY_FACTOR * 90 * 0.94 / 2
    # lenet5: 1 s to begin and end, 0.34 s for the predictions at the end; an epoch has 160 · 0.02 + 40 · 0.001 s
    expected = {"lenet5": int((share - 1.34) / 3.24), "resnet18": int((share - 1.34) / 8.04)}
    assert expected["lenet5"] == 11 and expected["resnet18"] == 4
    assert {row.contestant.name: row.result.epochs for row in result.rows} == expected
    for name in expected:  # the learning rate is near 0 at the end
        rates = [float(r["lr"]) for r in csv.DictReader((folder / name / "results.csv").read_text().splitlines())]
        assert rates[-1] < 0.2 * max(rates)
    monkeypatch.setattr(time_budget, "measure_training", lambda *_: pytest.fail("measured again"))
    assert run(digits, folder, nets=("lenet5", "resnet18"), epochs=None, budget="90s").rows == result.rows


def test_delay_leaves_fewer_epochs_for_the_others(digits, tmp_path, monkeypatch):
    """A network whose share has become smaller is fitted again, to one epoch at least."""
    slow = TrainingSpeed(0.01, 0.01, 0.001, 1.0)
    dataset = open_dataset(str(digits.path), DataOptions())
    plan = make_plan(dataset, "few digits", ContestConfig(("lenet5", "resnet18"), budget="100s", image_size=SIZE))
    recipe = fit_epochs(plan.recipe(plan.contestants[1]), slow, plan.image_size, (160, 40, 50), 40.0)
    assert recipe.epochs > 5
    file = {"recipes": {"resnet18": recipe.to_dict()}, "left_out": {}, "speeds": {"resnet18": vars(slow)}}
    runner.write_result(tmp_path / "recipes.json", file)
    less = [reduce_epochs(plan, plan.contestants[1], recipe, digits, tmp_path, spent).epochs for spent in (0, 60, 99)]
    assert less[0] == recipe.epochs and 1 < less[1] < less[0] and less[2] == 1
    assert json.loads((tmp_path / "recipes.json").read_text())["recipes"]["resnet18"]["epochs"] == 1
    (tmp_path / "resnet18").mkdir()
    (tmp_path / "resnet18" / "run.json").write_text("{}")
    assert (
        reduce_epochs(plan, plan.contestants[1], recipe, digits, tmp_path, 99).epochs == recipe.epochs
    )  # it has begun


def test_network_without_time_for_an_epoch_is_refused_first(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(time_budget, "measure_training", lambda *_: TrainingSpeed(10.0, 10.0, 1.0, 1.0))
    with pytest.raises(RecipeError, match=r"one epoch of lenet5_shrunk takes 33 min 1 s on this machine, and its"):
        run(digits, tmp_path / "run", nets=("lenet5", "alexnet"), epochs=None, budget="60s")
    assert not (tmp_path / "run" / "lenet5").exists()


def test_slow_default_contestant_is_left_out(digits, tmp_path, monkeypatch):
    """Three networks of the usual ones, of which one would see the images once or twice: the others get its time."""
    slow, quick = TrainingSpeed(0.05, 0.05, 0.01, 30.0), TrainingSpeed(0.02, 0.02, 0.001, 1.0)
    monkeypatch.setattr(
        time_budget, "measure_training", lambda recipe, *_: slow if recipe.model == "vgg11_bn" else quick
    )
    monkeypatch.setattr(plan_module, "DEFAULT_CONTESTANTS", ("alexnet", "vgg11_bn", "resnet18"))
    dataset, log = open_dataset(str(digits.path), DataOptions()), []
    plan = make_plan(dataset, "few digits", ContestConfig(budget="90s"))
    (tmp_path / "x").mkdir()
    arguments = (TimeLog(tmp_path / "x"), torch.device("cpu"), DataOptions(log=log.append), 0.0)
    fitted = fit_plan(plan, digits, tmp_path, *arguments)
    assert (
        [contestant.name for contestant in fitted.plan.contestants] == list(fitted.recipes) == ["alexnet", "resnet18"]
    )
    assert log[-1] == fitted.messages[0] and log[-1].startswith("left out: VGG-11, batch norm: 3 epochs take ")
    assert fitted.plan.equal_share == pytest.approx(90 * 0.94 / 2) and fitted.recipes["alexnet"].epochs > 3
    monkeypatch.setattr(time_budget, "measure_training", lambda *_: pytest.fail("measured again"))
    assert fit_plan(plan, digits, tmp_path, *arguments) == fitted
    monkeypatch.setattr(time_budget, "measure_training", lambda *_: TrainingSpeed(10.0, 10.0, 1.0, 1.0))
    with pytest.raises(RecipeError, match="one epoch of alexnet_small takes"):  # it is whom all are compared with
        fit_plan(plan, digits, tmp_path / "x", *arguments)


def test_diverged_is_a_result(digits, tmp_path, monkeypatch):
    whole = loop.train_step
    monkeypatch.setattr(
        loop,
        "train_step",
        lambda state, batch: (float("nan"), 0) if "shrunk" in state.network.name else whole(state, batch),
    )
    result = run(digits, tmp_path / "run", nets=("lenet5", "resnet18"))
    last = result.rows[-1]
    assert last.contestant.name == "lenet5" and last.top1 is None and "the loss is nan" in last.result.diverged
    assert "diverged" in (tmp_path / "run" / "contest.md").read_text()


def test_published_weights_come_from_torchvisions_cache(digits, tmp_path, monkeypatch):
    """A file of the published name, planted: training starts from its weights, except for the last layer."""
    import torchvision

    name = torchvision.models.get_model_weights("googlenet").DEFAULT.url.rpartition("/")[2]
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    planted = torchvision.models.googlenet(weights=None, num_classes=1000, aux_logits=True, init_weights=False)
    torch.save(planted.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    monkeypatch.setattr(loop, "train", lambda training: None)
    states = []
    monkeypatch.setattr(train, "get_or_train", _started(states))
    with pytest.raises(StopIteration):
        run(digits, tmp_path / "run", nets=("googlenet",), pretrained=True, image_size=96)
    network, start = states
    for layer, theirs in (("conv1.conv", "conv1.conv"), ("aux1.head.conv.conv", "aux1.conv.conv")):
        assert torch.equal(network.state_dict()[f"{layer}.weight"], planted.state_dict()[f"{theirs}.weight"])
    assert network.fc.weight.shape == (10, 1024) and start.normalization.mean.tolist() == [127.5] * 3


def _started(states):
    def get_or_train(job, store, folder, *, device, num_workers, init_from):
        from alexnet.training.state import State

        init_from.check(job.recipe)
        states.extend([State(job.recipe, store, torch.device("cpu"), init_from).network, init_from])
        raise StopIteration

    return get_or_train


def test_missing_pretrained_weights(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.urlopen", _no_network)
    with pytest.raises(BundleError) as caught:
        run(digits, tmp_path / "run", nets=("vgg11_bn",), pretrained=True)
    text = str(caught.value)
    assert text.startswith("weights of vgg11_bn are not in torchvision's cache, and https://") and "\n" not in text
    assert f"put that file into {tmp_path / 'hub' / 'checkpoints'}, or leave vgg11_bn out" in text


def _no_network(*_args, **_kwargs):
    raise OSError("no network")


# --- from a terminal ------------------------------------------------------------------------------------------------


def test_command(contest, digits, capsys):
    folder, result, _, _ = contest
    words = [
        "study",
        "contest",
        str(digits.path),
        "--output-dir",
        str(folder),
        "--epochs",
        "1",
        "--image-size",
        str(SIZE),
        "--device",
        "cpu",
        "--json",
    ]
    plan_file = read_plan(folder, "contest")
    data_name, plan_file["data"] = plan_file["data"], display_name(str(digits.path))
    runner.write_result(folder / "plan.json", plan_file)
    assert cli.run([*words, "--nets", "alexnet, lenet5,fisher"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [c["name"] for c in found["contestants"]] == [
        row.contestant.name for row in result.rows if row.contestant.name != "resnet18"
    ]
    assert "equal epochs: 1 of each network" in said.err
    assert cli.run([*words[:-1], "--nets", "alexnet,fisher"]) == 0
    said = capsys.readouterr()
    assert "McNemar" in said.out and "15.3 %" in said.out and "verdict" in said.out and "SIFT + Fisher" in said.out
    runner.write_result(folder / "plan.json", plan_file | {"data": data_name})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "contest needs DATA; pass digits, cifar10, a folder, a table or a store"),
        (["digits", "--nets", "alexnit"], "--nets: unknown network 'alexnit'. Did you mean 'alexnet'?"),
        (["digits", "--budget", "1min"], "--budget is 1 min, which is 7.5 s for each of 8 contestants"),
    ],
)
def test_wrong_use(words, message, capsys):
    assert cli.run(["study", "contest", *words]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith(f"alexnet: {message}") and not said.out


def test_one_class_is_no_contest(tmp_path, capsys):
    from alexnet.data.decode import encode_png

    (tmp_path / "data" / "only").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "data" / "only" / f"{number}.png").write_bytes(encode_png(np.full((70, 70, 3), number, np.uint8)))
    words = [
        "study",
        "contest",
        str(tmp_path / "data"),
        "--nets",
        "lenet5",
        "--epochs",
        "1",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    assert cli.run([*words, "--cache", str(tmp_path / "cache")]) in (1, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("alexnet: ") and "class" in last
