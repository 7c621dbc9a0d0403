"""Networks of timm as contestants, against the real library; skipped without it."""

import sys

import pytest
import torch

from alexnet.errors import ModelError
from alexnet.models import create_model, recipe_fields, timm_models
from alexnet.models.summary import summarize


@pytest.mark.parametrize(
    ("name", "size"), [("resnet10t", 64), ("vit_tiny_patch16_224", 48), ("mobilenetv3_small_050", 64)]
)
def test_the_network_computes_what_timm_computes(name, size):
    timm = pytest.importorskip("timm")
    network = create_model(f"timm/{name}", num_classes=5, image_size=size, generator=torch.Generator().manual_seed(3))
    kwargs = {"img_size": size} if "vit" in name else {}
    original = timm.create_model(name, num_classes=0, **kwargs).eval()
    original.load_state_dict(network.eval().backbone.state_dict())
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        features = original(images)
        assert torch.allclose(network.fc(features), network(images), atol=1e-5)
    summary = summarize(network)
    assert summary.rows[0].output == tuple(features.shape[1:])
    assert summary.parameters == sum(p.numel() for p in network.parameters())
    assert summary.multiply_adds == counted(original, images[:1]) + features.shape[1] * 5


def counted(network, image):
    """Multiply-adds by the shapes of the arguments that PyTorch's own operators receive."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad(), without_attention(network):
        network(image)
    return counter.get_total_flops() // 2


class without_attention:  # noqa: N801
    """The products inside of attention have no weights: they are not counted."""

    def __init__(self, network):
        self.blocks = [m for m in network.modules() if type(m).__name__ == "Attention"]

    def __enter__(self):
        self.real = torch.nn.functional.scaled_dot_product_attention
        torch.nn.functional.scaled_dot_product_attention = lambda q, k, v, **_: v

    def __exit__(self, *_):
        torch.nn.functional.scaled_dot_product_attention = self.real


def test_weights_come_from_the_generator_alone():
    pytest.importorskip("timm")
    kwargs = {"num_classes": 3, "image_size": 64}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (
        create_model("timm/resnet10t", **kwargs, generator=torch.Generator().manual_seed(seed)).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["fc.weight"], c["fc.weight"])
    assert not torch.equal(a["backbone.layer1.0.conv1.weight"], c["backbone.layer1.0.conv1.weight"])


def test_training_draws_nothing_from_the_global_generator():
    """Swin has stochastic depth by default."""
    pytest.importorskip("timm")
    network = create_model("timm/swin_tiny_patch4_window7_224", num_classes=2, image_size=112).train()
    image = torch.zeros(1, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
    with torch.device("meta"):
        draft = create_model("timm/swin_tiny_patch4_window7_224", num_classes=2)
    assert draft.image_size == 224 and draft.backbone.num_features == 768


def test_published_weights_of_the_backbone(monkeypatch, tmp_path):
    """timm reads a local file in place of its download."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    published = timm.create_model("resnet10t").state_dict()
    save_file(published, tmp_path / "weights.safetensors")
    overlay, real = {"file": str(tmp_path / "weights.safetensors")}, timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **kwargs: real(*args, pretrained_cfg_overlay=overlay, **kwargs)
    )
    network, mean, std = timm_models.pretrained("timm/resnet10t", 64)
    own = network.backbone.state_dict()
    assert own and all(torch.equal(value, published[name]) for name, value in own.items())
    assert (mean, std) == (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    overlay["file"] = str(tmp_path / "missing.safetensors")
    with pytest.raises(ModelError, match=r"cannot be built with its published weights .*; leave --pretrained out"):
        timm_models.pretrained("timm/resnet10t", 64)


def test_what_is_refused(monkeypatch):
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=r"timm has no network 'resnet19'\. Did you mean 'resnet1"):
        create_model("timm/resnet19")
    with pytest.raises(ModelError, match=r"timm/vit_tiny_patch16_224 cannot be built for images of 8 pixels \("):
        create_model("timm/vit_tiny_patch16_224", image_size=8)
    assert recipe_fields("timm/resnet18") == {"initialization": "own", "divide_std": True}
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ModelError, match=r"timm/resnet18 needs timm, which is not installed; pip install 'alexnet\[timm\]'"
    ):
        create_model("timm/resnet18")
