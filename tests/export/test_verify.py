"""verify says what differs: a byte, the classes, their order, the channels, the resize, or drift."""

import dataclasses
import email.parser
import json
import re
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from alexnet import cli
from alexnet.data import decode
from alexnet.errors import BundleError
from alexnet.export.classifier import Classifier
from alexnet.export.exported_model import ExportedModel, checksummed
from alexnet.export.verify import verify


def test_what_is_right(saved_bundle, onnx_file):
    bundle = verify(saved_bundle)
    assert (bundle.kind, bundle.images) == ("bundle", 2)
    assert bundle.max_abs_diff <= 1e-6
    alone, against = verify(onnx_file), verify(onnx_file, saved_bundle)
    assert (alone.kind, alone.images, against.images) == ("onnx", 6, 6)
    assert max(alone.max_abs_diff, against.max_abs_diff) <= 1e-4
    assert verify(saved_bundle, onnx_file).max_abs_diff <= 1e-4  # the other way round


def failure(*words, **options) -> str:
    with pytest.raises(BundleError) as caught:
        verify(*words, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_changed_byte(saved_bundle, onnx_file, tmp_path):
    shutil.copytree(saved_bundle, tmp_path / "bundle")
    for name in ("model.safetensors", "reference/00.png", "reference/expected.json"):
        path = tmp_path / "bundle" / name
        data = path.read_bytes()
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        assert f"{path} has changed: SHA-256" in failure(tmp_path / "bundle")
        path.write_bytes(data)
    data = onnx_file.read_bytes()
    for at in np.linspace(0, len(data) - 1, 40).astype(int):
        (tmp_path / "net.onnx").write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert re.search(r"net\.onnx has (changed: SHA-256|no SHA-256)", failure(tmp_path / "net.onnx"))


def test_drift_of_a_bundle_that_was_sealed_again(cifar, tmp_path):
    import copy

    network = copy.deepcopy(cifar.network)
    with torch.no_grad():
        network.fc10.bias[0] += 0.5
    dataclasses.replace(cifar, network=network).save(tmp_path / "bundle")
    text = failure(tmp_path / "bundle")
    assert re.search(
        r"drift \(other weights, .*\); 0\d differs by 0\.\d+ in a probability; must be at most 0\.0001", text
    )


def test_drift_just_over_the_limit(cifar, tmp_path):
    for by, good in ((0.5e-4, True), (2e-4, False)):
        reference = dataclasses.replace(
            cifar.reference_samples[0], probabilities=[p + by for p in cifar.reference_samples[0].probabilities]
        )
        dataclasses.replace(cifar, reference_samples=[reference]).save(tmp_path / "bundle")
        assert verify(tmp_path / "bundle").max_abs_diff > 0.4e-4 if good else "drift" in failure(tmp_path / "bundle")


def test_classes_in_another_order_are_found_by_their_probabilities(cifar, tmp_path):
    names = list(cifar.classes)
    names[2], names[7] = names[7], names[2]
    wrong = dataclasses.replace(cifar, classes=tuple(names))
    wrong.save(tmp_path / "bundle")  # its own reference images have no names
    text = failure(tmp_path / "bundle", cifar.save(tmp_path / "original"))
    assert "has its classes in another order: number 2 is 'class 7'; must be 'class 2'" in text
    order = [1, 0, *range(2, 10)]
    reference = [
        dataclasses.replace(g, probabilities=[g.probabilities[k] for k in order]) for g in cifar.reference_samples
    ]
    dataclasses.replace(cifar, reference_samples=reference).save(tmp_path / "bundle")
    assert "classes in another order ('class 0' has the probability of 'class 1')" in failure(tmp_path / "bundle")
    fewer = dataclasses.replace(cifar, classes=(*"abcdefghi", "class 9"))
    text = failure(fewer.save(tmp_path / "fewer"), tmp_path / "original")
    assert "has other classes: it lacks class 0, class 1" in text
    assert "and has a, b, c, d, e besides" in text


def test_no_reference_images(cifar, tmp_path):
    dataclasses.replace(cifar, reference_samples=()).save(tmp_path / "bundle")
    assert "has no reference images; must be at least one; give --against RUN" in failure(tmp_path / "bundle")


# Servers


class Double:
    """A server of a few lines on a real socket; ``see`` changes the pixels as a wrong deployment would."""

    def __init__(self, bundle, see: Callable = lambda pixels: pixels, classes=None, key="", reference=True, odd=None):
        classifier = Classifier(bundle)
        self.asked: list[str] = []
        double, names = self, list(classes or bundle.classes)

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                about = {"classes": names}
                if reference:
                    about["reference_samples"] = [
                        dict(zip(("name", "png", "probabilities"), (g.name, g64(g.png), g.probabilities), strict=True))
                        for g in bundle.reference_samples
                    ]
                self.answer(about)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                (part,) = email.parser.BytesParser().parsebytes(head + body).get_payload()
                assert part.get_param("name", header="content-disposition") == "file"
                image = see(decode.decode(part.get_payload(decode=True)))
                row = classifier.probabilities([np.ascontiguousarray(image)])[0]
                top = int(re.search(r"top=(\d+)", self.path)[1])
                best = np.argsort(-row)[:top]
                predictions = [{"label": names[k], "score": float(row[k])} for k in best]
                self.answer({"predictions": [{"filename": part.get_filename(), "top_k": predictions}]})

            def answer(self, value):
                double.asked.append(self.path)
                status = 200 if not key or self.headers["Authorization"] == f"Bearer {key}" else 401
                text = (odd if odd is not None else json.dumps(value)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def g64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_a_server_that_is_right(cifar, saved_bundle, onnx_file):
    with Double(cifar, key="secret") as double:
        assert verify(double.url, key="secret").images == 2
        found = verify(double.url + "/", saved_bundle, key="secret")
        assert (found.kind, found.images) == ("server", 6)
        assert verify(double.url, onnx_file, key="secret").max_abs_diff <= 2e-4
        assert "/v1/model" in double.asked and "/v1/predict?top=10" in double.asked
        assert "returns 401: it requires a key; give --key-file" in failure(double.url)
    with Double(cifar, reference=False) as double:
        assert "has no reference images" in failure(double.url)
        assert verify(double.url, saved_bundle).images == 6


def shrunk(image):
    """Every so-many-th pixel, as resizing without antialiasing does."""
    side = min(image.shape[:2])
    rows, columns = (np.arange(32) * side // 32 + (n - side) // 2 for n in image.shape[:2])
    return image[rows][:, columns]


@pytest.mark.parametrize(
    ("see", "text"),
    [
        (lambda p: p[..., ::-1], "swapped channels (it reads BGR in place of RGB)"),
        (shrunk, "another resize or crop (images in stored size are predicted correctly)"),
        (lambda p: shrunk(p)[..., ::-1], "swapped channels and another resize"),
        (lambda p: 255 - p, "drift (other weights, another mean or other arithmetic)"),
    ],
)
def test_a_server_that_sees_otherwise(cifar, saved_bundle, see, text):
    with Double(cifar, see) as double:
        assert text in failure(double.url, saved_bundle)


def test_a_server_that_names_its_classes_otherwise(cifar, saved_bundle):
    names = [*cifar.classes[1:], cifar.classes[0]]
    with Double(cifar, classes=names) as double:
        assert "has its classes in another order: number 0 is 'class 1'" in failure(double.url, saved_bundle)
        assert verify(double.url).images == 2  # its own reference images cannot know better


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        ("<html>", "/v1/model returns no JSON"),
        ("[]", "/v1/model returns no JSON object; must be an alexnet server; check the address"),
        ('{"classes": []}', "/v1/model names no classes"),
        (
            '{"classes": ["a", "b"], "reference_samples": [{"name": 1}]}',
            "has an invalid reference sample: Expected `str`",
        ),
        (
            '{"classes": ["a", "b"], "reference_samples": [{"name": "x", "png": "", "probabilities": [1]}]}',
            "1 probabilities of 2",
        ),
        ('{"classes": ["a", "b\\u001b"]}', "/v1/model names no classes"),
        ("[" * 200_000 + "]" * 200_000, "/v1/model returns no JSON"),
        ('{"classes": ["a", "b"]}', "other classes"),
    ],
)
def test_what_is_no_server_of_ours(cifar, saved_bundle, odd, text):
    with Double(cifar, odd=odd) as double:
        assert text in failure(double.url, saved_bundle)


def test_nobody_there(saved_bundle):
    assert "does not respond: " in failure("http://127.0.0.1:9", saved_bundle)
    for url in ("http://", "http://[", "https:///v1", "http://127.0.0.1:123456"):
        assert "is not the URL of a server; must be http://HOST:PORT" in failure(url, saved_bundle)
    assert "not ASCII" in failure("http://127.0.0.1:9", saved_bundle, key="ключ")
    assert "there is no nowhere" in failure("nowhere")
    assert "there is no file nowhere.onnx" in failure("nowhere.onnx")


def test_fuzzed_files_end_in_the_house_s_error(onnx_file, saved_bundle, tmp_path):
    rng = np.random.default_rng(0)
    data = onnx_file.read_bytes()
    for i in range(60):
        wreck = bytearray(data[: rng.integers(0, len(data))] if i % 3 else data)
        for at in rng.integers(0, max(1, len(wreck)), 1 + i % 7):
            wreck[at : at + 1] = bytes([rng.integers(0, 256)])
        if bytes(wreck) == data:
            continue
        (tmp_path / "net.onnx").write_bytes(wreck)
        failure(tmp_path / "net.onnx")
    names = [p.relative_to(saved_bundle) for p in saved_bundle.rglob("*") if p.is_file() and p.name != "config.json"]
    for i in range(30):
        shutil.copytree(saved_bundle, tmp_path / "bundle", dirs_exist_ok=True)
        path = tmp_path / "bundle" / names[i % len(names)]
        path.write_bytes(path.read_bytes()[: rng.integers(0, path.stat().st_size)])
        assert "has changed" in failure(tmp_path / "bundle")


def test_wrong_manifest_under_a_valid_checksum(onnx_file, tmp_path):
    file = ExportedModel.load(onnx_file)
    data = onnx_file.read_bytes()
    body = data[: len(data) - len(checksummed(b"", file.manifest, ".onnx"))]
    reference = tuple(
        dataclasses.replace(g, png=b"\x89PNG nothing of the kind") for g in file.manifest.reference_samples
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(checksummed(body, dataclasses.replace(file.manifest, reference_samples=reference), ".onnx"))
    with pytest.raises(Exception, match="cannot be decoded") as caught:
        verify(path)
    assert type(caught.value).__name__ == "ImageError"


# Command line


def test_exit_status(saved_bundle, cifar, onnx_file, tmp_path, capsys):
    assert cli.run(["verify", str(saved_bundle)]) == 0
    assert "equals the reference: 2 images" in capsys.readouterr().out
    assert cli.run(["verify", str(onnx_file), "--against", str(saved_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (tmp_path / "net.onnx").write_bytes(onnx_file.read_bytes()[:-1])
    assert cli.run(["verify", str(tmp_path / "net.onnx"), "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["ok"] is False
    assert "has no SHA-256 at its end" in output.err
    assert cli.run(["verify", str(saved_bundle), "--key-file", str(tmp_path / "none")]) == 2
    assert cli.run(["verify"]) == 2
    (tmp_path / "key").write_text("secret\n")
    with Double(cifar, key="secret") as double:
        assert cli.run(["verify", double.url, "--key-file", str(tmp_path / "key")]) == 0
