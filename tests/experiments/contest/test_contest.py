"""A real contest, tiny: three contestants on 250 digits; what it writes, and that nothing is done twice."""

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
from alexnet.data.store import Split
from alexnet.errors import BundleError, Interrupted, RecipeError, RunError
from alexnet.evaluation.intervals import mcnemar
from alexnet.experiments import plan as material
from alexnet.experiments import runner
from alexnet.experiments.contest import entry, plan, run
from alexnet.experiments.contest import entry as predictions
from alexnet.experiments.contest import plan as budget
from alexnet.experiments.contest import plan as contestants
from alexnet.experiments.contest import run as fitting
from alexnet.experiments.contest.entry import Clock
from alexnet.experiments.contest.plan import ENTRANTS, Config, Contestant
from alexnet.experiments.fisher import classifier
from alexnet.recipe import get_recipe
from alexnet.training import loop
from alexnet.training.provenance import times_tested

pytest.importorskip("cv2")
pytest.importorskip("torchvision.models")
NETS = ("alexnet", "lenet5", "resnet18", "fisher")
SIDE = 32  # pixels of all crops
# Small networks under the contestants' names: what is tested is the contest. Their recipes are test_plan's matter.
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
            patch.setitem(ENTRANTS, contestant.name, contestant)
        yield


def held(store, folder, said=None, nets=NETS, **config):
    found = material.find(str(store.path), DataOptions())
    made = plan.make(found, "few digits", Config(nets, **{"epochs": 1, "side": SIDE} | config))
    return run.run(made, found, folder, DataOptions(log=said.append if said is not None else None), device="cpu")


@pytest.fixture(scope="module")
def contest(digits, tmp_path_factory, small_contestants):
    folder = tmp_path_factory.mktemp("contest") / "run"
    said, read = [], []
    whole = Split.gather

    def spying(split, indices, out=None):
        read.append(split.name)
        return whole(split, indices, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Split, "gather", spying)
        outcome = held(digits, folder, said)
    return folder, outcome, said, read


def test_everybody_has_answered(contest, digits):
    folder, outcome, said, _ = contest
    assert {row.contestant.name for row in outcome.rows} == set(NETS)
    assert [row.top1.value for row in outcome.rows] == sorted(row.top1.value for row in outcome.rows)
    for row in outcome.rows:
        found = predictions.load(folder / f"{row.contestant.name}.npz")
        assert found.scores.shape == (50, 10) and np.array_equal(found.labels, digits.split("test").labels)
        assert row.top1.value == pytest.approx(1 - (found.scores.argmax(1) == found.labels).mean())
        assert row.top1.low <= row.top1.value <= row.top1.high and row.top5.value <= row.top1.value
        assert row.speed.low <= row.speed.median <= row.speed.high
        assert row.entry.seconds > row.entry.training_seconds > 0 and row.entry.bytes > 0
    assert any("SIFT" in line for line in said)


def test_errors_are_those_of_the_bundles(contest, digits):
    folder, outcome, _, _ = contest
    for row in outcome.rows:
        if row.contestant.model:
            config = json.loads((folder / row.contestant.name / "bundle" / "config.json").read_text())
            assert row.top1.value == pytest.approx(config["metrics"]["test"]["top1_error"])
            assert row.entry.bytes == (folder / row.contestant.name / "bundle" / "model.safetensors").stat().st_size
            assert not (folder / row.contestant.name / "checkpoints").exists()
            assert times_tested(folder / row.contestant.name) == 1, "the contest's look is noted, once"


@pytest.mark.parametrize("name", ["plan", "store", "clock", "alexnet", "fisher", "milliseconds"])
def test_a_damaged_file_of_a_contest_is_one_line(contest, digits, tmp_path, name):
    folder = shutil.copytree(contest[0], tmp_path / "contest")
    path = folder / f"{name}.json"
    for text in ("[1]", "null", '{"recipe": 3, "x": null}', "{", "NaN", "[" * 100_000, "\x00"):
        path.write_text(text)
        with pytest.raises(RunError) as caught:
            held(digits, folder)
        assert str(path) in str(caught.value) or "holds another contest" in str(caught.value)
        assert str(caught.value).isprintable()


def test_mcnemar_is_on_the_same_images(contest):
    folder, outcome, _, _ = contest
    right = {name: predictions.load(folder / f"{name}.npz").first for name in NETS}
    for row in outcome.rows:
        if row.contestant.name == "alexnet":
            assert row.against is None
            continue
        a, b = right["alexnet"], right[row.contestant.name]
        assert row.against.p_value == mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))
        assert row.against.difference.value == pytest.approx(b.mean() - a.mean(), abs=1e-6)


def test_the_runner_up_leads_on_so_few_images(contest):
    """One epoch of 160 images teaches AlexNet nothing; descriptors that need no learning are ahead."""
    _, outcome, _, _ = contest
    by_name = {row.contestant.name: row for row in outcome.rows}
    assert by_name["fisher"].top1.value < 0.3
    assert "Fisher vectors" in outcome.verdict and "better" in outcome.verdict


def test_the_runner_up_reads_the_test_split_once_and_last(contest):
    """It is the first to begin: until its predictions, train and validation alone are read."""
    _, _, _, read = contest
    first = read.index("test")
    assert set(read[:first]) == {"train", "validation"}
    assert "validation" in read[:first]


def test_what_is_left_behind(contest):
    folder, outcome, _, _ = contest
    written = json.loads((folder / "contest.json").read_text())
    assert written == json.loads(json.dumps(outcome.to_dict()))
    assert "15.3 %" in written["in_2012"] and "26.2 %" in written["in_2012"]
    with (folder / "contest.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [row.contestant.name for row in outcome.rows]
    assert [float(line["top1_error"]) for line in lines] == [row.top1.value for row in outcome.rows]
    assert (folder / "contest.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "contest.md").read_text()
    assert all(row.contestant.title in page for row in outcome.rows) and "26.2 %" in page
    assert written["counts"] == {"train": 160, "validation": 40, "test": 50}


def test_a_finished_contestant_stays_finished(contest, digits, monkeypatch):
    folder, outcome, _, _ = contest
    for module, name in ((loop, "train"), (classifier, "train")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("trained again"))
    again = held(digits, folder)
    before, after = outcome.to_dict(), again.to_dict()
    assert before.pop("seconds") and after.pop("seconds")
    assert before == after
    (folder / "contest.json").write_text(json.dumps(outcome.to_dict()))


def test_more_contestants_may_come_with_equal_epochs(contest, digits, monkeypatch):
    folder, _, _, _ = contest
    trained = []
    whole = runner.obtain
    monkeypatch.setattr(entry, "obtain", lambda job, *a, **k: trained.append(job.arm.paper) or whole(job, *a, **k))
    fewer = held(digits, folder, nets=("alexnet", "alexnet_owt"))
    assert trained == ["alexnet_small_single"] and len(fewer.rows) == 2
    assert "did not both take part" in fewer.verdict


@pytest.mark.parametrize(("config", "word"), [({"epochs": 2}, "epochs"), ({"seed": 1}, "seed"), ({"side": 72}, "side")])
def test_another_contest_is_refused(contest, digits, config, word):
    folder, _, _, _ = contest
    with pytest.raises(RunError) as caught:
        held(digits, folder, **config)
    assert str(caught.value) == f"{folder} holds another contest: its {word} is different; choose another --output-dir"


def test_a_folder_of_something_else(digits, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="exists already and holds no contest; must be a new folder"):
        held(digits, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_stopped_contest_goes_on(digits, tmp_path, monkeypatch):
    """SIGTERM in the second network's first epoch: the first stays, the second goes on, and the clock adds up."""
    whole, calls = loop.train_epoch, []

    def stopping(training):
        calls.append(training.folder.name)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        whole(training)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(loop, "train_epoch", stopping)
    with pytest.raises(Interrupted, match="the same command goes on"):
        held(digits, tmp_path / "run", nets=("lenet5", "resnet18"))
    clock = entry.Clock(tmp_path / "run")
    first = clock.of("resnet18")
    assert first > 0 and (tmp_path / "run" / "lenet5.json").exists()
    assert not (tmp_path / "run" / "resnet18.json").exists()
    again = held(digits, tmp_path / "run", nets=("lenet5", "resnet18"))
    assert calls == ["lenet5", "resnet18", "resnet18"]
    row = next(row for row in again.rows if row.contestant.name == "resnet18")
    assert row.entry.seconds > first


def test_equal_time_is_planned_and_the_plan_is_found_again(digits, tmp_path, monkeypatch):
    """Two networks of known pace: each has the epochs that fit into its share, and its rate ends with them."""
    paces = {"lenet5_shrunk": budget.Pace(0.02, 0.02, 0.001, 1.0), "residual_8": budget.Pace(0.05, 0.05, 0.001, 1.0)}
    monkeypatch.setattr(fitting, "measure_training", lambda recipe, *_: paces[recipe.model])
    monkeypatch.setattr(
        fitting.budget, "share", lambda _budget, _spent, _left, equal: equal
    )  # however busy the machine is
    folder = tmp_path / "run"
    outcome = held(digits, folder, nets=("lenet5", "resnet18"), epochs=None, budget="90s")
    share = budget.CAREFUL * 90 * 0.94 / 2
    # lenet5: 1 s to begin and end, 0.18 s for the scores at the end; an epoch has 160 · 0.02 + 40 · 0.001 s
    expected = {"lenet5": int((share - 1.18) / 3.24), "resnet18": int((share - 1.18) / 8.04)}
    assert expected["lenet5"] == 11 and expected["resnet18"] == 4
    assert {row.contestant.name: row.entry.epochs for row in outcome.rows} == expected
    for name in expected:  # the rate has come down to almost nothing when the time is over
        rates = [float(r["lr"]) for r in csv.DictReader((folder / name / "results.csv").read_text().splitlines())]
        assert rates[-1] < 0.2 * max(rates)
    monkeypatch.setattr(fitting, "measure_training", lambda *_: pytest.fail("measured again"))
    assert held(digits, folder, nets=("lenet5", "resnet18"), epochs=None, budget="90s").rows == outcome.rows


def test_a_pace_is_measured(digits):
    """More to compute takes longer; what is measured is positive and finite."""
    recipe = get_recipe("digits").replace(initialization="own", stored_size=32, divide_std=True, precision="fp32")
    slow, fast = (
        fitting.measure_training(recipe.replace(model=f"residual_{depth}", image_size=32), digits, torch.device("cpu"))
        for depth in (56, 8)
    )
    for found in (slow, fast):
        assert all(0 < value < 60 for value in found.to_dict().values()) and found.small == found.full
    assert slow.full > fast.full and slow.judge > fast.judge


def test_who_is_late_leaves_less_for_the_others(digits, tmp_path, monkeypatch):
    """A network whose share has become smaller is fitted again, to one epoch at least."""
    slow = budget.Pace(0.01, 0.01, 0.001, 1.0)
    found = material.find(str(digits.path), DataOptions())
    made = plan.make(found, "few digits", Config(("lenet5", "resnet18"), budget="100s", side=SIDE))
    recipe = budget.fitted(made.recipe(made.contestants[1]), slow, made.side, (160, 40, 50), 40.0)
    assert recipe.epochs > 5
    tmp_path.joinpath("recipes.json").write_text(
        json.dumps({"recipes": {"resnet18": recipe.to_dict()}, "left_out": {}, "paces": {"resnet18": vars(slow)}})
    )
    less = [
        fitting.refitted(made, made.contestants[1], recipe, digits, tmp_path, spent).epochs for spent in (0, 60, 99)
    ]
    assert less[0] == recipe.epochs and 1 < less[1] < less[0] and less[2] == 1
    assert json.loads((tmp_path / "recipes.json").read_text())["recipes"]["resnet18"]["epochs"] == 1
    (tmp_path / "resnet18").mkdir()
    (tmp_path / "resnet18" / "run.json").write_text("{}")
    assert (
        fitting.refitted(made, made.contestants[1], recipe, digits, tmp_path, 99).epochs == recipe.epochs
    )  # it has begun


def test_a_network_that_takes_too_long_is_told_before_anybody_begins(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "measure_training", lambda *_: budget.Pace(10.0, 10.0, 1.0, 1.0))
    with pytest.raises(RecipeError, match=r"one epoch of lenet5_shrunk takes 30 min 21 s here, and its share "):
        held(digits, tmp_path / "run", nets=("lenet5", "alexnet"), epochs=None, budget="60s")
    assert not (tmp_path / "run" / "lenet5").exists()


def test_who_is_too_slow_is_left_out_where_nobody_named_it(digits, tmp_path, monkeypatch):
    """Three networks of the usual ones, of which one would see the images once or twice: the others get its time."""
    slow, quick = budget.Pace(0.05, 0.05, 0.01, 30.0), budget.Pace(0.02, 0.02, 0.001, 1.0)
    monkeypatch.setattr(fitting, "measure_training", lambda recipe, *_: slow if recipe.model == "vgg11_bn" else quick)
    monkeypatch.setattr(contestants, "USUAL", ("alexnet", "vgg11_bn", "resnet18"))
    found, told = material.find(str(digits.path), DataOptions()), []
    made = plan.make(found, "few digits", Config(budget="90s"))
    (tmp_path / "x").mkdir()
    how = (Clock(tmp_path / "x"), torch.device("cpu"), DataOptions(log=told.append), 0.0)
    fitted = fitting.fit(made, digits, tmp_path, *how)
    assert (
        [contestant.name for contestant in fitted.plan.contestants] == list(fitted.recipes) == ["alexnet", "resnet18"]
    )
    assert told[-1] == fitted.lines[0] and told[-1].startswith("left out: VGG-11, batch norm: 3 epochs take ")
    assert fitted.plan.share == pytest.approx(90 * 0.94 / 2) and fitted.recipes["alexnet"].epochs > 3
    monkeypatch.setattr(fitting, "measure_training", lambda *_: pytest.fail("measured again"))
    assert fitting.fit(made, digits, tmp_path, *how) == fitted
    monkeypatch.setattr(fitting, "measure_training", lambda *_: budget.Pace(10.0, 10.0, 1.0, 1.0))
    with pytest.raises(RecipeError, match="one epoch of alexnet_small takes"):  # it is whom all are compared with
        fitting.fit(made, digits, tmp_path / "x", *how)


def test_diverged_is_a_result(digits, tmp_path, monkeypatch):
    whole = loop.train_step
    monkeypatch.setattr(
        loop,
        "train_step",
        lambda state, batch: (float("nan"), 0) if "shrunk" in state.network.name else whole(state, batch),
    )
    outcome = held(digits, tmp_path / "run", nets=("lenet5", "resnet18"))
    last = outcome.rows[-1]
    assert last.contestant.name == "lenet5" and last.top1 is None and "the loss is nan" in last.entry.diverged
    assert "diverged" in (tmp_path / "run" / "contest.md").read_text()


def test_published_weights_come_from_torchvisions_cache(digits, tmp_path, monkeypatch):
    """A file of the published name, planted: its weights are the start, its last layer begins anew."""
    import torchvision

    name = torchvision.models.get_model_weights("googlenet").DEFAULT.url.rpartition("/")[2]
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    planted = torchvision.models.googlenet(weights=None, num_classes=1000, aux_logits=True, init_weights=False)
    torch.save(planted.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    monkeypatch.setattr(loop, "train", lambda training: None)  # the start alone is looked at
    states = []
    monkeypatch.setattr(run.entry, "obtain", _started(states))
    with pytest.raises(StopIteration):
        held(digits, tmp_path / "run", nets=("googlenet",), pretrained=True, side=96)
    network, start = states
    for layer, theirs in (("conv1.conv", "conv1.conv"), ("aux1.head.conv.conv", "aux1.conv.conv")):
        assert torch.equal(network.state_dict()[f"{layer}.weight"], planted.state_dict()[f"{theirs}.weight"])
    assert network.fc.weight.shape == (10, 1024) and start.statistics.mean.tolist() == [127.5] * 3


def _started(states):
    def obtain(job, recipe, store, folder, *, device, workers, start):
        from alexnet.training.state import State

        start.check(recipe)
        states.extend([State(recipe, store, torch.device("cpu"), start).network, start])
        raise StopIteration

    return obtain


def test_published_weights_that_are_nowhere(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.urlopen", _no_network)
    with pytest.raises(BundleError) as caught:
        held(digits, tmp_path / "run", nets=("vgg11_bn",), pretrained=True)
    text = str(caught.value)
    assert text.startswith("weights of vgg11_bn are not in torchvision's cache, and https://") and "\n" not in text
    assert f"put that file into {tmp_path / 'hub' / 'checkpoints'}, or leave vgg11_bn out" in text


def _no_network(*_args, **_kwargs):
    raise OSError("no network")


# --- from a terminal ------------------------------------------------------------------------------------------------


def test_the_command(contest, digits, capsys):
    folder, outcome, _, _ = contest
    words = [
        "study",
        "contest",
        str(digits.path),
        "--output-dir",
        str(folder),
        "--epochs",
        "1",
        "--side",
        str(SIDE),
        "--device",
        "cpu",
        "--json",
    ]
    held_as = json.loads((folder / "plan.json").read_text())["data"]
    plan_file = json.loads((folder / "plan.json").read_text()) | {"data": material.shown(str(digits.path))}
    (folder / "plan.json").write_text(json.dumps(plan_file))
    assert cli.run([*words, "--nets", "alexnet, lenet5,fisher"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [c["name"] for c in found["contestants"]] == [
        row.contestant.name for row in outcome.rows if row.contestant.name != "resnet18"
    ]
    assert "equal epochs: 1 of each network" in said.err
    assert cli.run([*words[:-1], "--nets", "alexnet,fisher"]) == 0
    said = capsys.readouterr()
    assert "McNemar" in said.out and "15.3 %" in said.out and "verdict" in said.out and "SIFT + Fisher" in said.out
    (folder / "plan.json").write_text(json.dumps(plan_file | {"data": held_as}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "contest needs DATA; must be digits, a folder, a store or the name of a set"),
        (["digits", "--nets", "alexnit"], "--nets: unknown network 'alexnit'. Did you mean 'alexnet'?"),
        (["digits", "--budget", "1min"], "--budget of 1 min leaves 8 contestants 7.5 s each"),
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
