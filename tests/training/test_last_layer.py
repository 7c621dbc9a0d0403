"""The fitted last layer: against scikit-learn's logistic regression, on several networks, and in whole runs."""

import numpy as np
import pytest
import torch
from test_finetune import SMALL, few

from alexnet import api
from alexnet.bundle import Bundle
from alexnet.data.prepare import prepare
from alexnet.errors import RecipeError
from alexnet.evaluation.evaluate import inputs_of, predict_split
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.recipe import get_recipe
from alexnet.training import finetune, last_layer
from alexnet.training.last_layer import LinearClassifier, choose, fit
from alexnet.weights.matching import last_layer as name_of_last


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())


def clouds(count: int, classes: int = 3, size: int = 20, noise: float = 3.0, seed: int = 0):
    """Features in a cloud per class, float32 [N, D], and labels [N]."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(1).normal(size=(classes, size))
    labels = np.arange(count) % classes
    x = centers[labels] + noise * random.normal(size=(count, size))
    return (x / np.sqrt((x**2).sum(1).mean())).astype(np.float32), labels


@pytest.mark.parametrize("penalty", [1e-2, 1e-3])
@pytest.mark.parametrize("balanced", [False, True])
def test_it_is_logistic_regression(penalty, balanced):
    from sklearn.linear_model import LogisticRegression

    x, labels = clouds(200)
    x, labels = x[30:], np.where(labels == 0, 1, labels)[30:]  # classes of different sizes, and class 0 without images
    start = LinearClassifier(np.zeros((3, 20)), np.zeros(3))
    fitted = start
    for _ in range(10):
        fitted = fit(x, labels, fitted, penalty, balanced=balanced)
    # scikit-learn has one vector w for two classes, which costs w²; here there are two, ± w/2, which cost half of it
    expected = LogisticRegression(
        C=2 / (penalty * len(x)), class_weight="balanced" if balanced else None, tol=1e-10, max_iter=10_000
    ).fit(x.astype(np.float64), labels)
    logits = fitted.logits(x)
    assert np.abs(logits[:, 2] - logits[:, 1] - expected.decision_function(x)).max() < 0.05
    assert (logits[:, 0] < logits[:, 1:].min(1) - 4).all()  # the class without images


def test_the_loss_has_the_slope_that_it_says():
    x, labels = clouds(50)
    before = fit(x, labels, LinearClassifier(np.zeros((3, 20)), np.zeros(3)), 1e-3)

    def penalized(classifier: LinearClassifier) -> float:
        return classifier.loss(x, labels) + 1e-3 / 2 * float((classifier.weight**2).sum())

    for k, d in ((0, 0), (1, 7), (2, 19)):
        for step in (-0.05, 0.05):
            weight = before.weight.copy()
            weight[k, d] += step
            assert penalized(LinearClassifier(weight, before.bias)) > penalized(before) - 1e-6


def test_validation_images_choose_the_penalty():
    x, labels = clouds(60, size=200, noise=6)
    v, validation_labels = clouds(300, size=200, noise=6, seed=5)
    chosen = choose(x, labels, v, validation_labels, 3)
    losses, fitted = [], LinearClassifier(np.zeros((3, 200)), np.zeros(3))
    for penalty in last_layer.PENALTIES:
        fitted = fit(x, labels, fitted, penalty)
        losses.append(fitted.loss(v, validation_labels))
    assert chosen.loss(v, validation_labels) == min(losses) < losses[-1]
    alone = choose(x, labels, v[:0], validation_labels[:0], 3)
    assert alone.loss(x, labels) < np.log(3)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {n: prepare(few(n, 200), folder / str(n), size=32, validation=0.2, test=0.2) for n in (4, 6)}


@pytest.mark.parametrize(
    ("name", "image_size"), [("cifar_18pct", 32), ("alexnet_small", 24), ("alexnet_owt", 64), ("resnet18", 64)]
)
def test_every_network_gets_the_layer_that_was_fitted_to_its_features(name, image_size, stores):
    store = stores[6]
    network = create_model(name, num_classes=6, image_size=image_size, generator=torch.Generator().manual_seed(0))
    network.train()
    normalization = Normalization(torch.full((3,), 30.0), torch.ones(3), torch.eye(3), torch.tensor(50.0))
    done = []
    fitted = last_layer.fit_last_layer(
        network, store, normalization, SMALL, lambda count, total: done.append((count, total))
    )
    assert network.training
    name = name_of_last(network)
    assert set(fitted) == {f"{name}.weight", f"{name}.bias"}
    total = len(store.split("train")) + len(store.split("validation"))
    assert done[-1] == (total, total)
    network.load_state_dict(fitted, strict=False)
    network.eval()
    layer = network.get_classifier()
    layer_inputs = []
    layer.register_forward_pre_hook(lambda module, args: layer_inputs.append(args[0].detach().numpy().copy()))
    split = store.split("train")
    with torch.no_grad():
        logits = network(inputs_of(network, split.gather(np.arange(len(split))), normalization)).numpy()
    expected = layer_inputs[0] @ fitted[f"{name}.weight"].numpy().T + fitted[f"{name}.bias"].numpy()
    assert np.allclose(logits, expected, atol=1e-3)
    assert (logits.argmax(1) == split.labels).mean() > 0.8  # random features of digits tell most of them apart


@pytest.fixture(scope="module")
def source(stores, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "TRAINING_PLOTS", ())
        api.train(stores[4].path, SMALL.replace(epochs=3), folder, device="cpu")
    return folder


def test_a_run_begins_with_it(source, stores, tmp_path):
    """With a learning rate of nearly 0 the bundle has the layer that was fitted, in the moving average too."""
    store = stores[6]
    recipe = SMALL.replace(lr=1e-12, fit_last_layer=True, ema_decay=0.9, select_weights="last")
    result = api.train(store.path, recipe, tmp_path / "fitted", init_from=source, device="cpu")
    drawn = api.train(store.path, recipe.replace(fit_last_layer=False), tmp_path / "no", init_from=source, device="cpu")
    assert result.scores["validation"].loss < drawn.scores["validation"].loss - 0.3
    bundle, start = Bundle.load(result.bundle), finetune.from_bundle(source)
    fitted = last_layer.fit_last_layer(start.network, store, bundle.normalization, recipe)
    weights = bundle.network.state_dict()
    for name, value in fitted.items():
        assert torch.allclose(weights[name], value, atol=1e-6), name
    predictions = predict_split(
        bundle.network, store.split("validation"), bundle.normalization, image_size=32, channels=3
    )
    assert predictions.scores().loss == pytest.approx(result.scores["validation"].loss, abs=1e-5)


def test_what_has_its_classes_is_left_as_it_is(source, stores, tmp_path):
    recipe = SMALL.replace(lr=1e-12, fit_last_layer=True, select_weights="last")
    result = api.train(stores[4].path, recipe, tmp_path / "same", init_from=source, device="cpu")
    before, after = (Bundle.load(one).network.state_dict() for one in (source / "bundle", result.bundle))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_random_weights_have_no_features_to_fit_to(stores, tmp_path):
    with pytest.raises(RecipeError, match="--fit-last-layer has no effect with random weights"):
        api.train(stores[4].path, SMALL, tmp_path / "run", init_from="scratch", fit_last_layer=True)
    assert not (tmp_path / "run").exists()


def test_the_default_of_fine_tuning_fits_it():
    assert get_recipe("finetune").fit_last_layer
    assert not get_recipe("modern").fit_last_layer
