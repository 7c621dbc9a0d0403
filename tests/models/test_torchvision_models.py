"""torchvision's networks as chains: the same answers, the same weights, the same sizes as torchvision's own."""

import copy
import sys

import pytest
import torch
from torch import nn

from alexnet.errors import ModelError
from alexnet.models import create_model, describe, list_models, list_torchvision_models
from alexnet.models.layers import Dropout, set_generator
from alexnet.models.network import AuxiliaryHead
from alexnet.models.summary import summarize
from alexnet.models.torchvision_models import TorchvisionNetwork
from alexnet.training.finetune import default_recipe

models = pytest.importorskip("torchvision.models")
# Network -> side of its smallest images. Those that weigh more, and VGG, which weighs half a gigabyte, are slow.
SMALL = {"googlenet": 47, "resnet18": 33}
LARGE = {"inception_v3": 107, "resnet50": 33, "vgg11": 32, "vgg11_bn": 32}


def drawn(name, classes=3, **options):
    return create_model(name, num_classes=classes, generator=torch.Generator().manual_seed(0), **options)


def theirs(name, classes=3, **options):
    """torchvision's own, drawn from the same seed."""
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(0)))
    more = {} if name.startswith("resnet") else {"init_weights": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(models, name)(weights=None, num_classes=classes, **more | options)


@pytest.fixture(scope="module", params=[*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def pair(request):
    name = request.param
    auxiliary_heads = {"googlenet": {"aux_logits": True}, "inception_v3": {"aux_logits": False}}.get(name, {})
    return drawn(name, image_size=(SMALL | LARGE)[name]), theirs(name, **auxiliary_heads)


def test_the_same_predictions_as_torchvision(pair):
    ours, other = pair
    x = torch.randn(2, 3, ours.image_size, ours.image_size, generator=torch.Generator().manual_seed(1))
    ours, other = copy.deepcopy(ours).eval(), copy.deepcopy(other).eval()
    with torch.no_grad():
        assert torch.equal(ours(x), other(x))
        assert ours.forward_to(x, ours.features).dim() == 2
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in other.parameters())


def test_weights_of_torchvision_fit(pair):
    ours, other = pair
    state = {name: torch.full_like(value, 2) for name, value in other.state_dict().items()}
    found = ours.from_torchvision(state)
    assert set(found) == set(ours.state_dict()) and all((value == 2).all() for value in found.values())
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in ours.state_dict().items()}


def test_training_at_the_smallest_size_of_one_image(pair):
    """The last batch of an epoch may have one image: batch norm still has several numbers to look at."""
    ours = copy.deepcopy(pair[0]).train()
    side = ours.image_size
    assert ours(torch.randn(1, 3, side, side)).isfinite().all()
    with pytest.raises(
        ModelError, match=f"image_size {side - 1} is too small for {ours.name}; must be at least {side}"
    ):
        create_model(ours.name, image_size=side - 1)


def test_dropout_comes_from_the_runs_generator(pair):
    ours = copy.deepcopy(pair[0]).train()
    assert not any(isinstance(module, nn.Dropout) for module in ours.modules())
    if not any(isinstance(module, Dropout) for module in ours.modules()):
        return  # ResNet has none
    x, outputs = torch.randn(4, 3, ours.image_size, ours.image_size), []
    for seed in (5, 5, 6):
        again = copy.deepcopy(ours)
        set_generator(again, torch.Generator().manual_seed(seed))
        outputs.append(again(x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


# Published by torchvision for 1000 classes; multiply-adds of its documentation (GFLOPS) to three digits.
@pytest.mark.parametrize(
    ("name", "parameters", "gigas"),
    [
        ("googlenet", 13_004_888, 1.50),
        ("inception_v3", 27_161_264, 5.71),
        ("resnet18", 11_689_512, 1.81),
        ("resnet50", 25_557_032, 4.09),
        ("vgg11", 132_863_336, 7.61),
        ("vgg11_bn", 132_868_840, 7.61),
        ("vgg16", 138_357_544, 15.47),
        ("vgg16_bn", 138_365_992, 15.47),
    ],
)
def test_sizes_are_the_published_ones(name, parameters, gigas):
    with torch.device("meta"):
        network = create_model(name)
    summary = summarize(network)
    assert summary.parameters == parameters == sum(p.numel() for p in network.parameters())
    assert round(summary.multiply_adds / 1e9, 2) == gigas
    assert [row.layer for row in summary.rows] == [layer for layer, _ in network.named_children()]
    assert summary.rows[-1].output == (1000,) and summary.render().title.startswith(name)


@pytest.mark.parametrize("name", ["inception_v3", "resnet50", "vgg16", "vgg16_bn"])
def test_every_key_of_torchvisions_has_its_place(name):
    """By shapes alone: each of torchvision's numbers is asked for once, and has the size that ours has."""
    with torch.device("meta"):
        more = {} if name.startswith("resnet") else {"init_weights": False}
        ours, other = create_model(name, num_classes=7), getattr(models, name)(weights=None, num_classes=7, **more)
        state = other.state_dict()
        found = ours.from_torchvision(state)
    assert sorted(map(id, found.values())) == sorted(map(id, state.values()))
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in ours.state_dict().items()}


def test_they_are_listed_apart():
    assert len(list_torchvision_models()) == 8 and not set(list_torchvision_models()) & set(list_models())
    assert all("\n" not in describe(name) for name in list_torchvision_models())


def test_each_has_a_recipe_that_starts_its_own_way():
    for name in (*list_torchvision_models(), "residual_8", "plain_56", "lenet5_shrunk"):
        recipe = default_recipe("images", model=name)
        assert (recipe.model, recipe.initialization, recipe.divide_std) == (name, "own", True)


def test_auxiliary_classifiers_answer_in_training_alone():
    network = drawn("googlenet", image_size=47)
    x = torch.randn(2, 3, 47, 47, generator=torch.Generator().manual_seed(1))
    assert [auxiliary_head.weight for auxiliary_head in network.auxiliary_heads()] == [0.3, 0.3]
    reference = theirs("googlenet", aux_logits=True)
    reference.aux1.dropout.p = reference.aux2.dropout.p = reference.dropout.p = 0.0
    for module in network.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    expected, own = reference.train()(x), network.train()(x)
    assert torch.allclose(own, expected.logits, atol=1e-6)
    for auxiliary_head, logits in zip(
        network.auxiliary_heads(), (expected.aux_logits1, expected.aux_logits2), strict=True
    ):
        assert torch.allclose(auxiliary_head.take(), logits, atol=1e-5)
        with pytest.raises(AssertionError, match="no forward pass in training"):
            auxiliary_head.take()
    network.eval()(x)
    assert all(auxiliary_head._logits is None for auxiliary_head in network.auxiliary_heads())


def test_inception_has_its_auxiliary_classifier_where_it_fits():
    with torch.device("meta"):
        sizes = {side: create_model("inception_v3", image_size=side) for side in (298, 299)}
    assert [len(network.auxiliary_heads()) for network in sizes.values()] == [0, 1]
    auxiliary_head = sizes[299].auxiliary_heads()[0]
    assert auxiliary_head.weight == 0.4 and isinstance(auxiliary_head, AuxiliaryHead)
    sizes[299].train()(torch.empty(2, 3, 299, 299, device="meta"))
    assert auxiliary_head.take().shape == (2, 1000)


def test_gray_images_are_refused():
    with pytest.raises(ModelError) as caught:
        create_model("resnet18", in_channels=1)
    assert str(caught.value) == "in_channels 1 of resnet18; must be 3: torchvision's networks expect color images"


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelError) as caught:
        create_model("resnet18")
    text = str(caught.value)
    assert text.startswith("resnet18 needs torchvision, which cannot be imported (") and "\n" not in text
    assert text.endswith("must be the torchvision that matches torch")


def test_a_drawing_touches_no_global_generator():
    before = torch.random.get_rng_state()
    network = drawn("resnet18", image_size=33)
    assert torch.equal(before, torch.random.get_rng_state()) and isinstance(network, TorchvisionNetwork)
