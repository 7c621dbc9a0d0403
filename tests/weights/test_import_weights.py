"""What comes with weights: means, classes, names of kinds; and the command that makes a bundle of them."""

import json

import numpy as np
import pytest

from alexnet import cli
from alexnet.bundle import Bundle
from alexnet.errors import BundleError, ModelError
from alexnet.weights.import_weights import MODELS, ImportOptions, import_weights, mean_of

from .conftest import image, small_net
from .test_caffe import small_model


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.caffemodel"
    path.write_bytes(small_model(small_net()))
    return path


def test_a_mean_is_three_numbers_or_a_file_in_either_order_of_colors(tmp_path):
    assert mean_of("120,110.5, 100").tolist() == [120, 110.5, 100]
    image = np.random.default_rng(0).uniform(0, 255, (6, 6, 3)).astype(np.float32)
    blue_first = image[..., ::-1].transpose(2, 0, 1)
    for array in (image, image.astype(np.float64), blue_first, blue_first[None]):
        np.save(tmp_path / "mean.npy", array)
        assert np.array_equal(mean_of(str(tmp_path / "mean.npy")), image)
    for wrong in (image[0, 0], image[:, :5], np.zeros((2, 6, 6))):
        np.save(tmp_path / "mean.npy", wrong)
        with pytest.raises(BundleError, match=r"must be (a mean image )?\[3, S, S\]"):
            mean_of(str(tmp_path / "mean.npy"))
    np.save(tmp_path / "mean.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(BundleError, match="holds an array of Python objects"):
        mean_of(str(tmp_path / "mean.npy"))
    for text in ("1,2,x", "1,2,300", "nan,1,2"):
        with pytest.raises(BundleError, match="three gray levels from 0 to 255: red,green,blue"):
            mean_of(text)
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        mean_of(str(tmp_path / "nothing.binaryproto"))


def test_classes_come_from_a_file_or_are_numbers(file, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("ape\nbee\ncrane\ncrane\n\n", encoding="utf-8")
    bundle = import_weights("caffe", str(file), ImportOptions(model="cifar_19pct", classes=names))
    assert bundle.classes == ("ape", "bee", "crane (2)", "crane (3)")
    names.write_text("ape\nbee")
    with pytest.raises(BundleError, match=r"names\.txt names 2 classes; must be 4, the number of rows"):
        import_weights("caffe", str(file), ImportOptions(model="cifar_19pct", classes=names))


def test_without_a_mean_a_line_says_what_is_taken(file):
    messages = []
    bundle = import_weights("caffe", str(file), ImportOptions(model="cifar_19pct", log=messages.append))
    assert messages == ["no --mean: the channel means of ILSVRC-2012 are used instead of its mean image"]
    assert bundle.normalization.mean.tolist() == pytest.approx([122.679, 116.669, 104.007])
    assert bundle.stored_size == 32


def test_wrong_names_and_sizes(file, tmp_path):
    with pytest.raises(BundleError, match="unknown kind of weights 'keras'; must be one of torchvision, caffe"):
        import_weights("keras", str(file))
    with pytest.raises(ModelError, match="unknown model 'cifar'"):
        import_weights("caffe", str(file), ImportOptions(model="cifar"))
    np.save(tmp_path / "mean.npy", np.zeros((20, 20, 3)))
    with pytest.raises(BundleError, match="the mean image has 20 pixels; must be at least 32, the size of the crop"):
        import_weights("caffe", str(file), ImportOptions(model="cifar_19pct", mean=str(tmp_path / "mean.npy")))
    np.save(tmp_path / "mean.npy", np.linspace(-3, 300, 3 * 32 * 32).reshape(32, 32, 3))
    with pytest.raises(BundleError, match="the mean has values from -3 to 300; must be gray levels, 0 to 255"):
        import_weights("caffe", str(file), ImportOptions(model="cifar_19pct", mean=str(tmp_path / "mean.npy")))


def test_the_command(file, tmp_path, capsys):
    from PIL import Image

    words = ["import", "caffe", str(file), str(tmp_path / "bundle"), "--model", "cifar_19pct", "--mean", "120,110,100"]
    assert cli.run([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["classes"], result["parameters"]) == ("cifar_19pct", 4, 83_428)
    assert result["imported"]["kind"] == "caffe"
    assert len(result["imported"]["sha256"]) == 64
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["preprocessing"]["fit"] == "squash"
    assert len(Bundle.load(tmp_path / "bundle").reference_samples) == 3
    Image.fromarray(image(50)).save(tmp_path / "a.png")
    assert cli.run(["predict", str(tmp_path / "bundle"), str(tmp_path / "a.png"), "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["top_k"]) == 4
    assert cli.run(words) == 1  # the folder exists
    assert "exists already; must be a new folder" in capsys.readouterr().err
    assert cli.run(["import", "caffe", str(tmp_path / "none"), str(tmp_path / "other")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_every_kind_has_a_network():
    from alexnet.models import list_models

    assert set(MODELS.values()) <= set(list_models())
