import os
import signal
import threading

import pytest
import torch

from alexnet import api
from alexnet.errors import Interrupted
from alexnet.kernels import winograd
from alexnet.models import create_model
from alexnet.recipe import Recipe, get_recipe
from alexnet.training import runtime

CPU = torch.device("cpu")


@pytest.fixture
def fewer_multiplications():
    if not winograd.is_available():
        pytest.skip("needs a C compiler and AVX2")


def test_denormal_numbers_are_zero_while_training_and_only_then():
    tiny = torch.tensor([1e-40])
    assert float(tiny * 1) > 0
    with runtime.cpu_settings(), runtime.cpu_settings():  # twice is as good as once
        assert float(tiny * 1) == 0
    assert float(tiny * 1) > 0
    with pytest.raises(KeyError), runtime.cpu_settings():
        raise KeyError
    assert float(tiny * 1) > 0


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_wanted_precision_is_kept(wanted):
    assert runtime.choose_precision(wanted, CPU) == wanted


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({"amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16"),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9R14"}, "bf16"),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "fp32"),
        ({"avx512_bf16": False, "cpu_name": "AMD EPYC 7R13"}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_goes_by_what_the_processor_is(monkeypatch, cpu, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert runtime.choose_precision("auto", CPU) == expected


def test_auto_is_the_same_twice_and_fp32_elsewhere():
    assert runtime.choose_precision("auto", CPU) == runtime.choose_precision("auto", CPU) in ("fp32", "bf16")
    assert runtime.choose_precision("auto", torch.device("mps")) == "fp32"


def test_which_convolutions_auto_means(monkeypatch):
    for usable in (True, False):
        monkeypatch.setattr(winograd, "is_available", lambda usable=usable: usable)
        settled = runtime.resolve_auto(Recipe().replace(precision="fp32"), CPU)
        assert settled.convolution == ("winograd" if usable else "plain") and settled.precision == "fp32"
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
        assert runtime.resolve_auto(Recipe().replace(precision="bf16"), CPU).convolution == settled.convolution
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
        assert runtime.resolve_auto(Recipe().replace(precision="bf16"), CPU).convolution == "plain"
        assert runtime.resolve_auto(Recipe().replace(convolution="winograd"), CPU).convolution == "winograd"
        assert runtime.resolve_auto(Recipe().replace(convolution="plain"), CPU).convolution == "plain"
    assert runtime.resolve_auto(Recipe(), torch.device("cuda")).convolution == "plain"


@pytest.mark.usefixtures("fewer_multiplications")
@pytest.mark.parametrize("how", ["plain", "winograd"])
def test_convolutions_are_the_recipes_in_training_alone(how):
    network = create_model("cifar_18pct", generator=torch.Generator().manual_seed(0))
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 60
    before = network(images)
    with runtime.cpu_settings(Recipe().replace(convolution=how)):
        inside = network(images)
    assert torch.equal(inside, before) == (how == "plain") and torch.allclose(inside, before, atol=1e-4)
    assert torch.equal(network(images), before)
    with torch.inference_mode():
        assert not torch.equal(network(images), before), "answers take fewer multiplications by themselves"


@pytest.mark.usefixtures("fewer_multiplications")
@pytest.mark.parametrize("how", ["plain", "winograd"])
def test_a_run_takes_those_of_its_recipe_and_says_so(how, monkeypatch, tmp_path):
    asked, convolve = [], winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *of, **more: asked.append(of[0]) or convolve(*of, **more))
    recipe = get_recipe("cifar_18pct").replace(epochs=1, schedule="constant", convolution=how)
    result = api.train("digits", recipe, tmp_path / "run", device="cpu")
    learning = [images for images in asked if not images.is_inference()]
    assert bool(learning) == (how == "winograd") and result.recipe.convolution == how
    assert f'convolution = "{how}"' in (tmp_path / "run" / "recipe.toml").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_handlers_come_back(number, capfd):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted), runtime.stop_on_signals() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number
        os.kill(os.getpid(), signal.SIGTERM)  # there was no handler before
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == number
        raise Interrupted(number, "stopped", "")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert capfd.readouterr().err.count("finishing the step and saving") == 1


@pytest.mark.parametrize("error", [None, KeyError])
def test_a_signal_that_ended_nothing_is_not_lost(error):
    """It came after the last step, or while a trial of a sweep was pruned: the sweep must not go on."""
    with pytest.raises(KeyboardInterrupt), runtime.stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        if error:
            raise error


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), runtime.stop_on_signals():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_the_flag_never_rises():
    found = []

    def body() -> None:
        with runtime.stop_on_signals() as stop:
            found.append(stop.signal)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [0]
