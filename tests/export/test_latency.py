"""Networks are timed in turn, the slow one comes out slower, and who is first alternates."""

import torch

from alexnet.export.classifier import interleaved_latency
from alexnet.models import create_model


def test_in_turn(monkeypatch):
    calls, clock = [], [0.0]
    monkeypatch.setattr("alexnet.export.classifier.time.perf_counter", lambda: clock[0])

    def listened(name, seconds):
        network = create_model("lenet5", generator=torch.Generator().manual_seed(0)).eval()

        def hook(module, inputs, outputs):
            clock[0] += seconds
            calls.append((name, tuple(inputs[0].shape)))

        network.register_forward_hook(hook)
        return network

    fast, slow = interleaved_latency([listened("fast", 0.01), listened("slow", 0.03)], 3, 4)
    assert (round(fast, 6), round(slow, 6)) == (10, 30)
    assert {shape for _, shape in calls} == {(3, 1, 32, 32)}
    order = [name for name, _ in calls]
    assert order == ["slow", "fast", "fast", "slow"] * 2 + ["slow", "fast"]
