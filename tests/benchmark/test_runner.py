"""Contenders with a known pace, one that cannot run, one that breaks, one that dies."""

import os
import statistics
import time

import pytest

from alexnet.benchmark import runner
from alexnet.benchmark.runner import Candidate, Round, Skipped, Timing, peak_memory, repeated, time_candidates


def paced(images, seconds, waited=0.0):
    return lambda: Round(images, seconds, waited)


def heavy(mib):
    held = bytearray(mib << 20)
    held[::4096] = b"x" * len(held[::4096])
    return lambda: Round(len(held), 1.0)


def missing():
    raise Skipped("a library is missing")


def broken():
    raise ValueError("two\nlines")


def hanging():
    time.sleep(3600)


def dying():
    rounds = []

    def unit():
        rounds.append(1)
        if len(rounds) > 1:
            os._exit(9)
        return Round(1, 1.0)

    return unit


def noting(path, name):
    def unit():
        with path.open("a") as file:
            file.write(name)
        time.sleep(0.001)
        return Round(1, 0.5)

    return unit


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("arena") / "order"
    candidates = [
        Candidate("fast", paced, {"images": 10, "seconds": 0.5, "waited": 0.1}),
        Candidate("slow", paced, {"images": 10, "seconds": 2.0}),
        Candidate("missing", missing, peer="peer"),
        Candidate("broken", broken),
        Candidate("dying", dying),
        Candidate("heavy", heavy, {"mib": 300}),
        Candidate("a", noting, {"path": path, "name": "a"}),
        Candidate("b", noting, {"path": path, "name": "b"}),
        Candidate("peer, fp32", paced, {"images": 10, "seconds": 2.0}, peer="peer"),
        Candidate("peer, bf16", paced, {"images": 10, "seconds": 0.25}, peer="peer"),
    ]
    said = []
    timings = {t.candidate.name: t for t in time_candidates(candidates, 3, said.append)}
    return timings, said, path.read_text()


def test_rates_ratios_and_waiting(found):
    timings = found[0]
    assert timings["fast"].rates == (20.0, 20.0, 20.0) and timings["slow"].median == 5.0
    assert timings["fast"].over(timings["slow"]) == 4.0
    assert timings["fast"].waited == pytest.approx(0.2) and timings["slow"].waited == 0


def test_rounds_go_in_turn_and_the_first_counts_for_nothing(found):
    assert sorted(found[2][:2]) == ["a", "b"] and len(found[2]) == 8
    assert all(set(found[2][i : i + 2]) == {"a", "b"} for i in range(0, 8, 2))
    assert found[1][:8] == ["fast", "slow", "missing", "broken", "dying", "heavy", "a", "b"]


def test_who_can_not_run_is_left_out_with_a_reason(found):
    timings = found[0]
    assert timings["missing"].skipped == "a library is missing"
    assert timings["broken"].skipped == "ValueError: two lines"
    assert "ended early" in timings["dying"].skipped
    assert not any(timings[name].rates for name in ("missing", "broken", "dying"))


def test_only_the_fastest_form_of_a_peer_is_timed(found):
    forms = {name: timing for name, timing in found[0].items() if name.startswith("peer")}
    assert [name for name, timing in forms.items() if timing.rates] == ["peer, bf16"]
    assert forms["peer, bf16"].rates == (40.0, 40.0, 40.0)
    assert {name: timing.trial for name, timing in forms.items()} == {
        "peer, fp32": 5.0,
        "peer, bf16": 40.0,
    }
    assert forms["peer, fp32"].skipped == "another form is faster"


def test_a_form_that_hangs_is_ended_and_left_out():
    process = runner._CandidateProcess(Candidate("hangs", hanging, peer="peer"))
    process.wait_until_ready(0.1)
    assert process.skipped == "not ready after 0 s" and process.finish().skipped == process.skipped
    process.process.join(60)
    assert process.process.exitcode == -9
    assert runner.limit_of_form([]) == 900 and runner.limit_of_form([3.0, 40.0]) == 120
    assert runner.limit_of_form([20.0]) == 200 and runner.limit_of_form([500.0]) == 900


def test_each_has_its_own_peak_of_memory(found):
    timings = found[0]
    assert timings["heavy"].memory > timings["fast"].memory + 250
    assert 5 < timings["fast"].memory < 250, "not the memory of the test that started it"
    assert peak_memory() > 5


def test_spread_is_half_of_the_distance():
    timing = Timing(Candidate("x", paced), (8.0, 10.0, 14.0))
    assert timing.median == statistics.median(timing.rates) == 10 and timing.spread == 0.3


def chatty():
    print("a library's progress")
    os.write(1, b"and that of its C code\n")
    return lambda: Round(1, 1.0)


def test_what_contenders_print_is_no_part_of_the_answer(capfd):
    assert time_candidates([Candidate("chatty", chatty)], 2, lambda name: None)[0].rates == (1.0, 1.0)
    said = capfd.readouterr()
    assert said.out == "" and "progress" in said.err and "C code" in said.err


class Worker:
    """It takes ``slow`` seconds for so many calls after it stood still, then ``fast``; the clock is its own."""

    def __init__(self, monkeypatch, slow, fast, calls=20):
        self.slow, self.fast, self.calls, self.left, self.now = slow, fast, calls, calls, 0.0
        monkeypatch.setattr(runner.time, "perf_counter", lambda: self.now)

    def __call__(self):
        self.now += self.slow if self.left > 0 else self.fast
        self.left -= 1


def test_what_is_short_comes_to_speed_before_the_clock_runs(monkeypatch):
    work = Worker(monkeypatch, slow=0.008, fast=0.004)
    unit = repeated(work, 3)
    for _ in range(2):
        work.left, before = work.calls, work.now
        done, seconds, _ = unit()
        assert done / seconds == pytest.approx(3 / 0.004), "none of the slow ones counts"
        assert 0.2 < seconds < 0.6 and work.now - before > seconds + 20 * 0.008


def test_what_is_long_is_done_once(monkeypatch):
    work = Worker(monkeypatch, slow=2.0, fast=2.0)
    unit = repeated(work, 3)
    before = work.now
    assert unit() == (3, 2.0, 0.0) and work.now - before == 2.0
