"""What may be asked, what is counted, and one small race from the command line."""

import json

import pytest

from alexnet import cli
from alexnet.benchmark import data, runner, steps, suite
from alexnet.benchmark.runner import Candidate, Timing
from alexnet.benchmark.steps import Target
from alexnet.benchmark.suite import BenchmarkOptions, Group, Report
from alexnet.cli.machine import _print_bench
from alexnet.data import decode
from alexnet.plots.studies import Bars, draw_bench


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--only speed", "--only speed; must be training, inference, data, end-to-end, prepare"),
        ("--only ,", "--only names nothing"),
        ("--rounds 1", "--rounds is 1; must be at least 2"),
        ("--batch-size 0", "--batch-size is 0; must be at least 1"),
        ("--model alexnett", "--model is 'alexnett'"),
        ("--images /nowhere", "--images /nowhere: no folder"),
    ],
)
def test_wrong_config_get_one_line(words, said, capsys):
    assert cli.run(["bench", *words.split()]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_images_must_be_some(tmp_path):
    (tmp_path / "one").mkdir()
    with pytest.raises(Exception, match="0 images"):
        BenchmarkOptions(folder=tmp_path).check()
    data.write_synthetic_images(tmp_path, 30)
    assert data.check(tmp_path) == 30
    first = sorted(tmp_path.glob("*/*.jpg"))[0]
    assert decode.decode(first.read_bytes()).shape == (375, 500, 3)
    assert 20_000 < first.stat().st_size < 200_000, "as large as photographs are"


def report():
    limit = Timing(Candidate("matrix product, fp32", runner.product, precision="fp32"), (100e9, 200e9, 300e9))
    ours = Timing(Candidate("alexnet, fp32", steps.our_step, flop=4e9), (40.0, 60.0, 50.0), 0.25, 900.0)
    off = Timing(Candidate("alexnet, fp32, kernels off", steps.our_step, flop=4e9), (20.0, 30.0, 25.0))
    lucky = Timing(Candidate("alexnet, fp32, kernels off", steps.our_step, flop=4e9), (99.0, 99.0, 99.0))
    assert Group("training", "a step", [ours, lucky]).first is ours
    theirs = Timing(Candidate("plain PyTorch modules, fp32", steps.plain_step, flop=4e9), (20.0, 20.0, 20.0))
    none = Timing(Candidate("OpenVINO, fp32", steps.openvino_inference), skipped="openvino is not installed")
    slower = Timing(Candidate("ONNX Runtime, fp32", steps.onnx_inference), skipped="another form is faster", trial=9.0)
    return Report(
        BenchmarkOptions(), runner.machine(), [limit], [Group("training", "a step", [ours, off, theirs, none, slower])]
    )


def test_ratios_and_shares():
    made = report()
    ours, off, theirs, none, slower = made.groups[0].timings
    assert made.groups[0].ratio(slower) is None, "ratios are against the fastest form of a peer only"
    assert made.groups[0].first is ours
    assert (
        made.groups[0].ratio(theirs) == 2.5 and made.groups[0].ratio(off) == 2.0 and made.groups[0].ratio(none) is None
    )
    assert made.share(ours) == 1.0 and made.share(theirs) == 0.4 and made.share(none) is None
    numbers = json.loads(json.dumps(made.to_dict()))
    found = numbers["groups"][0]["candidates"]
    assert found["plain PyTorch modules, fp32"]["ours_over_it"] == 2.5
    assert found["OpenVINO, fp32"]["skipped"] == "openvino is not installed"
    assert found["alexnet, fp32"]["waited"] == 0.25


def test_tables_and_reasons(capsys):
    _print_bench(report())
    printed = capsys.readouterr().out
    assert "OpenVINO, fp32: left out, openvino is not installed" in printed
    assert "ONNX Runtime, fp32: 9.0 images/s in its trial, another form is faster" in printed
    row = next(line.split() for line in printed.splitlines() if "plain PyTorch modules" in line)
    assert row[4:] == ["20.0", "0.00", "%", "2.50×", "40.00", "%", "0"]
    assert "200 GFLOP/s" in printed


def test_multiplications_are_counted_as_published():
    """1.449 GFLOP forward and 4.136 a step for an image in the two-tower network."""
    ours = steps.training("alexnet", 1)[0]
    assert ours.flop == pytest.approx(4.136e9, rel=2e-3)
    assert steps.inference(Target("alexnet"), 1)[0].flop == pytest.approx(1.449e9, rel=2e-3)


def test_a_chart(tmp_path):
    bars = [Bars("training step", [("ours", 90.0, 2.0, True), ("a name " * 20, 20.5, 0.5, False)])]
    path = draw_bench(bars, "two cores", tmp_path / "chart.png")
    assert decode.decode(path.read_bytes()).shape[1] == 1350


def test_parts_are_those_of_the_groups():
    named = {
        part for part, _, _ in suite._groups(BenchmarkOptions("cifar_18pct"), Target("cifar_18pct"), data.Path("x"))
    }
    assert named == set(suite.PARTS)


def test_int8_groups_have_int8_candidates():
    groups = suite._groups(BenchmarkOptions("cifar_18pct"), Target("cifar_18pct"), data.Path("x"))
    int8 = [candidates for _, name, candidates in groups if name.endswith("int8")]
    assert int8 and all(any(c.precision == "int8" for c in candidates) for candidates in int8)


@pytest.mark.slow
def test_a_small_race(capfd, tmp_path):
    chart = tmp_path / "speed.png"
    words = ["bench", "--only", "training,inference", "--model", "cifar_18pct", "--batch-size", "16", "--rounds", "2"]
    assert cli.run([*words, "--quick", "--json", "--chart", str(chart)]) == 0
    found = json.loads(capfd.readouterr().out)
    step = found["groups"][0]["candidates"]
    assert [name for name in step if name.startswith("plain") and "median" in step[name]]
    assert "median" in step["alexnet, fp32"]
    assert step["alexnet, fp32"]["memory_mib"] > 100 and chart.exists()
    assert found["limits"]["matrix product, fp32"]["median"] > 1e9


@pytest.mark.slow
def test_from_files_to_an_epoch(capfd):
    words = ["bench", "--only", "data,end-to-end,prepare", "--model", "cifar_18pct", "--batch-size", "16"]
    assert cli.run([*words, "--rounds", "2", "--quick", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    ran = {name: c for group in found["groups"] for name, c in group["candidates"].items() if "median" in c}
    assert {"alexnet", "alexnet, fp32", "ImageFolder and DataLoader, 2 workers"} <= set(ran)
    assert sum(name.startswith("plain PyTorch modules, ImageFolder") for name in ran) == 1
    assert 0 <= ran["alexnet, fp32"]["waited"] < 1
