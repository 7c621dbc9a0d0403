"""Small networks in Krizhevsky's format, for the tests of all rooms: name -> side of the images, learned numbers."""

from pathlib import Path

import torch

from alexnet.cuda_convnet import Data, Files, GraphNetwork, build

HERE = Path(__file__).parent / "cuda_convnet" / "layer_files"
EXAMPLES = {
    "towers": (32, 96_074),
    "spatial": (24, 19_178),
    "local": (16, 44_218),
    "shared": (8, 17_226),
    "images": (32, 22_154),
    "sparse": (16, 39_914),
}


def files(name: str) -> Files:
    return Files(name, (HERE / f"{name}.cfg").read_text(), (HERE / f"{name}-params.cfg").read_text())


def network(name: str, seed: int = 0, **how: object) -> GraphNetwork:
    return build(files(name), Data(EXAMPLES[name][0]), generator=torch.Generator().manual_seed(seed), **how)


def layer(text: str, size: int, channels: int = 16, parameters: str = "") -> GraphNetwork:
    """A network around the layers of ``text``: they read ``data`` and end in ``x``; a cost reads that.

    No weights lie below ``x`` unless the text has them, so ``outputs`` shows the arithmetic of one layer.
    """
    text = f"""
[data]
type=data
dataIdx=0
[target]
type=data
dataIdx=2
{text}
[last]
type=fc
inputs=x
outputs=10
initW=0.1
gpu=0
[cost]
type=cost.crossent2
inputs=target,last
gpu=0
"""
    parameters += "\n[last]\nepsW=1\nepsB=1\nmomW=0\nmomB=0\n[cost]\ncoeff=1\n"
    generator = torch.Generator().manual_seed(0)
    return build(Files("one", text, parameters), Data(size, channels), generator=generator)
