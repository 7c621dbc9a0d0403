"""The choice of the device to compute on."""

import pytest
import torch

from alexnet.errors import RecipeError
from alexnet.system import cache_folder, choose_device


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch):
    """As in a container with ``--user 12345``. It ended with an error of Python."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(RecipeError, match=r"no home folder.*; set HOME, XDG_CACHE_HOME or ALEXNET_CACHE"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache_folder()) == "/somewhere/alexnet"


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(RecipeError) as caught:
        choose_device("gpu")
    assert str(caught.value) == "--device is 'gpu'; must be auto, cpu, cuda or cuda:N"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(name):
    with pytest.raises(RecipeError) as caught:
        choose_device(name)
    assert str(caught.value) == "--device cuda: this machine has no usable GPU; use --device cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_too_many():
    with pytest.raises(RecipeError, match=r"--device is 'cuda:99'; must be cuda:0 to cuda:"):
        choose_device("cuda:99")
    assert choose_device("cuda:0").type == "cuda"
