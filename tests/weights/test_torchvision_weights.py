"""torchvision's files: the same logits, classes where there are some, no code run, no network needed to say so."""

import os
import urllib.error
import zipfile

import numpy as np
import pytest
import torch

from alexnet.data import decode
from alexnet.errors import BundleError
from alexnet.export.classifier import Classifier
from alexnet.weights import torchvision_weights
from alexnet.weights.import_weights import ImportOptions, import_weights


def test_the_bundle_has_torchvision_s_logits(tmp_path):
    """From an image's bytes: short side 256, center 224, ÷ 255, mean and std, as torchvision's transforms say."""
    from torchvision.models import AlexNet_Weights, alexnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = alexnet(weights=None, num_classes=7).eval()
    path = tmp_path / "net.pth"
    torch.save({"model": {f"module.{k}": v for k, v in theirs.state_dict().items()}, "classes": list("abcdefg")}, path)
    bundle = import_weights("torchvision", str(path))
    assert (bundle.network.name, bundle.classes, bundle.stored_size) == ("alexnet_owt", tuple("abcdefg"), 256)
    y, x = np.mgrid[0:300, 0:350] / 350
    shown = np.rint(127.5 + 127.5 * np.stack([np.sin(9 * x), np.cos(11 * y), np.sin(7 * x * y)], -1)).astype(np.uint8)
    stored = decode.fit(shown, 256, "crop")
    says = AlexNet_Weights.DEFAULT.transforms()
    assert (list(says.mean), list(says.std)) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (says.resize_size, says.crop_size) == ([256], [224])
    view = torch.from_numpy(stored[16:240, 16:240]).permute(2, 0, 1).double() / 255
    mean, std = (torch.tensor(numbers).double()[:, None, None] for numbers in (says.mean, says.std))
    with torch.inference_mode():
        expected = theirs(((view - mean) / std)[None].float())[0]
        ours = Classifier(bundle)
        found = ours.probabilities(shown)[0]
    assert torch.allclose(torch.from_numpy(found), expected.softmax(0), atol=1e-6)
    assert np.allclose(np.log(found), expected.log_softmax(0), atol=1e-5)
    own = bundle.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in theirs.state_dict().items())
    path.unlink()
    legacy = {name: value for name, value in theirs.state_dict().items() if not name.startswith("classifier")}
    torch.save(legacy, path, _use_new_zipfile_serialization=False)
    with pytest.raises(BundleError, match=r"net\.pth lacks classifier\.1\.weight, .* another --model may fit"):
        import_weights("torchvision", str(path))


def refusal(path, data=None, **extras) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        import_weights("torchvision", str(path), ImportOptions(**extras))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_state_dict_is_refused(tmp_path):
    path = tmp_path / "net.pth"
    assert "is no file; must be a .pth file, or DEFAULT" in refusal(path)
    assert "is refused: it holds more than tensors" in refusal(path, b"hello")
    torch.save([1, 2], path)
    assert "holds list; must be a state dict" in refusal(path)
    torch.save({"conv1.weight": 3}, path)
    assert "conv1.weight is int; must be a tensor" in refusal(path)
    torch.save({"conv1.weight": torch.zeros(2, dtype=torch.int64)}, path)
    assert "conv1.weight is Tensor; must be a tensor of floating-point numbers" in refusal(path)
    torch.save({"features.0.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    assert "features.0.weight has a shape larger than its data" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000)
    assert "is a compressed zip file (archive/data.pkl)" in refusal(path)


def test_a_file_that_would_run_code_does_not(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    path = tmp_path / "net.pth"
    torch.save({"features.0.weight": Attack()}, path)
    assert "is refused: it holds more than tensors and plain values" in refusal(path)
    assert not (tmp_path / "pwned").exists()


def test_without_a_network_one_line_says_so(monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(BundleError) as caught:
        import_weights("torchvision", "DEFAULT")
    assert str(caught.value).startswith("torchvision could not fetch https://download.pytorch.org/models/alexnet-owt-")
    assert "no network here" in str(caught.value)


def test_fetched_weights_come_with_the_classes_of_imagenet(monkeypatch):
    state = {"features.0.weight": torch.ones(2)}
    asked = []

    def fetched(*_, **how):
        asked.append(how)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetched)
    found = torchvision_weights.fetch()
    assert asked[0]["check_hash"] is True
    assert (len(found.classes), found.classes[0], found.classes[-1]) == (1000, "tench", "toilet tissue")
    assert found.arrays["features.0.weight"].tolist() == [1, 1]
