"""Net 145 against its layers written down again, tower by tower, in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.models import create_model
from alexnet.models.alexnet import CODE_2012, PAPER

SIDE = 67


def spatial(x: Tensor) -> Tensor:
    """x / (1 + 1e-3 / 25 · Σ x²)^0.75 over the 5×5 pixels around each, by adding shifted maps."""
    padded = F.pad(x * x, (2, 2, 2, 2))
    rows, columns = x.shape[2:]
    sums = sum(padded[:, :, i : i + rows, j : j + columns] for i in range(5) for j in range(5))
    return x / (1 + 1e-3 / 25 * sums) ** 0.75


def channel(x: Tensor) -> Tensor:
    """x / (2 + 1e-4 / 5 · Σ x²)^0.75 over five neighboring channels."""
    padded = F.pad(x * x, (0, 0, 0, 0, 2, 2))
    sums = sum(padded[:, i : i + x.shape[1]] for i in range(5))
    return x / (2 + 1e-4 / 5 * sums) ** 0.75


def pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def run(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The layers of layers-145.cfg, in its order; ``h`` is the tower."""

    def conv(x: Tensor, name: str, h: int, **geometry: int) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"].chunk(2)[h], w[f"{name}.bias"].chunk(2)[h], **geometry)

    def full(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = F.pad(x, (0, 3, 0, 3))  # (67 − 11) / 4 is whole: these zeros change nothing
    maps = [pool(channel(conv(x, "conv1", h, stride=4))).relu() for h in (0, 1)]
    maps = [pool(spatial(channel(conv(maps[h], "conv2", h, padding=2).relu()))) for h in (0, 1)]
    both = torch.cat(maps, 1)
    maps = [conv(both, "conv3", h, padding=1).relu() for h in (0, 1)]
    maps = [conv(maps[h], "conv4", h, padding=1).relu() for h in (0, 1)]
    maps = [pool(conv(maps[h], "conv5", h, padding=1)).relu() for h in (0, 1)]
    x = torch.cat(maps, 1).flatten(1)
    return full(full(full(x, "fc6").relu(), "fc7").relu(), "fc8")


def test_outputs_and_gradients_are_those_of_the_file():
    network = create_model(
        "alexnet_2012", num_classes=3, image_size=SIDE, generator=torch.Generator().manual_seed(0)
    ).eval()
    x = (255 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) - 127).requires_grad_()
    slow_x = x.detach().double().requires_grad_()
    weights = {name: value.double().requires_grad_() for name, value in network.state_dict().items()}
    ours, right = network(x), run(slow_x, weights)
    weight = torch.tensor([1.0, -2.0, 3.0])
    (ours * weight).sum().backward()
    (right * weight).sum().backward()
    assert (ours - right).abs().max() < 1e-5 * right.abs().max()
    pairs = [(x.grad, slow_x.grad)] + [(p.grad, weights[name].grad) for name, p in network.named_parameters()]
    for found, expected in pairs:
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()  # float32; observed 2e-6


def test_it_is_not_the_papers():
    """With the same weights: the paper's norm sees no negative sums, and has no spatial norm behind it."""
    options = {"num_classes": 3, "image_size": SIDE, "initialization": "2012"}
    networks = [
        create_model(name, generator=torch.Generator().manual_seed(0), **options).eval()
        for name in ("alexnet", "alexnet_2012")
    ]
    x = 255 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) - 127
    paper, code = (network.outputs(x) for network in networks)
    assert torch.equal(paper["conv1"], code["conv1"])
    assert not torch.allclose(paper["pool1"], code["relu1"])
    # Where a neighbor is negative the code divides by more; both are positive after the ReLU.
    assert (code["relu1"] <= paper["pool1"] * (1 + 1e-6)).all()


def test_order_and_initialization():
    with torch.device("meta"):
        network = create_model("alexnet_2012")
        assert network.initial == CODE_2012
        assert create_model("alexnet_2012", initialization="paper").initial == PAPER
    names = [name for name, _ in network.named_children()]
    assert names[:9] == ["conv1", "norm1", "pool1", "relu1", "conv2", "relu2", "norm2", "spatial2", "pool2"]
    assert names[13:18] == ["conv5", "pool5", "relu5", "flatten", "fc6"]
    norm = network.spatial2
    assert (norm.size, norm.scale, norm.beta, norm.k) == (5, 1e-3, 0.75, 1.0)
    assert network.norm1.towers == network.norm2.towers == network.towers == 2
    assert sum(p.numel() for p in network.parameters()) == 60_965_224 and network.flatten.side == 6
