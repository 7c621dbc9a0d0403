import csv
import json
import math
import resource
from pathlib import Path

import pytest

from alexnet.training.logger import COLUMNS, RunLogger, append_event, read_events


def row(epoch: int, **more: float) -> dict[str, float]:
    return {
        "epoch": epoch,
        "steps": 10 * epoch,
        "lr": 0.01,
        "train_loss": 1 / epoch,
        "train_top1": 0.5,
        "seconds": 2.0,
        "images_per_second": 100.0,
        **more,
    }


VALIDATED = {"validation_loss": 0.25, "validation_top1": 0.875, "validation_top5": 1.0}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "crc32"} for row in csv.DictReader(file)]


def test_a_line_an_event(tmp_path):
    with RunLogger(tmp_path, quiet=True) as journal:
        journal.event("started", step=0, device="cpu")
        assert lines(tmp_path)[0]["event"] == "started"  # on the disk at once
        journal.event("nonfinite loss", indices=[1, 2], reason="Ünïcode\nand a second line")
        assert journal.size() == (tmp_path / "journal.jsonl").stat().st_size
    first, second = lines(tmp_path)
    assert first["time"] <= second["time"]
    assert (first["step"], second["indices"], second["reason"]) == (0, [1, 2], "Ünïcode\nand a second line")


def test_results_csv_is_whole(tmp_path):
    with RunLogger(tmp_path, quiet=True) as journal:
        journal.write_rows([])
        assert (tmp_path / "results.csv").read_text().splitlines() == [",".join((*COLUMNS, "crc32"))]
        rows: list[dict[str, float]] = []
        for epoch in range(1, 4):
            rows.append(row(epoch, **(VALIDATED if epoch > 1 else {})))
            journal.epoch(rows)
            assert [int(line["epoch"]) for line in table(tmp_path)] == list(range(1, epoch + 1))
    found = table(tmp_path)
    assert tuple(found[0]) == COLUMNS
    assert found[0]["validation_loss"] == ""
    assert {name: float(value) for name, value in found[2].items()} == rows[2]
    assert not list(tmp_path.glob("*.partial"))
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_resumed_journal_goes_on_where_the_checkpoint_was(tmp_path):
    with RunLogger(tmp_path, quiet=True) as journal:
        journal.event("started")
        journal.epoch([row(1)])
        size = journal.size()
        journal.event("checkpoint")
        journal.epoch([row(1), row(2)])
    with RunLogger(tmp_path, quiet=True, resume_at=size, resume_step=10) as journal:
        journal.write_rows([row(1)])
        journal.event("resumed", step=10)
        journal.epoch([row(1), row(2)])
    assert [line["event"] for line in lines(tmp_path)] == ["started", "epoch", "resumed", "epoch"]
    assert [line["epoch"] for line in table(tmp_path)] == ["1", "2"]


def test_a_line_cut_by_a_crash_goes_too(tmp_path):
    with RunLogger(tmp_path, quiet=True) as journal:
        journal.event("started")
        size = journal.size()
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"time": 1, "eve')
    with RunLogger(tmp_path, quiet=True, resume_at=size) as journal:
        journal.event("resumed")
    assert [line["event"] for line in lines(tmp_path)] == ["started", "resumed"]


def test_any_torn_last_line_is_removed_before_the_next_one(tmp_path):
    path = tmp_path / "journal.jsonl"
    append_event(path, "first", text="Ünïcode")
    whole = path.read_bytes()
    append_event(path, "second")
    both = path.read_bytes()
    for size in range(len(whole), len(both) + 1):
        path.write_bytes(both[:size])
        kept = ["first"] + ["second"] * (size >= len(both) - 1)
        events, fault = read_events(tmp_path)
        assert ([event["event"] for event in events], fault) == (kept, "")
        append_event(path, "third")
        events, fault = read_events(tmp_path)
        assert ([event["event"] for event in events], fault) == ([*kept, "third"], "")


@pytest.mark.parametrize("left", [None, ""])
def test_a_journal_that_was_lost_is_not_filled_with_zeros(tmp_path, left):
    if left is not None:
        (tmp_path / "journal.jsonl").write_text(left)
    with RunLogger(tmp_path, quiet=True, resume_at=1000) as journal:
        journal.event("resumed")
    assert [line["event"] for line in lines(tmp_path)] == ["resumed"]


def test_quiet_prints_nothing(tmp_path, capfd):
    with RunLogger(tmp_path, quiet=True) as journal:
        journal.begin_epoch(0, 3, 10, 0)
        journal.step(1.5, 32)
        journal.log("something")
        journal.epoch([row(1, **VALIDATED)])
    assert capfd.readouterr() == ("", "")


def test_plain_lines_where_there_is_no_terminal(tmp_path, capfd):
    with RunLogger(tmp_path) as journal:
        journal.begin_epoch(0, 3, 10, 0)
        journal.step(math.pi, 32)
        journal.log("[bold]said[/bold] as it is " + "x" * 200)
        journal.epoch([row(1)])
        journal.epoch([row(1), row(2, **VALIDATED)])
    out, err = capfd.readouterr()
    assert out == ""  # results only go there
    assert err.splitlines() == [
        "[bold]said[/bold] as it is " + "x" * 200,
        "epoch   1  train loss 1.000  top-1  50.0 %  100 images/s  2 s",
        "epoch   2  train loss 0.500  top-1  50.0 %  validation loss 0.250  top-1  87.5 %  100 images/s  2 s",
    ]


def test_a_long_epoch_gets_a_line_every_30_seconds_where_there_is_no_terminal(tmp_path, capfd):
    now = 100.0
    with RunLogger(tmp_path, clock=lambda: now) as journal:
        journal.begin_epoch(1, 3, 223, 3)
        for _ in range(220):  # of a second each
            now += 1
            journal.step(0.25 + now / 1000, 32)
            assert len(capfd.readouterr().err.splitlines()) == ((now - 100) % 30 == 0), now
        journal.epoch([row(1)])  # a line of its own: the next one is due 30 seconds later
        journal.begin_epoch(2, 3, 2, 0)
        assert len(capfd.readouterr().err.splitlines()) == 1
        now += 29
        journal.step(0.5, 32)
        assert capfd.readouterr().err == ""
        now += 1
        journal.step(0.5, 32)
        assert capfd.readouterr().err == "epoch 3/3  step 2/2  loss 0.500  2 images/s\n"


def test_a_long_validation_gets_lines_too(tmp_path, capfd):
    now = 100.0
    with RunLogger(tmp_path, clock=lambda: now) as journal:
        for done in range(100, 8100, 100):  # a second each
            now += 1
            journal.scored("validation", done, 8000)
    assert capfd.readouterr().err == "validation  3,000/8,000 images\nvalidation  6,000/8,000 images\n"


def test_tensorboard_has_every_number_at_its_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLogger(tmp_path, quiet=True) as journal:
        journal.epoch([row(1)])
        journal.epoch([row(1), row(2, **VALIDATED)])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(COLUMNS) - {"epoch", "steps"}
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(10, 1.0), (20, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("validation_top1")] == [(20, 0.875)]


def test_a_full_disk_costs_a_line_and_a_warning_not_the_run(tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLogger(tmp_path) as journal:
        journal.event("started", long="x" * 200_000)
        before = (tmp_path / "journal.jsonl").read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
        try:
            journal.event("checkpoint failed", reason="disk full")
            journal.write_rows([{"epoch": epoch} for epoch in range(20_000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "journal.jsonl").read_bytes() == before
        assert not (tmp_path / "results.csv").exists()
        journal.event("finished")
        journal.write_rows([row(1)])
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tmp_path / name} could not be written (File too large); training goes on"
        for name in ("journal.jsonl", "results.csv")
    ]
    assert [line["event"] for line in lines(tmp_path)] == ["started", "finished"]
    assert table(tmp_path)[0]["epoch"] == "1"
