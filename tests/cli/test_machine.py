"""``alexnet info``: what a bug report needs."""

import json

import torch

from alexnet import cli, kernels
from alexnet.cli import machine
from alexnet.kernels import backend


def test_versions_devices_and_kernels(capsys):
    assert cli.run(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert torch.__version__.startswith(found["packages"]["torch"]) and "alexnet" in found["packages"]
    assert [kernel["name"] for kernel in found["kernels"]] == list(kernels.KERNELS)
    assert all(kernel["why"] for kernel in found["kernels"])
    assert found["system"]["--precision auto"] in ("fp32", "bf16")
    assert cli.run(["info"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*kernels.KERNELS, found["system"]["processor"][:20]))


def test_why_a_kernel_is_not_in_use(monkeypatch):
    def of(name):
        return next((k["in_use"], k["why"]) for k in machine.collect()["kernels"] if k["name"] == name)

    with kernels.disabled("winograd"):
        assert of("winograd") == (False, "turned off")
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert of("simplejpeg") == (False, "simplejpeg is not installed: pip install 'alexnet[fast]'")
    if not torch.cuda.is_available():
        assert of("gpu_cache") == (False, "no GPU")
        monkeypatch.setattr(backend, "has_amx", lambda: False)
        assert of("onednn") == (False, "no AMX") and of("space_to_depth") == (False, "no GPU and no AMX")
        monkeypatch.setattr(backend, "has_amx", lambda: True)
        assert of("onednn")[0] and of("space_to_depth")[0]


def test_names_of_requirements():
    assert [machine._name(line) for line in ("torch>=2.11", 'onnx>=1.17; extra == "export"', "x[y]==1", "z")] == [
        "torch",
        "onnx",
        "x",
        "z",
    ]
