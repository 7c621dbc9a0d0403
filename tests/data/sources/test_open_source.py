"""What a person names is opened by the right reader, or refused with what to do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet.data.cache import Cache
from alexnet.data.remote import local_path
from alexnet.data.sources import FORMATS, SETS, format_table, is_store, open_source
from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.sources.options import DataOptions
from alexnet.data.sources.unlabeled import UnlabeledImages
from alexnet.errors import DataError
from alexnet.system import cache_folder


def test_unknown_names_get_the_nearest(tmp_path):
    for wrong, right in [("cifar-10", "cifar10"), ("Digits", "digits"), ("fashionmnist", "fashion_mnist")]:
        with pytest.raises(DataError, match=f"Did you mean '{right}'"):
            open_source(wrong)
    (tmp_path / "file.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="is a file; must be a folder"):
        open_source(tmp_path / "file.zip")


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        ("digits", {"image_column": "path"}),
        ("digits", {"classes": "leaves"}),
        ("digits", {"ignore": ("old",)}),
        ("images", {"image_column": "path"}),
        ("images", {"label_column": "class"}),
        ("images", {"delimiter": ";"}),
        ("images.tar", {"label_column": "class"}),
        ("table.csv", {"classes": "top"}),
        ("table.csv", {"ignore": ("old",)}),
        ("flat", {"classes": "leaves"}),
    ],
)
def test_an_option_without_effect_is_refused(folder, data, layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = folder({"a": 3, "b": 3})
    shutil.make_archive("images", "tar", root.parent, "images")
    shutil.copytree(root / "a", "flat")
    rows = "".join(f"{path.name},{'xy'[i % 2]}\n" for i, path in enumerate(sorted(Path("flat").iterdir())))
    Path("flat/labels.csv").write_text("path,label\n" + rows)
    shutil.copytree("flat", "listed")
    (Path("listed/labels.csv")).rename("listed/table.csv")
    path = "listed/table.csv" if data == "table.csv" else data
    assert len(open_source(path).classes) > 1
    option = "--" + next(iter(layout)).replace("_", "-")
    with pytest.raises(DataError, match=f"^{option} has no effect on .*leave it out$"):
        open_source(path, layout=LayoutOptions(**layout))
    recorded = DataOptions(layout=LayoutOptions(**layout)).to_args()
    DataOptions().with_recorded(recorded, Path(), only_layout=True).open(path)  # the options of a run for other data


def test_options_of_known_data_sets_are_refused_elsewhere(folder):
    root = folder({"a": 1, "b": 1})
    for options in ({"data_root": root}, {"download": True}):
        for data in (root, "digits"):  # which comes with scikit-learn
            with pytest.raises(DataError, match=r"^--(data-root|download) has no effect on .* it is for cifar10, fash"):
                open_source(data, **options)
    saved = root / "saved"
    saved.mkdir()
    (saved / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"^--download has no effect on .*saved; .* and hf:OWNER/NAME$"):
        open_source(saved, download=True)


def test_an_empty_name_is_not_the_current_folder(folder, monkeypatch):
    """``alexnet train "$DATA"`` without the variable."""
    monkeypatch.chdir(folder({"a": 1, "b": 1}))
    assert not is_store("")
    for read in (open_source, DataOptions().open, local_path, lambda name: UnlabeledImages([name]).count()):
        with pytest.raises(DataError, match="a path is empty"):
            read("")


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
    assert all(f"`{name}`" in "".join(entry.data for entry in FORMATS if entry.named) for name in SETS)


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
