"""What is asked and what is answered, over a real socket, beside the classifier itself."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from alexnet.data import decode
from alexnet.errors import BundleError
from alexnet.export.classifier import Classifier
from alexnet.export.export import odd_images
from alexnet.export.verify import verify
from alexnet.serve.engine import Engine

from .conftest import form, threaded


@pytest.fixture(scope="module")
def classifier(cifar):
    return Classifier(cifar)


@pytest.fixture(scope="module")
def images(cifar):
    """Reference ones and odd ones, as PNG."""
    return [g.png for g in cifar.reference_samples] + [decode.encode_png(p) for p in odd_images(cifar)]


def row(response, classes):
    found = {g["label"]: g["score"] for g in response["top_k"]}
    return np.array([found[name] for name in classes])


def test_one_image_as_the_body_or_in_a_form(server, classifier, png):
    expected = classifier.predict(png, top=3)[0]
    for response in (
        server.post(png, query="?top=3"),
        server.files(("a.png", png), query="?top=3"),
        server.post(png, "application/octet-stream", "?top=3"),
    ):
        assert response.status == 200 and response.headers["Content-Type"] == "application/json"
        (found,) = response.json["predictions"]
        assert [g["label"] for g in found["top_k"]] == [name for name, _ in expected.top_k]
        np.testing.assert_allclose([g["score"] for g in found["top_k"]], [p for _, p in expected.top_k], atol=1e-6)
        assert "abstained" not in found and "embedding" not in found and "saliency" not in found
    assert len(server.post(png).json["predictions"][0]["top_k"]) == 5


def test_many_images_in_their_order(server, classifier, images):
    response = server.files(*((f"{i}.png", data) for i, data in enumerate(images)), query="?top=10").json
    assert [found["filename"] for found in response["predictions"]] == [f"{i}.png" for i in range(len(images))]
    found = np.stack([row(one, classifier.classes) for one in response["predictions"]])
    np.testing.assert_allclose(found, classifier.probabilities(images), atol=1e-6)
    assert response["model_sha256"] == server.get("/v1/model").json["model_sha256"]


def test_verify_accepts_a_server_with_the_expected_predictions(server, saved_bundle, onnx_file):
    with threaded(saved_bundle, share_images=True) as sharing:
        found = verify(sharing.url)
        assert found.kind == "server" and found.images == 2 and found.max_abs_diff <= 1e-6
    against = verify(server.url, saved_bundle)
    assert against.images == 6 and against.max_abs_diff <= 1e-6
    assert verify(server.url, onnx_file).max_abs_diff <= 2e-4


def test_an_exported_file_is_served(onnx_file, saved_bundle, png):
    with threaded(onnx_file) as server:
        assert verify(server.url, saved_bundle).max_abs_diff <= 1e-4
        about = server.get("/v1/model?reference_samples=false").json
        assert about["capabilities"] == [] and "reference_samples" not in about
        response = server.post(png, query="?embedding=true")
        assert response.status == 422 and response.json["error"].endswith("This server has only predictions")
        assert server.get("/v1/filters.png").status == 404


def test_bf16_scores_are_close_to_fp32(saved_bundle, onnx_file, classifier, png):
    with threaded(saved_bundle, precision="bf16") as server:
        found = server.post(png).json["predictions"][0]["top_k"]
        exact = dict(classifier.predict(png, top=len(found))[0].top_k)
        assert all(abs(prediction["score"] - exact[prediction["label"]]) < 0.03 for prediction in found)
        assert server.service.engine.model.precision == "bf16"
    with pytest.raises(BundleError, match="--precision bf16 of an exported file"):
        Engine.open(onnx_file, "cpu", precision="bf16")


def test_64_at_once_are_answered_as_one_by_one(server, classifier, digits):
    """Not to the bit: how many images lie in a batch decides in which order a product's terms are added."""
    stored = digits.split("test").gather(np.arange(50))
    sent = [decode.encode_png(p) for p in stored] + [decode.encode_png(255 - p) for p in stored[:14]]
    alone = [row(server.post(data, query="?top=10").json["predictions"][0], classifier.classes) for data in sent]
    before = server.counted("alexnet_batch_images_count")
    with ThreadPoolExecutor(64) as pool:
        responses = list(pool.map(lambda data: server.post(data, query="?top=10"), sent))
    assert [response.status for response in responses] == [200] * 64
    assert server.counted("alexnet_batch_images_count") - before < 64  # some went through the network together
    together = [row(response.json["predictions"][0], classifier.classes) for response in responses]
    np.testing.assert_allclose(np.stack(together), np.stack(alone), atol=1e-6, rtol=0)
    np.testing.assert_allclose(np.stack(alone), classifier.probabilities(sent), atol=1e-6, rtol=0)


def test_abstention(server, saved_bundle, png):
    best = server.post(png).json["predictions"][0]["top_k"][0]["score"]
    for threshold, unknown in ((best + 1e-3, True), (best, False), (0, False)):
        response = server.post(png, query=f"?confidence_threshold={threshold}").json["predictions"][0]
        assert response["abstained"] is unknown and len(response["top_k"]) == 5
    with threaded(saved_bundle, confidence_threshold=min(1.0, best + 1e-3), top=2) as strict:
        response = strict.post(png).json["predictions"][0]
        assert response["abstained"] is True and len(response["top_k"]) == 2
        assert strict.post(png, query="?confidence_threshold=0").json["predictions"][0]["abstained"] is False
        assert strict.get("/v1/model").json["confidence_threshold"] == best + 1e-3


def test_embeddings(server, classifier, images):
    response = server.files(*(("x", data) for data in images), query="?embedding=true").json
    found = np.array([one["embedding"] for one in response["predictions"]])
    np.testing.assert_allclose(found, classifier.embed(images), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", ["grad_cam", "gradient"])
def test_saliency_lies_over_the_image(server, classifier, cifar, method):
    from alexnet.explain import saliency

    wide = decode.encode_png(odd_images(cifar)[0])  # 33 × 101
    found = server.post(wide, query=f"?saliency={method}").json["predictions"][0]["saliency"]
    kind, _, text = found["image"].partition(",")
    assert kind == "data:image/png;base64" and found["method"] == method
    layer = rgba(base64.b64decode(text))
    how = saliency.grad_cam if method == "grad_cam" else saliency.data_gradient
    best = int(classifier.probabilities(wide)[0].argmax())
    map = how(classifier.network, classifier.inputs([wide]), [best])[0].double().numpy()
    top = np.percentile(map, 99)
    expected = 190 * (1 - np.minimum(map / top, 1))
    assert layer.shape == (24, 24, 4) and not layer[..., :3].any()
    np.testing.assert_allclose(layer[..., 3], expected, atol=1)
    assert layer[..., 3].min() == 0 and layer[..., 3].max() > 100
    left, top, width, height = found["box_xywh_normalized"]  # 24 of 32 stored pixels, which show the middle 33 × 33
    np.testing.assert_allclose(
        [left * 101, top * 33, width * 101, height * 33], [50.5 - 12.375, 4.125, 24.75, 24.75], atol=1e-6
    )


def rgba(data: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.array(Image.open(io.BytesIO(data)))


def test_what_is_asked_wrongly(server, png):
    for query, words in (
        ("?top=0", "parameter top: "),
        ("?top=x", "parameter top: "),
        ("?confidence_threshold=2", "parameter confidence_threshold: "),
        ("?saliency=magic", "parameter saliency: "),
        ("?neighbors=3", "neighbors is not available. This server has "),
    ):
        response = server.post(png, query=query)
        assert response.status == 422 and response.json["error"].startswith(words), response.body
        assert response.json["request_id"] == response.headers["X-Request-ID"]
    for query, words in (
        ("?tpo=3", "unknown query parameter 'tpo'. Did you mean 'top'?"),
        ("?Top=3", "Did you mean 'top'?"),
        ("?top=3&x%0a=1", "unknown query parameter 'x\\x0a'"),
        ("?top=3&top=4", "'top' is there more than once"),
    ):
        response = server.post(png, query=query)
        assert response.status == 422 and words in response.json["error"], response.body
    for path in ("/healthz", "/readyz", "/metrics", "/v1/model", "/v1/filters.png"):
        assert server.get(f"{path}?reference=false").status == 422
    assert server.get("/v1/predict").status == 405
    assert server.get("/v1/predict").headers["Allow"] == "POST"
    assert server.get("/nowhere").json["error"] == "Not Found"
    assert server.post(png, query="?top=100000").status == 200  # more than there are: all


def test_the_model_tells_what_it_is(server, cifar, saved_bundle):
    about = server.get("/v1/model").json
    assert about["classes"] == list(cifar.classes) and about["name"] == "cifar_18pct"
    assert about["preprocessing"] == {"stored_size": 32, "fit": "crop", "image_size": 24}
    assert about["capabilities"] == ["embedding", "saliency=grad_cam", "saliency=gradient"]
    assert "reference_samples" not in about  # images of the data set: only on request of who runs the server
    with threaded(saved_bundle, share_images=True) as sharing:
        samples = sharing.get("/v1/model").json["reference_samples"]
        assert [base64.b64decode(g["png"]) for g in samples] == [g.png for g in cifar.reference_samples]
        assert "reference_samples" not in sharing.get("/v1/model?reference_samples=false").json
    import hashlib

    assert about["model_sha256"] == hashlib.sha256((saved_bundle / "config.json").read_bytes()).hexdigest()


def test_health_metrics_and_headers(server, png):
    assert server.get("/healthz").json == {"status": "alive"}
    assert server.get("/readyz").json == {"status": "ready"}
    before = server.counted('alexnet_images_total{outcome="answered"}')
    server.files(("a", png), ("b", png))
    assert server.counted('alexnet_images_total{outcome="answered"}') == before + 2
    assert server.counted('alexnet_requests_total{route="/v1/predict",status="200"}') >= 1
    assert server.counted("alexnet_ready") == 1
    response = server.get("/readyz", X_Request_ID="my.id-1")
    assert response.headers["X-Request-ID"] == "my.id-1"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    for odd in ("a b", "x" * 65, "<script>", ""):
        assert server.get("/readyz", X_Request_ID=odd).headers["X-Request-ID"] != odd


def test_the_description_has_examples(server):
    described = server.get("/openapi.json").json
    assert set(described["paths"]) == {"/healthz", "/readyz", "/metrics", "/v1/model", "/v1/filters.png", "/v1/predict"}
    predict = described["paths"]["/v1/predict"]["post"]
    assert set(predict["requestBody"]["content"]) >= {"multipart/form-data", "image/jpeg"}
    assert {"200", "400", "401", "408", "413", "415", "422", "503"} <= set(predict["responses"])
    for name in ("Prediction", "Predictions", "Failure", "ErrorResponse", "NoUsableImage"):
        assert described["components"]["schemas"][name]["examples"]
    assert "cdn" not in json.dumps(described) and server.get("/docs").status == 404


def test_neighbors(cifar, digits, png, tmp_path):
    import dataclasses

    from alexnet.bundle import weights_sha256
    from alexnet.explain.neighbors import FILE, Neighbors

    named = dataclasses.replace(cifar, classes=tuple(digits.classes))
    named.save(tmp_path / "bundle")
    index = Neighbors.build(tmp_path / FILE, named, digits, weights_sha256(tmp_path))
    with threaded(tmp_path, share_images=True) as server:
        assert "neighbors" in server.get("/v1/model").json["capabilities"]
        found = server.post(png, query="?neighbors=3").json["predictions"][0]
        assert "embedding" not in found
        distances, rows = index.nearest(Classifier(named).embed(png), 3)
        assert [one["label"] for one in found["neighbors"]] == [index.label(k) for k in rows[0]]
        np.testing.assert_allclose([one["distance"] for one in found["neighbors"]], distances[0], rtol=1e-4)
        data = base64.b64decode(found["neighbors"][0]["image"].partition(",")[2])
        np.testing.assert_array_equal(decode.decode(data), index.thumbnail(int(rows[0, 0])))
    with threaded(tmp_path) as private:
        assert private.post(png, query="?neighbors=3").status == 422
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    with threaded(tmp_path) as server:  # damaged: it does without, and says so in the log
        assert "neighbors" not in server.get("/v1/model").json["capabilities"]
        assert "is damaged" in server.service.engine.explainer.index_error


def test_the_filters_are_those_that_are_drawn(server, classifier):
    from alexnet.plots.filters import shades

    drawn = decode.decode(server.get("/v1/filters.png").body)
    cells = shades(classifier.network.conv1.weight.detach().numpy())  # [32, 5, 5, 3]
    rows, columns = (n // 6 for n in (drawn.shape[0] + 1, drawn.shape[1] + 1))
    assert rows * columns >= len(cells) == 32
    for k, cell in enumerate(cells):
        top, left = 6 * (k // columns), 6 * (k % columns)
        np.testing.assert_array_equal(drawn[top : top + 5, left : left + 5], cell)


def test_one_field_many_times_and_no_other(server, png):
    body, kind = form(("a", png), field="image")
    response = server.post(body, kind)
    assert response.status == 422 and "must be only 'file'" in response.json["error"]
