"""Energy from counters that look like the kernel's: added up over packages and over the point where they begin anew."""

import os
import time

import pytest

from alexnet.training.energy import Meter


def counter(folder, value, most=1_000_000_000):
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    counter(tmp_path / "intel-rapl:0", 5_000_000)
    counter(tmp_path / "intel-rapl:1", 0)
    counter(tmp_path / "intel-rapl:0:0", 0)  # the cores of package 0: part of it
    with Meter(tmp_path, 3600) as meter:
        counter(tmp_path / "intel-rapl:0", 7_500_000)
        counter(tmp_path / "intel-rapl:1", 1_000_000)
        counter(tmp_path / "intel-rapl:0:0", 99_000_000)
    assert meter.joules == pytest.approx(3.5)


def test_a_counter_that_begins_anew_loses_nothing(tmp_path):
    counter(tmp_path / "intel-rapl:0", 999_000_000)
    with Meter(tmp_path, 3600) as meter:
        counter(tmp_path / "intel-rapl:0", 2_000_000)
        meter.read()
        assert meter.joules == pytest.approx(3)
        counter(tmp_path / "intel-rapl:0", 4_000_000)
    assert meter.joules == pytest.approx(5)


def test_it_reads_by_itself(tmp_path):
    counter(tmp_path / "intel-rapl:0", 0, most=10_000_000)
    with Meter(tmp_path, 0.001) as meter:
        for value in (8_000_000, 2_000_000, 6_000_000):  # begins anew in between: two readings would see 6 J
            counter(tmp_path / "intel-rapl:0", value, most=10_000_000)
            wanted = {8_000_000: 8, 2_000_000: 12, 6_000_000: 16}[value]
            for _ in range(10_000):
                if meter.joules == pytest.approx(wanted):
                    break
                time.sleep(0.001)
            assert meter.joules == pytest.approx(wanted)


def test_a_machine_that_tells_nothing_has_no_number(tmp_path):
    with Meter(tmp_path) as meter:
        pass
    assert meter.joules is None
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("secret")
    with Meter(tmp_path) as meter:
        pass
    assert meter.joules is None
    if os.name == "posix":
        with Meter() as meter:
            pass
        assert meter.joules is None or meter.joules >= 0
