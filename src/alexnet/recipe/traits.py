"""What the AlexNets of 2012 to 2014 are, topic by topic, each with its source. Tests hold this against the networks.

A recipe names a network; where two recipes name different ones, these are the differences that no option shows.
"""

from typing import NamedTuple


class Trait(NamedTuple):
    """What a network is in one respect, and where that is told."""

    value: str
    source: str


# Topic -> what it means, in the order in which an image meets it.
TOPICS = {
    "input": "side of the view, pixels",
    "kernels": "maps of conv1 to conv5 over all towers",
    "towers": "networks side by side; conv2, conv4 and conv5 see their own, conv3 and the rest see all",
    "conv1 padding": "zeros around the view",
    "norm in layer 1": "where response normalization is in layer 1",
    "norm in layer 2": "where response normalization is in layer 2",
    "norm constants": "out = in · (k + α · Σ in²)^−β over neighboring channels",
    "norm α ÷ n": "is α divided by the size of the window?",
    "norm scope": "which channels are neighbors at a tower's edge",
    "spatial norm": "normalization over the pixels of one map",
    "weight std": "standard deviation of the first weights",
    "hidden bias": "first biases of conv2, conv4, conv5, fc6 and fc7",
    "dropout": "where units are dropped",
    "pooling": "window and stride",
    "parameters": "numbers that learn, at 1000 classes",
    "published": "errors on the ILSVRC-2012 validation images unless another set is named, top-1 / top-5",
}

_NET = "2012 code, layers-145"
_PARAMS = "2012 code, layer-params-145"
_SHARED = {  # by all of 2012 and Caffe's
    "norm constants": Trait("5 channels, k 2, α 0.0001, β 0.75", "paper, 3.3"),
    "dropout": Trait("outputs of fc6 and fc7", "paper, 4.2"),
    "pooling": Trait("3×3, stride 2", "paper, 3.4"),
}
_PAPER = _SHARED | {
    "input": Trait("224", "paper, figure 2"),
    "kernels": Trait("96-256-384-384-256", "paper, 3.5"),
    "towers": Trait("2", "paper, 3.2"),
    "conv1 padding": Trait("right and bottom 3, so that 224 gives 55", "paper: unstated; 2012 code"),
    "norm in layer 1": Trait("conv relu norm pool", "paper, 3.3: after the ReLU"),
    "norm in layer 2": Trait("conv relu norm pool", "paper, 3.3: after the ReLU"),
    "norm α ÷ n": Trait("not as printed; `alexnet` divides, as the code", "paper, 3.3, its formula"),
    "norm scope": Trait("each tower by itself", "paper: unclear; 2012 code"),
    "spatial norm": Trait("none", "paper, 3.3: none is told"),
    "weight std": Trait("0.01", "paper, 5"),
    "hidden bias": Trait("1", "paper, 5"),
    "parameters": Trait("60,965,224", "counted; paper, abstract: 60 million"),
    "published": Trait("40.7 / 18.2 %, ten crops", "paper, table 2"),
}
_CODE2012 = _PAPER | {
    "input": Trait("224", _NET),
    "kernels": Trait("96-256-384-384-256", f"{_NET}: 2×(48-128-192-192-128)"),
    "towers": Trait("2", f"{_NET}: two GPUs"),
    "conv1 padding": Trait("right and bottom 3, so that 224 gives 55", f"{_NET}: pad 0, sizes by ceil"),
    "norm in layer 1": Trait("conv norm pool relu", f"{_NET}: before the ReLU"),
    "norm in layer 2": Trait("conv relu norm pool", _NET),
    "norm constants": Trait("5 channels, k 2, α 0.0001, β 0.75", _PARAMS),
    "norm α ÷ n": Trait("yes", "2012 code: scale ÷ size"),
    "norm scope": Trait("each tower by itself", f"{_NET}: a norm layer a tower"),
    "spatial norm": Trait("layer 2, after norm: 5×5 pixels, k 1, scale 0.001 ÷ 25", _NET),
    "weight std": Trait("0.01, conv3 to conv5 0.03", _NET),
    "hidden bias": Trait("1", _NET),
    "parameters": Trait("60,965,224", _NET),
    "published": Trait("40.66 / 18.21 %, ten crops", "2012 code, its log of net 145"),
}
_HALF_NET = "2012 code, layers-145-half"
_ONE_TOWER = _PAPER | {
    "kernels": Trait("48-128-192-192-256", _HALF_NET),
    "towers": Trait("1", _HALF_NET),
    "weight std": Trait("0.01, conv3 to conv5 0.03", _HALF_NET),
    "norm scope": Trait("all channels", f"{_HALF_NET}: there is one tower"),
    "parameters": Trait("59,798,312", _HALF_NET),
    "published": Trait("1.7 / 1.2 points more than two towers, ILSVRC-2010 test", "paper, 3.2"),
}


def _caffe(folder: str) -> dict[str, Trait]:
    net = f"Caffe models/{folder}/train_val.prototxt"
    reported = {
        "input": "227",
        "kernels": "96-256-384-384-256",
        "towers": "2",
        "conv1 padding": "none",
        "norm in layer 1": "conv relu norm pool",
        "norm in layer 2": "conv relu norm pool",
        "norm constants": "5 channels, k 1, α 0.0001, β 0.75",
        "norm scope": "all channels",
        "spatial norm": "none",
        "weight std": "0.01, fc6 and fc7 0.005",
        "dropout": "outputs of fc6 and fc7",
        "pooling": "3×3, stride 2",
        "parameters": "60,965,224",
    }
    return {topic: Trait(value, net) for topic, value in reported.items()} | {
        "towers": Trait("2", f"{net}: group 2"),
        "norm α ÷ n": Trait("yes", "Caffe, its LRN layer"),
    }


_CAFFE = _caffe("bvlc_alexnet") | {
    "hidden bias": Trait("0.1", "Caffe models/bvlc_alexnet/train_val.prototxt"),
    "published": Trait("42.9 / 19.8 %, center view", "Caffe models/bvlc_alexnet/readme.md"),
}
_CAFFENET_FILE = "Caffe models/bvlc_reference_caffenet"
_CAFFENET = _caffe("bvlc_reference_caffenet") | {
    "norm in layer 1": Trait("conv relu pool norm", f"{_CAFFENET_FILE}/train_val.prototxt"),
    "norm in layer 2": Trait("conv relu pool norm", f"{_CAFFENET_FILE}/train_val.prototxt"),
    "hidden bias": Trait("1", f"{_CAFFENET_FILE}/train_val.prototxt"),
    "published": Trait("42.6 / 19.6 %, center view", f"{_CAFFENET_FILE}/readme.md"),
}
_TORCHVISION = "torchvision models/alexnet.py"
_OWT = {
    "input": Trait("224", "torchvision references/classification"),
    "kernels": Trait("64-192-384-256-256", _TORCHVISION),
    "towers": Trait("1", _TORCHVISION),
    "conv1 padding": Trait("2 on every side", _TORCHVISION),
    "norm in layer 1": Trait("conv relu pool", _TORCHVISION),
    "norm in layer 2": Trait("conv relu pool", _TORCHVISION),
    "norm constants": Trait("no norm", _TORCHVISION),
    "norm α ÷ n": Trait("no norm", _TORCHVISION),
    "norm scope": Trait("no norm", _TORCHVISION),
    "spatial norm": Trait("none", _TORCHVISION),
    "weight std": Trait("uniform in ±1/√fan-in (Kaiming, a = √5)", "PyTorch, its layers' default"),
    "hidden bias": Trait("uniform in ±1/√fan-in", "PyTorch, its layers' default"),
    "dropout": Trait("inputs of fc6 and fc7", _TORCHVISION),
    "pooling": Trait("3×3, stride 2", _TORCHVISION),
    "parameters": Trait("61,100,840", _TORCHVISION),
    "published": Trait("43.48 / 20.93 %, center view", "torchvision models, AlexNet_Weights.IMAGENET1K_V1"),
}

TRAITS: dict[str, dict[str, Trait]] = {
    "alexnet": _PAPER,
    "alexnet_2012": _CODE2012,
    "alexnet_half": _ONE_TOWER,
    "alexnet_caffe": _CAFFE,
    "caffenet": _CAFFENET,
    "alexnet_owt": _OWT,
}
