"""What a person names is opened by the right reader, or refused with what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from alexnet.data.cache import Cache
from alexnet.data.sources import FORMATS, SETS, format_table, is_store, open_source
from alexnet.errors import DataError
from alexnet.system import cache_folder


def test_unknown_names_get_the_nearest(tmp_path):
    for wrong, right in [("cifar-10", "cifar10"), ("Digits", "digits"), ("fashionmnist", "fashion_mnist")]:
        with pytest.raises(DataError, match=f"Did you mean '{right}'"):
            open_source(wrong)
    (tmp_path / "file.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="is a file; must be a folder"):
        open_source(tmp_path / "file.zip")


def test_a_store_is_not_a_source(folder):
    root = folder({"a": 1, "b": 1})
    assert not is_store(root)
    (root / "dataset.json").write_text("{}")
    assert is_store(root)
    with pytest.raises(DataError, match=r"is a prepared store; .*Store\.open"):
        open_source(root)


def test_the_documentation_has_the_table_of_formats():
    page = Path(__file__).parents[3] / "docs" / "data.md"
    assert format_table() in page.read_text(encoding="utf-8")
    assert all(f"`{name}`" in FORMATS[0].data for name in SETS)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other cache folders")
def test_the_cache_folder_is_that_of_the_system(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == Cache().folder.parent == tmp_path / "alexnet"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by the XDG specification
    assert cache_folder() == Path.home() / ".cache" / "alexnet"


def test_the_import_is_light():
    heavy = "'torch', 'PIL', 'sklearn', 'pyarrow'"
    code = f"import sys, alexnet.data.sources; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
