"""The folder of an unfinished store: one process, one setting, nothing of others."""

import threading

import pytest

from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.data.store import Store
from alexnet.errors import DataError

from .conftest import FEW, contents, killed_at


def test_other_settings_start_over_and_say_so(folder, tmp_path):
    root, said = folder({"a": 10, "b": 6}), []
    killed_at(root, tmp_path / "s", 9)
    store = prepare(open_source(root), tmp_path / "s", **{**FEW, "seed": 5}, log=said.append)
    assert said == [f"{tmp_path / 's.partial'}: settings differ from the interrupted run; starting over"]
    plain = prepare(open_source(root), tmp_path / "t", **{**FEW, "seed": 5}, log=said.append)
    assert contents(store.path) == contents(plain.path) and len(said) == 1


def test_the_same_settings_go_on_without_a_word(folder, tmp_path):
    root, said = folder({"a": 10, "b": 6}), []
    killed_at(root, tmp_path / "s", 9)
    prepare(open_source(root), tmp_path / "s", **FEW, log=said.append)
    assert said == []


def test_without_a_listener_the_log_has_it(folder, tmp_path, caplog):
    root = folder({"a": 10, "b": 6})
    killed_at(root, tmp_path / "s", 5)
    prepare(open_source(root), tmp_path / "s", **{**FEW, "seed": 5})
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "starting over" in caplog.text


def test_folders_of_others_are_left_alone(folder, tmp_path):
    source = open_source(folder({"a": 10, "b": 6}))
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"holds 'thesis\.tex', which prepare did not make"):
        prepare(source, tmp_path / "s", **FEW)
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="mine: exists and is not a store; must be a new name; choose another path"):
        prepare(source, tmp_path / "mine", **FEW)
    assert (tmp_path / "s.partial" / "thesis.tex").exists()


def test_two_processes_do_not_prepare_one_store(folder, tmp_path):
    source = open_source(folder({"a": 10, "b": 6}))
    inside, go, results = threading.Event(), threading.Event(), []

    def wait(done, total):
        inside.set()
        go.wait(20)

    first = threading.Thread(target=lambda: results.append(prepare(source, tmp_path / "s", **FEW, progress=wait)))
    first.start()
    assert inside.wait(20)
    with pytest.raises(DataError, match=r"s\.partial: another process is preparing this store"):
        prepare(source, tmp_path / "s", **FEW)
    go.set()
    first.join(20)
    assert isinstance(results[0], Store)
