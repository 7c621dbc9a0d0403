"""``evaluate`` from Python: scores of a trained classifier, or of several as an ensemble, on a split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Split, Store
from alexnet.errors import RecipeError
from alexnet.evaluation import ensemble
from alexnet.evaluation import evaluate as evaluation
from alexnet.evaluation.metrics import Scores
from alexnet.export.classifier import Classifier
from alexnet.system import choose_device
from alexnet.training.evaluation_data import TrainingImages, evaluation_store, training_images
from alexnet.training.provenance import note_test

Run = str | Path | Classifier


def evaluate(
    run: Run | Sequence[Run],
    data: str | Path | None = None,
    *,
    split: str = "test",
    crops: int = 1,
    device: str = "auto",
    options: DataOptions | None = None,
    fit_weights: str | None = None,
) -> Scores:
    """Evaluate a run, a bundle or a classifier on a split; several are evaluated as an ensemble.

    An ensemble predicts the mean of its members' probabilities. Data without splits that is not the run's own is
    evaluated as a whole. In such data the training and validation images of a run (by SHA-256) are left out and
    counted, unless ``options.include_training_images`` is set.

    Args:
        run: A run folder, a bundle or a classifier, or a sequence of them.
        data: Images with the same classes; by default the run's own data.
        split: ``test``, ``validation`` or ``train``.
        crops: 1 (center crop) or 10 (ten-crop: corners, center, and their mirror images).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: How ``data`` is read.
        fit_weights: The split on which the weights of the ensemble's mean are fitted; by default they are equal.

    Returns:
        Top-1 and top-5 accuracy, loss in nats and the confusion matrix; of several runs an
        :class:`alexnet.evaluation.ensemble.EnsembleScores`.

    Raises:
        BundleError: If the classes differ, or the split does not exist.
        DataError: If the members of an ensemble would be evaluated on different images, or no image is left.
        RecipeError: If ``fit_weights`` is ``split`` or the test split.

    Example:
        >>> scores = alexnet.evaluate("my-run")
        >>> print(f"{100 * scores.top1:.1f} % of {scores.count} images")
    """
    runs = [run] if isinstance(run, str | Path | Classifier) else list(run)
    _check_choice(len(runs), split, fit_weights)
    options, target = options or DataOptions(), choose_device(device)
    classifiers = [each if isinstance(each, Classifier) else Classifier.load(each, target) for each in runs]
    paths = [None if isinstance(each, Classifier) else each for each in runs]
    names = [f"#{i}" if path is None else str(path) for i, path in enumerate(paths, 1)]
    for name, classifier in zip(names, classifiers, strict=True):
        classifiers[0].bundle.same_classes(classifier.classes, name)
    bundles = [classifier.bundle for classifier in classifiers]
    stores = [evaluation_store(path, bundle, data, options) for path, bundle in zip(paths, bundles, strict=True)]
    for bundle, store in zip(bundles, stores, strict=True):
        bundle.same_classes(store.classes, str(data or store.address))
    if crops == 10 and any(bundle.recipe.get("hflip") == 0 for bundle in bundles):
        options.log_line(
            "trained without horizontal flips: half of the ten crops are mirror images, which it was not trained on"
        )
    trained = training_images(paths, bundles, stores, options)
    if len(runs) == 1:
        scores = _evaluate_one(classifiers[0], trained.select(stores[0], split), crops)
    else:
        scores = _evaluate_ensemble(
            names, classifiers, stores, split, crops, fit_weights, trained, has_data=data is not None
        )
    left_out, included = trained.counts(stores[0], split)
    scores = replace(scores, training_images_left_out=left_out, training_images_included=included)
    for path, store in zip(paths, stores, strict=True):
        note_test(path, store, split, "evaluate", options.log_line)
    return scores


def _check_choice(members: int, split: str, fit_weights: str | None) -> None:
    if not members:
        raise RecipeError("there is no run to evaluate", "one or more")
    if fit_weights is None:
        return
    if members == 1:
        raise RecipeError("--fit-weights with one run", "two runs or more", "leave it out")
    if fit_weights == split:
        raise RecipeError(f"--fit-weights {fit_weights} is the split that is reported", "another split")
    if fit_weights == "test":
        raise RecipeError("--fit-weights test: nothing may be chosen by the test split", "validation")


def _evaluate_one(classifier: Classifier, split: Split, crops: int) -> Scores:
    bundle = classifier.bundle
    return evaluation.evaluate(
        bundle.network,
        split,
        bundle.normalization,
        num_classes=len(bundle.classes),
        image_size=bundle.image_size,
        channels=bundle.network.in_channels,
        crops=crops,
        device=classifier.device,
    )


def _evaluate_ensemble(
    names: list[str],
    classifiers: list[Classifier],
    stores: list[Store],
    split: str,
    crops: int,
    fit_weights: str | None,
    trained: TrainingImages,
    *,
    has_data: bool,
) -> Scores:
    device, classes = classifiers[0].device, len(classifiers[0].classes)
    hint = "train all on one prepared store, or give DATA"
    if has_data:
        hint = "give images that none of them was trained on, or a prepared store"

    def members(name: str) -> list[ensemble.Member]:
        """The members on the split called ``name``."""
        results = [
            member(run, classifier, trained.select(store, name))
            for run, classifier, store in zip(names, classifiers, stores, strict=True)
        ]
        ensemble.same_images(results, hint)
        return results

    if fit_weights is None:
        return ensemble.evaluate(members(split), num_classes=classes, crops=crops, device=device)
    reported = members(split)  # refused before anything is computed
    probabilities = ensemble.true_class_log_probabilities(members(fit_weights), crops=crops, device=device)
    weights = ensemble.fit_weights(probabilities)
    scores = ensemble.evaluate(reported, weights, num_classes=classes, crops=crops, device=device)
    fitted = {"fitted_on": fit_weights, "fitted_count": probabilities.shape[1]}
    return ensemble.EnsembleScores(**vars(scores) | fitted)


def member(name: str, classifier: Classifier, split: Split) -> ensemble.Member:
    """``classifier`` on ``split``, as a member of an ensemble or of a comparison."""
    bundle = classifier.bundle
    return ensemble.Member(
        name, bundle.network, split, bundle.normalization, bundle.image_size, bundle.network.in_channels
    )
