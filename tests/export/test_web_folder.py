"""A classifier in a browser tab: the same pixels, the same outputs of every layer, the arithmetic of units.

The browser tests need onnxruntime-web: the package as ``alexnet export RUN --format web`` left it in the cache, or
ALEXNET_ORT_WEB, a folder or FILE.tgz. They are skipped without it. With ALEXNET_WEB_FOLDER (an exported folder) and
ALEXNET_PAGE_IMAGE, ``-k screenshots`` writes docs/images/browser.png.
"""

import copy
import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import threading
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from alexnet import cli
from alexnet.bundle import Bundle, ReferenceSample
from alexnet.cuda_convnet import Data, Files, build
from alexnet.data.cache import Cache
from alexnet.data.decode import decode, encode_jpeg, encode_png
from alexnet.errors import BundleError
from alexnet.explain.saliency import occlusion
from alexnet.export import web_folder
from alexnet.export.classifier import Classifier
from alexnet.export.export import export_model, predict_samples
from alexnet.export.verify import verify
from alexnet.loader.augmentation import Normalization
from alexnet.models.alexnet_variants import AdaptiveAveragePool
from alexnet.models.comparisons import Block, TowerLinear
from alexnet.models.layers import (
    AveragePool,
    Convolution,
    Dropout,
    Flatten,
    LocallyConnected,
    LocalResponseNorm,
    MaxPool,
    SpatialNorm,
)
from alexnet.models.lenet import ScaledTanh, Subsampling, TableConvolution
from alexnet.models.network import Network
from alexnet.schema import checksum_of
from alexnet.system import cache_folder

CLASSES = ("cat_a", "<img src=x onerror=alert(1)>", "dog")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
TABLE = ((0, 9), (2, 3, 15), (1,), (8, 11))
DOCS = Path(__file__).parents[2] / "docs" / "images"


def every_kind() -> Network:
    """A two-tower network with a layer of every kind whose arithmetic the page shows; its outputs have a spread."""
    layers = [
        ("conv1", Convolution(3, 8, 5, stride=2)),  # the last windows stick out
        ("relu1", nn.ReLU(inplace=True)),
        ("norm1", LocalResponseNorm(towers=2, alpha=0.5)),
        ("pool1", MaxPool(3, 2)),
        ("conv2", Convolution(8, 16, 3, padding=1, groups=2)),
        ("bn2", nn.BatchNorm2d(16)),
        ("tanh2", nn.Tanh()),
        ("rnorm2", SpatialNorm(3, 0.5)),
        ("c3", TableConvolution(16, TABLE, 2)),
        ("squash3", ScaledTanh()),
        ("local4", LocallyConnected(4, 6, 4, 2)),
        ("s4", Subsampling(6)),
        ("pool4", AveragePool(2, 1)),
        ("flatten", Flatten(1)),
        ("fc6", TowerLinear(6, 200, 2)),
        ("relu6", nn.ReLU(inplace=True)),
        ("drop6", Dropout(0.5)),
        ("fc8", nn.Linear(200, 3)),
    ]
    network = Network(
        "tiny", layers, num_classes=3, in_channels=3, image_size=24, features="relu6", initial={}, towers=2
    ).eval()
    generator = torch.Generator().manual_seed(1)
    x = 60 * torch.randn(4, 3, 24, 24, generator=generator)
    with torch.no_grad():
        for layer in network.children():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.fill_(0.3)
            elif isinstance(layer, nn.Conv2d | nn.Linear | LocallyConnected):
                layer.weight.mul_(1 / layer(x).std())
            x = layer(x.clone())
        # Weights that their codes hold exactly
        network.get_submodule("conv2").weight.copy_(network.get_submodule("conv2").weight.half())
        first = network.get_submodule("conv1").weight
        first.copy_((first / first.abs().max() * 20).round() / 1000)
        fc6 = network.get_submodule("fc6").weight
        scale = fc6.abs().amax(1, keepdim=True) / 127
        fc6.copy_((fc6 / scale).round() * scale)
    return network


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    mean = torch.from_numpy(np.random.default_rng(3).uniform(90, 130, (27, 27, 3)).astype(np.float32))
    normalization = Normalization(mean, torch.ones(3), torch.eye(3), torch.tensor([60.0, 55.0, 50.0]))
    return Bundle(every_kind(), CLASSES, normalization, stored_size=27, fit="crop")


@pytest.fixture(scope="module")
def png() -> bytes:
    """A smooth image of odd size with its own colors."""
    small = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    return encode_png(np.asarray(Image.fromarray(small).resize((90, 61), Image.Resampling.BICUBIC)))


@pytest.fixture(scope="module")
def runtime() -> Path | None:
    cached = cache_folder() / "remote" / f"{web_folder.RUNTIME_SHA256}.shard"
    path = Path(os.environ["ALEXNET_ORT_WEB"]) if "ALEXNET_ORT_WEB" in os.environ else cached
    return path if path.exists() else None


@pytest.fixture(scope="module")
def folder(bundle, png, runtime, tmp_path_factory) -> Path:
    """The folder, with weights of every code; without onnxruntime-web its two files are empty."""
    patch, real = pytest.MonkeyPatch(), web_folder._coded
    precisions = {(16, 4, 3, 3): "fp16", (200, 3): "int8"}
    patch.setattr(web_folder, "CODED_FROM", 100)
    patch.setattr(web_folder, "_coded", lambda value, _: real(value, precisions.get(value.shape, "fp32")))
    if runtime is None:
        patch.setattr(web_folder, "runtime_files", lambda _: dict.fromkeys(web_folder.RUNTIME_FILES, b""))
    path = tmp_path_factory.mktemp("web") / "folder"
    row = Classifier(bundle).probabilities([png])[0].tolist()
    try:
        difference = web_folder.export_web(bundle, path, [ReferenceSample("0", png, row)], "int8", runtime)
    finally:
        patch.undo()
    assert difference < 1e-5  # the codes hold these weights exactly
    return path


def test_only_files_of_an_earlier_export_are_replaced(bundle, png, tmp_path, monkeypatch):
    monkeypatch.setattr(web_folder, "runtime_files", lambda _: dict.fromkeys(web_folder.RUNTIME_FILES, b""))
    monkeypatch.setattr(web_folder, "_model", lambda *_: (b"model", {}))
    monkeypatch.setattr(web_folder, "_compare", lambda *_: 0.0)
    samples = [ReferenceSample("0", png, [0.2, 0.3, 0.5])]
    for name in ("index.html", "metadata.json"):
        site = tmp_path / name
        site.mkdir()
        (site / name).write_text("{}")
        with pytest.raises(BundleError, match=f"holds {name}, which is not of an earlier export; move it away"):
            web_folder.export_web(bundle, site, samples)
        assert [(file.name, file.read_text()) for file in site.iterdir()] == [(name, "{}")]
    target = tmp_path / "new"
    for _ in range(2):
        web_folder.export_web(bundle, target, samples)
        (target / "own.txt").write_text("own")
    assert {file.name for file in target.iterdir()} == {*web_folder.FILES, "metadata.json", "own.txt"}


def test_the_metadata_describes_every_file_and_weight(folder, bundle):
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["checksum"] == checksum_of(metadata)
    assert {p.name for p in folder.iterdir()} == {*metadata["sha256"], "metadata.json"}
    body = gzip.decompress((folder / "model.onnx.gz").read_bytes())
    kinds = {}
    for name, parameter in bundle.network.named_parameters():
        entry = metadata["tensors"][name]
        kinds[name] = entry["kind"]
        value = read(body, entry)
        np.testing.assert_allclose(value, parameter.detach().numpy(), rtol=1e-6 if entry["kind"] == "int8" else 0)
    assert [kinds[f"{name}.weight"] for name in ("conv1", "conv2", "fc6", "fc8", "c3")] == [
        "codes",
        "float16",
        "int8",
        "float32",
        "list",
    ]
    assert [layer["op"] for layer in metadata["layers"]].count("block") == 0


def test_the_runtime_is_packed_once(folder, runtime):
    """A file server that packs nothing sends 3.7 MB of the runtime in place of 14.3."""
    if runtime is None:
        pytest.skip("no onnxruntime-web")
    packed = {name: (folder / name).read_bytes() for name in web_folder.RUNTIME_FILES}
    assert sum(map(len, packed.values())) < 4e6
    for name, (_, sha256) in web_folder.RUNTIME_FILES.items():
        data = gzip.decompress(packed[name]) if name.endswith(".gz") else packed[name]
        assert hashlib.sha256(data).hexdigest() == sha256


def read(body, entry):
    """The values of a parameter from the bytes of the model."""
    kind, shape = entry["kind"], entry["shape"]
    if kind == "list":
        return np.array(entry["list"], np.float32).reshape(shape)
    stored = {"float32": "<f4", "float16": "<f2", "int8": "i1", "codes": "u1"}[kind]
    data = np.frombuffer(body, stored, int(np.prod(shape)), entry["data"]).reshape(shape)
    if kind == "int8":
        scale = np.frombuffer(body, "<f4", shape[0], entry["values"])
        return data * scale.reshape(-1, *[1] * (len(shape) - 1))
    return np.frombuffer(body, "<f4", int(data.max()) + 1, entry["values"])[data] if kind == "codes" else data


def test_what_can_not_be_exported(saved_bundle, tmp_path, monkeypatch):
    (tmp_path / "dist").mkdir()
    for inner, _ in web_folder.RUNTIME_FILES.values():
        (tmp_path / inner).write_bytes(b"another version")
    with pytest.raises(BundleError, match=r"ort\.wasm\.bundle\.min\.mjs is not that of onnxruntime-web-1\.30\.0"):
        web_folder.runtime_files(tmp_path)
    (tmp_path / "file.tgz").write_bytes(b"no archive")
    with pytest.raises(BundleError, match="is not the npm package onnxruntime-web"):
        web_folder.runtime_files(tmp_path / "file.tgz")

    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("alexnet.data.cache._default", [Cache(tmp_path / "cache")])
    with pytest.raises(BundleError, match=r"cannot be downloaded \(Name or .*npm pack .*-web@.*--runtime FILE\.tgz"):
        web_folder.runtime_files()
    for options in ({"format": "web", "input": "decoded"}, {"runtime": tmp_path}):
        with pytest.raises(BundleError, match="--format web"):
            export_model(saved_bundle, tmp_path / "out", **options)


# In the browser


@pytest.fixture(scope="module")
def address(folder, runtime):
    """The folder on a plain file server."""
    if runtime is None:
        pytest.skip("no onnxruntime-web: run alexnet export RUN --format web once, or set ALEXNET_ORT_WEB")
    yield from serve(folder)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def serve(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def opened(browser, address, size=DESKTOP, ready=True):
    """The page, and what it must not do: requests to other hosts, errors, violations of its policy."""
    context = browser.new_context(viewport=size, color_scheme="dark" if size is PHONE else "light")
    page, odd = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("request", lambda request: odd.append(request.url) if not local(request.url, address) else None)
    page.on("pageerror", lambda error: odd.append(str(error)))
    page.on("console", lambda message: odd.append(message.text) if message.type in ("error", "warning") else None)
    page.goto(address)
    if ready:
        page.locator("#status", has_text="ready").wait_for()
    return page, odd


def local(url, address):
    return url.startswith((address, "blob:", "data:"))


def choose(page, data, name="image.png"):
    page.locator("#file").set_input_files({"name": name, "mimeType": "image/*", "buffer": data})
    page.locator("#status", has_text="Best prediction").wait_for()


def state(page):
    return page.evaluate(
        """() => { const { meta, images, outputs } = alexnet.state();
        return { images: [...images], outputs: [...outputs].map(([key, values]) => [key, [...values]]),
                 layers: meta.layers.map((layer) => layer.name) }; }"""
    )


def violations(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(v["id"], [node["target"] for node in v["nodes"]]) for v in found]


def test_pixels_layers_and_units_are_those_of_pytorch(browser, address, bundle, png):
    pytest.importorskip("playwright")
    page, odd = opened(browser, address)
    choose(page, png)
    found, classifier = state(page), Classifier(bundle)
    assert found["images"] == classifier.prepare(png).flatten().tolist()  # bit for bit
    outputs = dict(map(tuple, found["outputs"]))
    np.testing.assert_allclose(outputs["probabilities"], classifier.probabilities([png])[0], atol=1e-4)
    inputs = classifier.inputs([png])
    with torch.inference_mode():
        expected = bundle.network.outputs(inputs)
        map_ = occlusion(bundle.network, inputs, [int(np.argmax(outputs["probabilities"]))])
    np.testing.assert_allclose(outputs[-1], inputs.flatten(), atol=1e-5)
    for index, name in enumerate(found["layers"]):
        np.testing.assert_allclose(outputs[index], expected[name].flatten(), atol=1e-4, err_msg=name)

    units = largest_errors(page)
    for name, (largest, count) in zip(found["layers"], units, strict=True):
        assert largest < 1e-4 and count == expected[name].numel(), name
    softmax = "(c) => alexnet.arithmetic(alexnet.state().meta.layers.length, c, 0, 0).value"
    sums = page.evaluate(f"() => [0, 1, 2].map({softmax})")
    np.testing.assert_allclose(sums, outputs["probabilities"], atol=1e-6)
    fallen = page.evaluate("() => alexnet.occlude().then((map) => [...map])")
    np.testing.assert_allclose(fallen, map_.flatten(), atol=1e-6)
    assert np.ptp(fallen) > 1e-4
    assert odd == []


def largest_errors(page):
    """For each layer, how far the arithmetic of its units is from the network's values, and the number of units."""
    return page.evaluate(
        """() => { const { meta, outputs } = alexnet.state();
        return meta.layers.map(({ output: [channels, height = 1, width = 1] }, layer) => {
          let largest = 0, units = 0;
          for (let c = 0; c < channels; c++) for (let y = 0; y < height; y++) for (let x = 0; x < width; x++, units++) {
            const value = outputs.get(layer)[(c * height + y) * width + x];
            const error = Math.abs(alexnet.arithmetic(layer, c, y, x).value - value);
            largest = Math.max(largest, error / (1 + Math.abs(value)));
          }
          return [largest, units]; }); }"""
    )


def blocks() -> Network:
    """A network of residual blocks, with and without a convolution in the shortcut, and an inception module."""
    pytest.importorskip("torchvision.models")
    shortcut = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
    from torchvision.models.googlenet import Inception
    from torchvision.models.resnet import BasicBlock, Bottleneck

    layers = [
        ("stem", nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))),
        ("block1", Block(4, 6, 2, True)),
        ("block2", Block(6, 6, 1, False)),
        ("layer1_0", BasicBlock(6, 8, 2, shortcut)),
        ("layer1_1", Bottleneck(8, 2)),
        ("inception", Inception(8, 2, 3, 4, 2, 3, 3)),
        ("pool", AdaptiveAveragePool(1)),
        ("flatten", Flatten(1)),
        ("fc", nn.Linear(12, 3)),
    ]
    network = Network(
        "blocks", layers, num_classes=3, in_channels=3, image_size=24, features="flatten", initial={}
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(generator=generator)
                layer.weight.uniform_(0.5, 1.5, generator=generator)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
        network.get_submodule("stem.0").weight.div_(60)
    return network


def test_the_arithmetic_inside_of_blocks(browser, png, runtime, tmp_path):
    """Every convolution, batch norm and sum of residual blocks and inception modules."""
    pytest.importorskip("playwright")
    if runtime is None:
        pytest.skip("no onnxruntime-web")
    normalization = Normalization(torch.full((3,), 120.0), torch.ones(3), torch.eye(3), torch.tensor(1.0))
    bundle = Bundle(blocks(), CLASSES, normalization, stored_size=27, fit="crop")
    classifier = Classifier(bundle)
    sample = ReferenceSample("0", png, classifier.probabilities([png])[0].tolist())
    web_folder.export_web(bundle, tmp_path / "folder", [sample], "fp32", runtime)
    expected, inputs = {}, classifier.inputs([png])

    def keep(name):
        def hook(_layer, _inputs, output):
            expected.setdefault(name, output.clone())

        return hook

    for name, layer in bundle.network.named_modules():
        layer.register_forward_hook(keep(name))
    with torch.inference_mode():
        bundle.network(inputs)
    for address in serve(tmp_path / "folder"):
        page, odd = opened(browser, address)
        choose(page, png)
        found, units = state(page), largest_errors(page)
        outputs = dict(map(tuple, found["outputs"]))
        last = {name.partition(".")[0]: index for index, name in enumerate(found["layers"])}
        for index, name in enumerate(found["layers"]):
            layer = name.partition(".")[0]
            value = expected[layer] if index == last[layer] else expected.get(name)
            if value is not None and not name.rpartition(".")[2].startswith("relu"):
                np.testing.assert_allclose(outputs[index], value.flatten(), atol=1e-4, err_msg=name)
        for name, (largest, count) in zip(found["layers"], units, strict=True):
            assert largest < 1e-4 and count > 0, name
        assert {"block1.sum", "layer1_0.downsample.1", "layer1_1.conv3", "inception.concat"} <= set(found["layers"])
        page.locator("#layer").select_option(label="block1.sum (sum)")
        page.locator("#channel").fill("5")
        steps = page.locator("#steps li").all_inner_texts()
        assert steps[0].startswith("block1.bn2: ") and steps[1] == "+ a new channel of the shortcut: 0"
        assert odd == []


LAYERS = """
[data]
type=data
dataIdx=0
[target]
type=data
dataIdx=2
[c1a]
type=conv
inputs=data
channels=3
filters=16
filterSize=5
stride=2
padding=1
initW=0.02
partialSum=0
neuron=tanh[1.5,0.5]
gpu=0
[c1b]
type=conv
inputs=data
channels=3
filters=16
filterSize=5
stride=2
padding=1
initW=0.02
partialSum=0
neuron=softrelu
gpu=1
[n1a]
type=cmrnorm
inputs=c1a
channels=16
size=5
[n1b]
type=rnorm
inputs=c1b
channels=16
size=3
[sum]
type=eltsum
inputs=n1a,n1b
coeffs=2,-0.5
gpu=0
[most]
type=eltmax
inputs=n1a,sum
gpu=0
[p1]
type=pool
pool=maxabs
inputs=most
channels=16
sizeX=3
stride=2
start=-1
[p2]
type=pool
pool=avg
inputs=sum
channels=16
sizeX=3
stride=2
start=-1
[both]
type=concat
inputs=p1,p2
gpu=0
[c2]
type=conv
inputs=both,p1
channels=32,16
filters=16,32
groups=2,1
filterSize=3,1
padding=1,0
stride=1,1
initW=0.2,0.2
initB=0.3
partialSum=0
sharedBiases=0
neuron=abs
gpu=0
[l3]
type=local
inputs=c2
channels=32
filters=16
groups=2
randSparse=true
filterChannels=16
filterSize=3
stride=2
initW=0.2
neuron=brelu[2]
gpu=0
[h3]
type=hs
inputs=l3
keep=0.7
gpu=0
[f4]
type=fc
inputs=h3,p2
outputs=64
initW=0.1,0.1
neuron=square
gpu=0
[f5]
type=fc
inputs=f4
outputs=64
initW=0.1
initB=0.2
gpu=0
[f6]
type=fc
inputs=f5
outputs=64
initW=0.1
weightSource=f5
neuron=drelu[3]
gpu=0
[f7]
type=fc
inputs=f6
outputs=3
initW=0.1
neuron=logistic
gpu=0
[cost]
type=cost.crossent2
inputs=target,f7
gpu=0
"""


def layer_file():
    """A layer file with every layer whose arithmetic the page shows."""
    layers = ("c1a", "c1b", "c2", "l3", "f4", "f5", "f6", "f7")
    two = {"c2", "f4"}  # layers with two inputs
    parameters = "".join(
        f"[{name}]\nepsW={'1,1' if name in two else 1}\nepsB=1\nmomW={'0,0' if name in two else 0}\nmomB=0\n"
        for name in layers
    )
    parameters += "[n1a]\nscale=0.5\npow=0.75\n[n1b]\nscale=0.5\npow=0.75\n[h3]\nenable=1\n[cost]\ncoeff=1\n"
    network = build(Files("file", LAYERS, parameters), Data(24), generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 3 and len(parameter) == 32:  # biases of each position
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return network


@pytest.mark.slow
def test_the_arithmetic_of_a_layer_file(browser, png, runtime, tmp_path):
    """Several inputs, groups, random connections, shared weights, biases of each position, and all activations."""
    pytest.importorskip("playwright")
    if runtime is None:
        pytest.skip("no onnxruntime-web")
    normalization = Normalization(torch.full((3,), 120.0), torch.ones(3), torch.eye(3), torch.tensor(60.0))
    bundle = Bundle(layer_file(), CLASSES, normalization, stored_size=27, fit="crop")
    classifier = Classifier(bundle)
    row = classifier.probabilities([png])[0]
    assert np.ptp(row) > 0.01
    web_folder.export_web(bundle, tmp_path / "web", [ReferenceSample("0", png, row.tolist())], "fp32", runtime)
    with torch.inference_mode():
        expected = bundle.network.outputs(classifier.inputs([png]))
    for address in serve(tmp_path / "web"):
        page, odd = opened(browser, address)
        choose(page, png)
        found, units = state(page), largest_errors(page)
        outputs = dict(map(tuple, found["outputs"]))
        assert found["layers"][-1] == "scores" and {*found["layers"][:-1]} == {*expected} - {"f7_neuron"}
        for index, name in enumerate(found["layers"][:-1]):
            np.testing.assert_allclose(outputs[index], expected[name].flatten(), atol=1e-4, rtol=1e-4, err_msg=name)
        assert {
            name: largest for name, (largest, _) in zip(found["layers"], units, strict=True) if largest > 1e-4
        } == {}
        np.testing.assert_allclose(outputs["probabilities"], row, atol=1e-4)
        page.locator("#layer").select_option(label="c2 (conv 3×3 and 1×1, 2 groups, tower a)")
        assert page.locator("#terms tbody").inner_text().count("p1, channel") > 0
        assert page.locator("#filters canvas").count() == 2
        page.set_viewport_size(PHONE)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert odd == []


def test_a_jpeg_with_a_rotation(browser, address, bundle, png):
    """Decoders of JPEG differ by some gray levels; a wrong rotation or a wrong resize would differ by far more."""
    pytest.importorskip("playwright")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encode_jpeg(decode(png), 90))).save(buffer, "JPEG", quality=90, exif=exif)
    page, _ = opened(browser, address)
    choose(page, buffer.getvalue(), "image.jpg")
    found, classifier = state(page), Classifier(bundle)
    difference = np.abs(np.array(found["images"]) - classifier.prepare(buffer.getvalue()).flatten().astype(int))
    assert difference.max() <= 8 and difference.mean() < 1
    row = dict(map(tuple, found["outputs"]))["probabilities"]
    np.testing.assert_allclose(row, classifier.probabilities([buffer.getvalue()])[0], atol=0.02)


def test_the_page_of_a_phone_by_keyboard(browser, address, png, tmp_path):
    pytest.importorskip("playwright")
    (tmp_path / "image.png").write_bytes(png)
    page, odd = opened(browser, address, PHONE)
    assert violations(page) == []
    page.on("filechooser", lambda chooser: chooser.set_files(tmp_path / "image.png"))
    page.wait_for_timeout(500)  # until the browser hands its choosers over
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#result").wait_for()
    names = page.locator("#predictions").inner_text()
    assert "<img src=x onerror=alert(1)>" in names and "cat a" in names
    assert page.locator("img").count() == 0
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#overlay").wait_for()
    page.locator("#occlude:enabled").focus()
    assert page.locator("#occlusion-note").inner_text().endswith(" points at most.")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "layer"
    page.keyboard.press("ArrowDown")  # from conv1 to relu1
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")
    text = page.locator("#value").inner_text()
    assert text.startswith("relu1[tower a, channel 1, row 5, column 5] = ")
    steps = page.locator("#steps li").all_inner_texts()
    assert steps[0].startswith("sum of 75 products input × weight: ") and steps[1].startswith("+ bias: ")
    assert steps[2].startswith("ReLU: max(0, ")
    assert page.locator("#terms tbody tr").count() == 9  # eight products and the sum of the others
    canvases = page.locator("#maps canvas")
    assert [canvas.get_attribute("aria-label") for canvas in canvases.all()] == [
        "Feature maps, Tower a: channels 0 to 3",
        "Feature maps, Tower b: channels 4 to 7",
    ]
    canvases.nth(1).click(position={"x": 1, "y": 1})
    assert page.locator("#value").inner_text().startswith("relu1[tower b, channel 4, row 0, column 0] = ")
    assert page.locator("#filters canvas").count() == 2
    page.locator("summary").click()
    assert "conv2" in page.locator("#table").inner_text()
    lines = """cell => { const range = document.createRange(); range.selectNodeContents(cell);
        return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size; }"""
    counts = page.locator("#table td").evaluate_all(f"cells => cells.map({lines})")
    assert max(counts) == 1  # no word or number is broken; a wide table scrolls
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert violations(page) == []
    assert odd == []


def test_what_goes_wrong_is_one_clear_sentence(browser, address, folder, png, tmp_path):
    pytest.importorskip("playwright")
    page, _ = opened(browser, address)
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"<!doctype html>"})
    page.locator("#problem", has_text="This is not an image that the browser can read: a.png.").wait_for()
    choose(page, png)
    assert page.locator("#problem").inner_text() == ""
    page.route("**/model.onnx.gz", lambda route: route.fulfill(body=(folder / "model.onnx.gz").read_bytes() + b"x"))
    page.reload()
    page.locator("#problem", has_text="model.onnx.gz has changed: its SHA-256 is another one.").wait_for()
    page.route("**/model.onnx.gz", lambda route: route.fulfill(status=404))
    page.reload()
    page.locator("#problem", has_text="model.onnx.gz cannot be loaded; copy the whole folder").wait_for()
    page.unroute("**/model.onnx.gz")
    page.route("**/ort.wasm.gz", lambda route: route.fulfill(body=(folder / "ort.wasm.gz").read_bytes() + b"x"))
    page.reload()
    page.locator("#problem", has_text="ort.wasm.gz has changed: its SHA-256 is another one.").wait_for()


def test_verify_compares_the_folder_with_the_bundle(cifar, tmp_path, monkeypatch, capsys):
    saved, folder = cifar.save(tmp_path / "bundle"), tmp_path / "web"
    monkeypatch.setattr(web_folder, "runtime_files", lambda _: dict.fromkeys(web_folder.RUNTIME_FILES, b""))
    web_folder.export_web(cifar, folder, predict_samples(cifar), "fp16")
    assert cli.run(["verify", str(folder), "--against", str(saved), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["kind"], result["limit"]) == ("web", 0.01) and result["images"] > 3
    assert 0 < result["max_abs_diff"] < 0.01
    with pytest.raises(BundleError, match=r"has no reference images; .*give --against RUN"):
        verify(folder)
    other = dataclasses.replace(cifar, classes=cifar.classes[::-1], reference_samples=()).save(tmp_path / "order")
    with pytest.raises(BundleError, match="has its classes in another order"):
        verify(folder, other)
    network = copy.deepcopy(cifar.network)
    list(network.parameters())[-1].data[0] += 3
    other = dataclasses.replace(cifar, network=network, reference_samples=()).save(tmp_path / "weights")
    with pytest.raises(BundleError, match=r"differs by 0\.\d+ in a probability; must be at most 0\.01"):
        verify(folder, other)


@pytest.mark.parametrize("name", ["metadata.json", "model.onnx.gz", "page.js"])
def test_verify_names_the_file_of_the_folder_that_has_changed(bundle, folder, tmp_path, name):
    copied = Path(shutil.copytree(folder, tmp_path / "web"))
    data = (copied / name).read_bytes()
    for place in (0, len(data) // 2, len(data) - 3):
        (copied / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(BundleError, match="web is damaged: ") as caught:
            verify(copied, "nothing")
        assert name in str(caught.value) or name == "metadata.json"
    (copied / name).unlink()
    with pytest.raises(BundleError):
        verify(copied, "nothing")


def test_verify_reads_nothing_outside_of_the_folder_and_no_bomb(folder, tmp_path, monkeypatch):
    copied = Path(shutil.copytree(folder, tmp_path / "web"))
    metadata = json.loads((copied / "metadata.json").read_text())

    def sealed(**changes):
        changed = metadata | changes
        (copied / "metadata.json").write_text(json.dumps(changed | {"checksum": checksum_of(changed)}))

    for name in ("../secret", "/dev/zero", "page.js/../page.js"):
        sealed(sha256=metadata["sha256"] | {name: "0" * 64})
        with pytest.raises(BundleError, match="lists other files than "):
            verify(copied, "nothing")
    sealed(classes=["a"])
    with pytest.raises(BundleError, match="1 classes: at least 2"):
        verify(copied, "nothing")
    sealed()
    monkeypatch.setattr(web_folder, "MODEL_BYTES", 1000)
    with pytest.raises(BundleError, match="unpacks to more than 1,000 bytes"):
        verify(copied, "nothing")
    (copied / "page.js").unlink()
    (copied / "page.js").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"page\.js is a link out of the folder"):
        verify(copied, "nothing")


def test_the_page_has_no_other_host_and_no_inline_code():
    for path in web_folder.PAGE.iterdir():
        text = path.read_text()
        assert "innerHTML" not in text and "style=" not in text and "onclick" not in text
        assert "https://" not in text and text.count("http://") == text.count("http://localhost:8000") + text.count(
            "http:// of"
        )


@pytest.mark.skipif("ALEXNET_WEB_FOLDER" not in os.environ, reason="ALEXNET_WEB_FOLDER and ALEXNET_PAGE_IMAGE not set")
def test_screenshots_for_the_docs(browser):
    for address in serve(Path(os.environ["ALEXNET_WEB_FOLDER"])):
        page, _ = opened(browser, address)
        choose(page, Path(os.environ["ALEXNET_PAGE_IMAGE"]).read_bytes())
        page.locator("#occlude").click()
        page.locator("#overlay").wait_for()
        page.locator("#layer").select_option(label="relu1 (ReLU)")
        page.locator("#maps canvas").first.click(position={"x": 60, "y": 60})
        page.screenshot(path=DOCS / "browser.png", full_page=True)
