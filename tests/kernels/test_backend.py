"""The switchboard of the fast implementations: modes, the context managers, and the table."""

from pathlib import Path

import pytest

import alexnet
from alexnet import kernels
from alexnet.errors import RecipeError
from alexnet.kernels import native_kernels


@pytest.fixture(autouse=True)
def auto():
    with kernels.using("auto"):
        yield


def test_the_table_lists_existing_files_and_all_native_kernels():
    package = Path(alexnet.__file__).parent
    for name, kernel in kernels.KERNELS.items():
        assert name == kernel.name and (package / kernel.file).is_file(), name
        assert kernel.computes and kernel.used_when and kernel.reference
    c_files = {f"kernels/{path.name}" for path in (package / "kernels").glob("*.c")}
    assert c_files == {kernel.file for kernel in kernels.KERNELS.values() if kernel.file.endswith(".c")}
    assert set(native_kernels._FUNCTIONS) <= set(kernels.KERNELS)


def test_use_sets_all_or_the_named_ones():
    kernels.use("off")
    assert not any(map(kernels.enabled, kernels.KERNELS))
    kernels.use("always", "winograd")
    assert kernels.mode_of("winograd") == "always" and not kernels.enabled("lrn")
    kernels.use("auto", "lrn", "resize")
    assert [name for name in kernels.KERNELS if kernels.enabled(name)] == ["lrn", "winograd", "resize"]


def test_disabled_restores_the_modes_of_before_also_after_an_error():
    kernels.use("always", "winograd")
    kernels.use("off", "linear")
    with pytest.raises(ZeroDivisionError), kernels.disabled():
        assert not any(map(kernels.enabled, kernels.KERNELS))
        raise ZeroDivisionError
    assert kernels.mode_of("winograd") == "always" and not kernels.enabled("linear") and kernels.enabled("lrn")
    with kernels.disabled("lrn"):
        assert not kernels.enabled("lrn") and kernels.enabled("winograd")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"unknown kernel 'winogard'.*Did you mean 'winograd'\?"):
        kernels.use("off", "winogard")
    with pytest.raises(RecipeError, match="Choose from lrn, "):
        kernels.enabled("x")


@pytest.mark.usefixtures("native")
def test_native_kernels_follow_their_switches():
    assert native_kernels.in_use("lrn") and native_kernels.in_use("winograd")
    with kernels.disabled("lrn"):
        assert not native_kernels.in_use("lrn") and native_kernels.in_use("winograd")
    kernels.use("auto", "winograd")
    assert not native_kernels.in_use("winograd"), "in inference mode only"
    with kernels.disabled():
        assert native_kernels.built() == [] and not native_kernels.build()
