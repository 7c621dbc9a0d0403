"""The criteria of claims: how the trained models of a plan become measurements with one value per seed.

``CRITERIA`` maps the name of a criterion to its function. Each function takes the plan, the trained models of each
variant and the device, and returns the measurements and the numbers to plot: a label and one value per seed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alexnet.api.evaluation import evaluate
from alexnet.experiments.claims.plan import Plan
from alexnet.experiments.measurement import Measurement
from alexnet.experiments.runner import TrainedModel

Models = Mapping[str, Sequence[TrainedModel]]  # name of the variant -> one model per seed, in order
Numbers = dict[str, list[float]]
Criterion = Callable[[Plan, Models, str], tuple[list[Measurement], Numbers]]


def test_error(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Test error of each other variant minus that of the paper's configuration."""
    baseline, *others = plan.variants
    scores = {variant.name: _test_scores(models[variant.name], device) for variant in plan.variants}
    measurements = []
    for variant in others:
        in_paper = variant is others[0] or plan.claim.name == "depth"
        for metric in _metrics(models[baseline.name]):
            errors, baseline_errors = ([_percent(s, metric) for s in scores[v.name]] for v in (variant, baseline))
            measurements.append(
                Measurement(
                    f"{_title(metric)} test error: {variant.name} − {baseline.name}",
                    plan.claim.published.get(metric, "") if in_paper else "",
                    _differences(errors, baseline_errors),
                    primary=metric == "top1" and in_paper,
                )
            )
    return measurements, {name: [_percent(s) for s in of_variant] for name, of_variant in scores.items()}


def generalization_gap(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Test minus training error of the other variant, minus the same of the paper's configuration."""
    baseline, other = plan.variants
    published = plan.claim.published
    numbers: Numbers = {}
    gaps, test_errors = {}, {}
    for variant in plan.variants:
        train = [_percent(model.scores("train", 1, device)) for model in models[variant.name]]
        test = [_percent(scores) for scores in _test_scores(models[variant.name], device)]
        numbers |= {f"{variant.name}: training": train, f"{variant.name}: test": test}
        gaps[variant.name], test_errors[variant.name] = _differences(test, train), test
    measurements = [
        Measurement(
            f"test − training error: {other.name} − {baseline.name}",
            published.get("gap", ""),
            _differences(gaps[other.name], gaps[baseline.name]),
            primary=True,
            note="both errors are of the selected weights on center crops, without dropout and augmentation",
        ),
        Measurement(
            f"top-1 test error: {other.name} − {baseline.name}",
            published.get("top1", ""),
            _differences(test_errors[other.name], test_errors[baseline.name]),
        ),
    ]
    if "ratio" in published:
        measurements.append(_convergence_ratio(plan, models))
    return measurements, numbers


def _convergence_ratio(plan: Plan, models: Models) -> Measurement:
    """Epochs of the paper's configuration to a training error that all models reach, divided by the other's."""
    baseline, other = plan.variants
    lowest = [min(model.train_errors) for variant in plan.variants for model in models[variant.name]]
    train_error = plan.train_error or max(lowest)
    pairs = [
        (a.epochs_to(train_error), b.epochs_to(train_error))
        for a, b in zip(models[baseline.name], models[other.name], strict=True)
    ]
    return Measurement(
        f"epochs to {100 * train_error:.1f} % training error: {baseline.name} / {other.name}",
        plan.claim.published["ratio"],
        tuple(a / b for a, b in pairs if a is not None and b is not None),
        "ratio",
        note="training error measured during training, with the recipe's dropout and augmentation",
    )


def epochs_to_error(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Epochs of the other variant to a training error, divided by those of the paper's configuration."""
    baseline, other = plan.variants
    level = f"{100 * plan.train_error:g} %"
    ratios, notes, lower_bound = [], [], False
    for fast, slow in zip(models[baseline.name], models[other.name], strict=True):
        seed = fast.job.recipe.seed
        fast_epochs, slow_epochs = fast.epochs_to(plan.train_error), slow.epochs_to(plan.train_error)
        if fast_epochs is None and slow_epochs is None:
            notes.append(f"seed {seed}: neither variant reached {level}, the seed is excluded")
            continue
        if fast_epochs is None or slow_epochs is None:
            lower_bound = lower_bound or slow_epochs is None
            late = baseline.name if fast_epochs is None else other.name
            notes.append(f"seed {seed}: {late} did not reach {level} in its last epoch, all its epochs are counted")
        ratios.append((slow_epochs or len(slow.epochs)) / (fast_epochs or len(fast.epochs)))
    measurement = Measurement(
        f"epochs to {level} training error: {other.name} / {baseline.name}",
        plan.claim.published["ratio"],
        tuple(ratios),
        "ratio",
        primary=True,
        lower_bound=lower_bound,
        note="; ".join(notes),
    )
    numbers = {
        variant.name: [m.epochs_to(plan.train_error) or float(len(m.epochs)) for m in models[variant.name]]
        for variant in plan.variants
    }
    return [measurement], numbers


def ten_crop(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Test error with the center crop minus test error with ten crops."""
    (variant,) = plan.variants
    note = "" if plan.hflip else "five of the ten crops are flipped; training on this dataset uses no flips"
    measurements, numbers = [], {}
    for metric in _metrics(models[variant.name]):
        center, ten = (
            [_percent(s, metric) for s in _test_scores(models[variant.name], device, crops)] for crops in (1, 10)
        )
        measurements.append(
            Measurement(
                f"{_title(metric)} test error: center crop − ten crops",
                plan.claim.published[metric],
                _differences(center, ten),
                primary=metric == "top1",
                note=note,
            )
        )
        if metric == "top1":
            numbers = {"center crop": center, "ten crops": ten}
    return measurements, numbers


def ensemble(plan: Plan, models: Models, device: str) -> tuple[list[Measurement], Numbers]:
    """Test error of each network minus test error of the mean of all networks."""
    networks = models[plan.variants[0].name]
    bundles = [model.folder / "bundle" for model in networks]
    mean_scores = evaluate(bundles, networks[0].store.absolute, device=device).to_dict()
    measurements, numbers = [], {}
    for metric in _metrics(networks):
        single = [_percent(s, metric) for s in _test_scores(networks, device)]
        mean_error = _percent(mean_scores, metric)
        measurements.append(
            Measurement(
                f"{_title(metric)} test error: one network − the mean of {len(networks)}",
                plan.claim.published.get(metric, ""),
                tuple(error - mean_error for error in single),
                primary=metric == "top1",
                note="the interval is over the networks; there is one ensemble",
            )
        )
        if metric == "top1":
            numbers = {"one network": single, f"mean of {len(networks)}": [mean_error]}
    return measurements, numbers


CRITERIA: dict[str, Criterion] = {
    "test_error": test_error,
    "generalization_gap": generalization_gap,
    "epochs_to_error": epochs_to_error,
    "ten_crop": ten_crop,
    "ensemble": ensemble,
}


def _percent(scores: Mapping[str, Any], metric: str = "top1") -> float:
    return 100.0 * float(scores[f"{metric}_error"])


def _test_scores(models: Sequence[TrainedModel], device: str, crops: int = 1) -> list[dict[str, Any]]:
    return [model.scores("test", crops, device) for model in models]


def _metrics(models: Sequence[TrainedModel]) -> tuple[str, ...]:
    """Top-5 error only with more than five classes, because otherwise it is always 0."""
    return ("top1", "top5") if len(models[0].store.classes) > 5 else ("top1",)


def _title(metric: str) -> str:
    return metric.replace("top", "top-")


def _differences(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))
