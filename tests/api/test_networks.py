"""``alexnet.create_model`` and timm's methods of a network."""

import pytest
import torch

import alexnet
from alexnet import api
from alexnet.errors import ModelError
from alexnet.models import list_models, meta_model, registry
from alexnet.models.network import FeatureExtractor

SIZES = {"alexnet_small": 24, "lenet5": 32, "residual_8": 32, "alexnet_owt": 63, "cifar_13pct": 24}


def images(network, count=2):
    size = network.image_size
    return torch.randn(count, network.in_channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_features_and_head_are_the_whole_network(name):
    network = alexnet.create_model(name, num_classes=7, image_size=SIZES[name]).eval()
    batch = images(network)
    features = network.forward_features(batch)
    assert features.dim() == 4 and features.shape[1] == network.num_features
    torch.testing.assert_close(network.forward_head(features), network(batch))
    before = network.forward_head(features, pre_logits=True)
    assert before.shape == (2, network.head_hidden_size)
    torch.testing.assert_close(network.get_classifier()(before), network(batch))


@pytest.mark.parametrize("name", sorted(set(list_models()) - {"alexnet_small"}))
def test_every_network_has_a_head(name):
    model = registry.find(name)
    network = meta_model(name, num_classes=3, in_channels=1 if "lenet" in name else 3, image_size=model.image_size)
    names = [child for child, _ in network.named_children()]
    assert 0 < network._head_start() < len(network) - 1 and names[-1] not in names[: network._head_start()]
    assert network.head_hidden_size == network[-1].in_features


@torch.no_grad()
def test_a_classifier_is_replaced_and_removed():
    network = alexnet.create_model("alexnet_owt", num_classes=5, image_size=63).eval()
    kept = {name: value.clone() for name, value in network.state_dict().items() if "classifier.6" not in name}
    generator = torch.Generator().manual_seed(3)
    network.reset_classifier(4, generator)
    assert network.num_classes == 4 and network(images(network)).shape == (2, 4)
    again = alexnet.create_model("alexnet_owt", num_classes=5, image_size=63)
    again.reset_classifier(4, torch.Generator().manual_seed(3))
    assert torch.equal(network.get_classifier().weight, again.get_classifier().weight)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in kept.items())
    network.reset_classifier(0)
    features = network(images(network))
    assert features.shape == (2, 4096) and network.num_classes == 0
    assert set(network.state_dict()) == set(kept)
    network.reset_classifier(3)
    assert network(images(network)).shape == (2, 3)
    for wrong in (1, -1):
        with pytest.raises(ModelError, match=f"num_classes {wrong}; must be at least 2, or 0"):
            network.reset_classifier(wrong)


@torch.no_grad()
def test_features_only_returns_the_maps_of_each_resolution():
    extractor = alexnet.create_model("alexnet_owt", features_only=True, image_size=127)
    assert isinstance(extractor, FeatureExtractor)
    assert [(info["module"], info["num_chs"], info["reduction"]) for info in extractor.feature_info] == [
        ("relu1", 64, 4),
        ("relu2", 192, 8),
        ("relu5", 256, 18),
        ("pool5", 256, 42),
    ]
    info = extractor.feature_info
    assert (info.channels(), info.reduction()) == ([64, 192, 256, 256], [4, 8, 18, 42])  # as with timm
    assert info.module_name() == ["relu1", "relu2", "relu5", "pool5"]
    network = alexnet.create_model("alexnet_owt", image_size=127).eval()
    network.load_state_dict(alexnet.create_model("alexnet_owt", image_size=127).state_dict())
    extractor = FeatureExtractor(network, out_indices=(0, -1))
    batch = images(network)
    outputs = network.outputs(batch)
    first, last = extractor(batch)
    torch.testing.assert_close(first, outputs["relu1"])
    torch.testing.assert_close(last, outputs["pool5"])
    with pytest.raises(ModelError, match="out_indices 4 of alexnet_owt; must be from 0 to 3"):
        FeatureExtractor(network, out_indices=(4,))
    with pytest.raises(ModelError, match="out_indices without features_only"):
        alexnet.create_model("alexnet_owt", out_indices=(1,))


def test_trained_weights(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())
    api.train(digits.path, "lenet5", tmp_path / "run", device="cpu", epochs=1)
    trained = alexnet.load(tmp_path / "run", "cpu").bundle.network.state_dict()
    network = alexnet.create_model("lenet5", pretrained=tmp_path / "run")
    assert network.training and network.num_classes == 10
    assert all(torch.equal(network.state_dict()[name], value) for name, value in trained.items())
    other = alexnet.create_model("lenet5", pretrained=str(tmp_path / "run"), num_classes=3)
    first = next(iter(trained))
    assert torch.equal(other.state_dict()[first], trained[first])
    assert other.get_classifier().out_features == 3
    with pytest.raises(ModelError, match="are of lenet5; must be alexnet_small; create that network"):
        alexnet.create_model("alexnet_small", pretrained=tmp_path / "run")
    with pytest.raises(ModelError, match="in_channels 3; must be 1"):
        alexnet.create_model("lenet5", pretrained=tmp_path / "run", in_channels=3)
    with pytest.raises(ModelError, match=r"no weights of alexnet_small are published; pass pretrained='RUN'"):
        alexnet.create_model("alexnet_small", pretrained=True)
    with pytest.raises(ModelError, match="pass pretrained='starter', those of this package, or 'RUN'"):
        alexnet.create_model("alexnet", pretrained=True)
    with pytest.raises(ModelError, match="unknown model 'alexnt'"):
        alexnet.create_model("alexnt", pretrained=True)


def test_tables_in_a_notebook(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())
    network = alexnet.create_model("alexnet_small", num_classes=7)
    table = network._repr_html_()
    left = '<td style="text-align: left">'
    assert f"{left}conv1</td>{left}Convolution</td><td>24×" in table and network.training
    assert "707,431 parameters" in table and table.count("<tr>") == len(network) + 1
    result = api.train(digits.path, "lenet5", tmp_path / "<run>", device="cpu", epochs=1)
    page = result._repr_html_()
    assert f"{100 * result.scores['test'].top1:.1f} %" in page and "&lt;run&gt;" in page and "<run>" not in page
    bundle = result.classifier().bundle._repr_html_()
    assert f"{left}lenet5</td>" in bundle and "<th" not in bundle  # no empty head
    assert f"{100 * result.scores['test'].top1:.1f} %" in bundle
