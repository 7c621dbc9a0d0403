"""The fitted last layer: against scikit-learn's ridge regression, on several networks, and in whole runs."""

import re

import numpy as np
import pytest
import torch
from test_finetune import SMALL, few

from alexnet import api
from alexnet.bundle import Bundle
from alexnet.data.prepare import prepare
from alexnet.errors import BundleError, RecipeError
from alexnet.evaluation.evaluate import inputs_of, predict_split
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.recipe import get_recipe
from alexnet.training import finetune, last_layer, loop
from alexnet.training.logger import read_rows
from alexnet.weights.matching import last_layer as name_of_last


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())


def clouds(count: int, classes: int = 3, size: int = 20, noise: float = 3.0, seed: int = 0):
    """Features in a cloud per class, float32 [N, D], and labels [N]."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(1).normal(size=(classes, size))
    labels = np.arange(count) % classes
    return (centers[labels] + noise * random.normal(size=(count, size)) + 5).astype(np.float32), labels


def ridge(x, labels, classes: int, penalty: float, share):
    """scikit-learn's regression of the labels with images weighted by ``share``, which adds to 1."""
    from sklearn.linear_model import Ridge

    mean = share @ x
    spread = float(share @ ((x - mean) ** 2).sum(1))
    return Ridge(alpha=penalty * spread).fit(x.astype(np.float64), np.eye(classes)[labels], sample_weight=share)


@pytest.mark.parametrize("size", [20, 90])  # fewer and more features than images
@pytest.mark.parametrize("balanced", [False, True])
def test_it_is_a_ridge_regression_whose_penalty_and_factor_suit_images_left_out(size, balanced):
    """The slow way: each image is left out in turn, for each penalty."""
    from sklearn.base import clone

    x, labels = clouds(90, size=size)
    x, labels = x[20:], np.where(labels == 0, 1, labels)[20:]  # classes of different sizes, and class 0 without images
    counts = np.bincount(labels)
    share = 1 / (2 * counts[labels]) if balanced else np.full(len(x), 1 / len(x))
    losses = {}
    for penalty in last_layer.PENALTIES[:8:2]:
        own, outputs = ridge(x, labels, 3, penalty, share), []
        for i in range(len(x)):
            others = np.arange(len(x)) != i
            left_out = clone(own).fit(  # with the penalty that is relative to the spread of all images
                x[others].astype(np.float64), np.eye(3)[labels[others]], sample_weight=share[others]
            )
            outputs.append(left_out.predict(x[i : i + 1])[0])
        losses[penalty] = (*last_layer._best_factor(np.array(outputs), labels, share), own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(last_layer, "PENALTIES", tuple(losses))
        weight, bias = last_layer.fit(x, labels, 3, balanced=balanced)
    _, factor, expected = min(losses.values(), key=lambda entry: entry[0])
    assert np.allclose(weight, factor * expected.coef_, rtol=1e-3, atol=1e-4 * factor)
    assert np.allclose(bias, factor * expected.intercept_, rtol=1e-3, atol=1e-4 * factor)


def test_more_noise_is_a_greater_penalty_and_less_confidence():
    for noise in (1, 3, 10):
        x, labels = clouds(200, noise=noise)
        new, new_labels = clouds(2000, noise=noise, seed=5)
        weight, bias = last_layer.fit(x, labels, 3)
        log_probs = torch.from_numpy(new @ weight.T + bias).log_softmax(1)
        correct = float((log_probs.argmax(1).numpy() == new_labels).mean())
        confidence = float(log_probs.max(1).values.exp().mean())
        assert abs(confidence - correct) < 0.12, (noise, correct, confidence)


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (2, 2), (3, 3), (5, 1)])
def test_hardly_any_images(count, classes):
    x, labels = clouds(count, classes)
    weight, bias = last_layer.fit(x, labels, classes)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
    same = last_layer.fit(np.ones((4, 7), np.float32), np.array([0, 0, 0, 1]), 2)  # features that tell nothing
    assert np.allclose(same[0], 0)


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
    assert done[-1] == (len(store.split("train")),) * 2
    network.load_state_dict(fitted, strict=False)
    network.eval()
    layer = network.get_classifier()
    layer_inputs = []
    layer.register_forward_pre_hook(lambda module, args: layer_inputs.append(args[0].detach().numpy().copy()))
    split = store.split("train")
    with torch.no_grad():
        logits = network(inputs_of(network, split.gather(np.arange(len(split))), normalization)).numpy()
    expected = layer_inputs[0] @ fitted[f"{name}.weight"].numpy().T + fitted[f"{name}.bias"].numpy()
    assert np.abs(logits).max() < 100
    assert np.allclose(logits, expected, atol=1e-3)
    assert (logits.argmax(1) == split.labels).mean() > 0.8  # random features of digits tell most of them apart


def test_weights_that_are_too_large_are_refused(stores):
    network = create_model("alexnet_small", num_classes=6, image_size=24)
    network.load_state_dict({name: value * 1e12 for name, value in network.state_dict().items()})
    normalization = Normalization(torch.zeros(3), torch.ones(3), torch.eye(3), torch.tensor(1.0))
    with pytest.raises(BundleError, match="alexnet_small computes values that are NaN or Inf; use another copy"):
        last_layer.fit_last_layer(network, stores[6], normalization, SMALL)


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


@pytest.mark.parametrize("softened", [{}, {"label_smoothing": 0.1}])
def test_it_is_kept_if_no_epoch_is_better(softened, source, stores, tmp_path, capsys):
    """Training with a high learning rate makes it worse; also where the run is interrupted and resumed."""
    recipe = SMALL.replace(fit_last_layer=True, lr=0.02, epochs=2, select_weights="best-loss", **softened)
    whole = api.train(stores[6].path, recipe, tmp_path / "whole", init_from=source, device="cpu", quiet=False)
    printed = capsys.readouterr().err
    fitted = float(re.search(r"fc10 is fitted to the features .*: validation loss ([\d.]+), top-1", printed)[1])
    losses = [row["validation_loss"] for row in read_rows(whole.folder)]
    assert min(losses) > fitted
    kept, loss = Bundle.load(whole.bundle).data["kept"], whole.scores["validation"].loss
    if softened:
        assert kept.startswith("epoch ")
        assert loss == pytest.approx(min(losses), abs=1e-5)
    else:
        assert kept == "the fitted last layer, since 2 epochs gave no lower validation loss"
        assert loss == pytest.approx(fitted, abs=1e-3)
    inner = loop.train_step

    def killed_in_the_second_epoch(state, batch):
        if state.position.epoch == 1:
            raise KeyboardInterrupt
        return inner(state, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", killed_in_the_second_epoch)
        api.train(stores[6].path, recipe, tmp_path / "killed", init_from=source, device="cpu")
    resumed = api.resume(tmp_path / "killed", device="cpu")
    files = [(run.bundle / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert files[0] == files[1]


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
