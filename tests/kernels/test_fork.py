"""The child of a fork computes, although the threads of its parent are not in it."""

import os
import subprocess
import sys

SCRIPT = """
import os, signal, torch
from alexnet.kernels import native_kernels as kernel
from alexnet.models import create_model

torch.set_num_threads(2)
kernel.build()
network = create_model("alexnet_small", generator=torch.Generator().manual_seed(0))
images = torch.randn(4, network.in_channels, network.image_size, network.image_size)

def results():
    rows = torch.randn(4, 32, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        predictions = network.eval()(images)
        normalized = LocalResponseNorm()(rows)
    network.zero_grad()
    network(images).sum().backward()
    return predictions, normalized, network.conv1.weight.grad.clone()

from alexnet.models.layers import LocalResponseNorm
before = results()
child = os.fork()
if not child:
    signal.alarm(300)  # ends a child that hangs
    close = [torch.allclose(one, other, rtol=1e-3, atol=1e-5) for one, other in zip(before, results())]
    os._exit(0 if all(close) and torch.get_num_threads() == 1 else 1)
print(os.waitpid(child, 0)[1], torch.get_num_threads())
"""


def test_a_child_of_a_fork_predicts_and_learns():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], env=environment, stdout=subprocess.PIPE)
    assert run.stdout.decode().split() == ["0", "2"]
