"""The two AlexNets against the paper, the 2012 code's numbers, and a network cut in two by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.models import Network, create_model
from alexnet.models.alexnet import CODE_2012, PAPER

PARAMETERS = {
    "alexnet": [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000],
    "alexnet_single": [34_944, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 4_097_000],
}
LEARNED = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]


@pytest.fixture(scope="module", params=["paper", "2012"])
def network(request) -> Network:
    generator = torch.Generator().manual_seed(0)
    return create_model("alexnet", initialization=request.param, generator=generator).eval()


@pytest.mark.parametrize(("name", "total"), [("alexnet", 60_965_224), ("alexnet_single", 62_378_344)])
def test_parameters(name, total):
    with torch.device("meta"):  # shapes only
        network = create_model(name)
    counts = [sum(p.numel() for p in network.get_submodule(layer).parameters()) for layer in LEARNED]
    assert counts == PARAMETERS[name]
    assert sum(p.numel() for p in network.parameters()) == total
    assert list(network.state_dict()) == [f"{layer}.{kind}" for layer in LEARNED for kind in ("weight", "bias")]


def test_shapes(network):
    shapes = {name: tuple(out.shape[1:]) for name, out in network.outputs(torch.zeros(1, 3, 224, 224)).items()}
    assert shapes["conv1"] == (96, 55, 55) and shapes["pool1"] == (96, 27, 27)
    assert shapes["conv2"] == (256, 27, 27) and shapes["pool2"] == (256, 13, 13)
    assert shapes["conv3"] == shapes["conv4"] == (384, 13, 13)
    assert shapes["conv5"] == (256, 13, 13) and shapes["pool5"] == (256, 6, 6)
    assert shapes["fc6"] == shapes["fc7"] == (4096,) and shapes["fc8"] == (1000,)
    assert network.features == "relu7" and network.towers == 2


def test_order_of_layers():
    """Norm after the ReLU and before the pool (section 3.5); dropout on the outputs of fc6 and fc7."""
    with torch.device("meta"):
        names = [name for name, _ in create_model("alexnet").named_children()]
    assert names[:4] == ["conv1", "relu1", "norm1", "pool1"] and names[4:8] == ["conv2", "relu2", "norm2", "pool2"]
    assert names[-7:] == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"]


def test_initial_weights_and_biases(network):
    code = network.conv3.weight.std() > 0.02
    for name in LEARNED:
        layer = network.get_submodule(name)
        std = 0.03 if code and name in ("conv3", "conv4", "conv5") else 0.01
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)  # 34,848 draws in the smallest: 5 sigma
        assert abs(layer.weight.mean().item()) < 5 * std / layer.weight.numel() ** 0.5
        bias = 1.0 if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
        assert (layer.bias == bias).all()
        # Normal, not uniform: a uniform draw of this standard deviation never leaves 1.73 of it.
        assert 0.03 < (layer.weight.abs() > 2 * std).float().mean() < 0.06


def test_the_two_initializations_differ_in_three_layers():
    assert {name for name in PAPER if PAPER[name] != CODE_2012[name]} == {"conv3", "conv4", "conv5"}
    networks = [
        create_model(
            "alexnet", num_classes=2, image_size=67, initialization=kind, generator=torch.Generator().manual_seed(0)
        )
        for kind in (None, "paper", "2012")
    ]
    first, second, third = (network.state_dict() for network in networks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {key for key in first if not torch.equal(first[key], third[key])} == {
        "conv3.weight",
        "conv4.weight",
        "conv5.weight",
    }


def smooth_images(count: int, size: int) -> Tensor:
    """Random smooth images, 0–255, minus the mean: [N, 3, size, size]."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(7)) * 255
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255) - 127.5


def test_first_logits_differ_between_images(network):
    """Observed on such images: 0.141 with the code's initialization, 0.0095 with the paper's text."""
    with torch.no_grad():
        spread = network(smooth_images(8, 224)).std(0).mean().item()
    expected = 0.141 if network.initial["conv3"] == CODE_2012["conv3"] else 0.0095
    assert expected / 2 < spread < expected * 2


def halves(network: Network, tower: int) -> dict[str, Tensor]:
    """Half of dimension 0 of every weight and bias, under the same names."""
    return {name: value.chunk(2)[tower] for name, value in network.state_dict().items()}


def own(x: Tensor, w: dict[str, Tensor], layer: str, padding: int = 1) -> Tensor:
    return F.relu(F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], padding=padding))


def full(x: Tensor, w: dict[str, Tensor], layer: str) -> Tensor:
    return F.linear(x, w[f"{layer}.weight"], w[f"{layer}.bias"])


def norm_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(F.local_response_norm(x, 5, 1e-4, 0.75, 2), 3, 2, ceil_mode=True)


def run_towers(x: Tensor, towers: list[dict[str, Tensor]]) -> Tensor:
    """Both halves, layer by layer; they meet only where ``torch.cat`` stands."""
    x = F.pad(x, (0, 3, 0, 3))
    maps = [norm_pool(F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], stride=4))) for w in towers]
    maps = [norm_pool(own(m, w, "conv2", 2)) for m, w in zip(maps, towers, strict=True)]
    both = torch.cat(maps, 1)  # exchange before conv3
    maps = [own(own(own(both, w, "conv3"), w, "conv4"), w, "conv5") for w in towers]
    flat = torch.cat([F.max_pool2d(m, 3, 2, ceil_mode=True).flatten(1) for m in maps], 1)  # before fc6
    flat = torch.cat([F.relu(full(flat, w, "fc6")) for w in towers], 1)  # before fc7
    flat = torch.cat([F.relu(full(flat, w, "fc7")) for w in towers], 1)  # before fc8
    return torch.cat([full(flat, w, "fc8") for w in towers], 1)


def test_the_network_can_be_cut_in_two(network):
    x = smooth_images(2, 224)
    towers = [halves(network, tower) for tower in (0, 1)]
    assert all(list(half) == list(network.state_dict()) for half in towers)
    with torch.no_grad():
        joined, cut = network(x), run_towers(x, towers)
    # float32, the same sums in another order; the logits are of order 1 with differences of 0.01.
    assert (joined - cut).abs().max() < 1e-4 * joined.std()


def test_single_has_no_towers():
    with torch.device("meta"):
        network = create_model("alexnet_single")
    assert network.towers == network.norm1.towers == network.norm2.towers == 1
    assert {layer.groups for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)} == {1}


def test_both_have_the_papers_maps():
    for name, size in (("alexnet", 224), ("alexnet_single", 227)):
        with torch.device("meta"):
            network = create_model(name)
        assert network.image_size == size and network.flatten.side == 6


# ---- Net 145 against its layers written down again, tower by tower, in float64.

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
