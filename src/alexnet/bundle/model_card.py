"""A bundle's README.md: what it is and what it was scored at, for people and for the Hugging Face hub."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet.errors import printable
from alexnet.evaluation.calibration import NO_TEMPERATURE
from alexnet.models.network import Network


def model_card(
    network: Network,
    classes: Sequence[str],
    metrics: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    recipe: Mapping[str, Any],
    stored: str,
    calibration: Mapping[str, Any] | None = None,
) -> str:
    """The text of the card. ``metrics``: split -> scores; ``stored``: size in pixels and fit of a stored image.

    ``calibration``: temperature and thresholds, and what they were fitted on.
    """
    parameters, side = sum(p.numel() for p in network.parameters()), network.image_size
    top5 = len(classes) > 5  # else the five best are all of them
    lines = [
        *_hub_header(network.name, metrics, data),
        f"# {network.name} for {len(classes)} classes",
        "",
        f"{_origin(data, recipe)}; {parameters:,} parameters.",
        "",
        "Scores in float32, the precision of `alexnet evaluate` and `predict`, whatever precision trained.",
        "",
        f"| split | images | top-1 | {'top-5 | ' * top5}loss | top-1, 95 % CI |",
        f"|---|---|---|{'---|' * top5}---|---|",
    ]
    for split, scores in metrics.items():
        five = f"{100 * scores['top5']:.2f} % | " if top5 else ""
        lines.append(
            f"| {split}, {scores['crops']} view{'s' * (scores['crops'] > 1)} | {scores['count']} "
            f"| {100 * scores['top1']:.2f} % | {five}{scores['loss']:.4f} | {_interval(scores)} |"
        )
    lines += [
        "",
        f"Classes: {', '.join(map(_markdown, classes[:50]))}{' …' if len(classes) > 50 else ''}.",
        "",
        f"An image is brought to {stored} pixels; the network sees the middle {side}×{side}, minus the mean of the "
        "training images.",
        "",
        *_chosen(data, recipe, calibration or {}),
        "It names one of these classes for every image, also for one that is of none of them. What it is worth was "
        "measured on images taken by the same means as those it was trained on.",
        "",
        "    alexnet predict THIS_FOLDER image.jpg",
    ]
    return "\n".join(lines) + "\n"


def _interval(scores: Mapping[str, Any]) -> str:
    value = scores.get("top1_interval")
    return f"{100 * value[0]:.1f} to {100 * value[1]:.1f} %" if value else ""


def _chosen(data: Mapping[str, Any], recipe: Mapping[str, Any], calibration: Mapping[str, Any]) -> list[str]:
    """How many images it was trained on, and what chose what: as the run's report says it."""
    lines = []
    counts = data.get("counts", {})
    if counts:
        lines.append(f"Images: {', '.join(f'{number:,} {split}' for split, number in counts.items())}.")
    if data.get("kept"):
        lines.append(f"The weights are those of {data['kept']}; nothing was chosen by the test images.")
    if "compressed" in data:
        about = data["compressed"]
        left = f"{100 * about['nonzero']:.1f} % of the weights are left"
        lines.append(f"Compressed ({about['method']}): {left}; {about['chosen_by']}.")
    if calibration:
        value = f"{calibration.get('count', 0):,} {calibration.get('fitted_on', 'validation')} images"
        temperature = float(calibration.get("temperature", 1))
        lines.append(NO_TEMPERATURE if temperature == 1.0 else f"Temperature {temperature:.3f}, fitted on {value}.")
        for target, threshold in sorted(calibration.get("thresholds", {}).items(), key=lambda pair: float(pair[0])):
            share = f"{100 * float(target):g} %"
            lines.append(
                f"Predictions with a probability of {threshold:.3f} or more have at most {share} error "
                "(with 95 % confidence)."
            )
    if recipe.get("seed") is not None and "imported" not in data:
        lines.append(f"Seed {recipe['seed']}; every number of the recipe is in config.json.")
    return [*(f"- {line}" for line in lines), ""] if lines else []


def _origin(data: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Where the weights come from, in a sentence."""
    if "imported" in data:
        about = data["imported"]
        return f"Imported from {about['kind']}: `{about['file']}`, SHA-256 `{about['sha256']}`"
    trained = (
        f"Trained on {_markdown(str(data.get('name', 'unknown data')))} with the recipe `{recipe.get('recipe', '')}`"
    )
    started = data.get("from")
    return f"{trained}, starting from {started['name']} (SHA-256 `{started['sha256']}`)" if started else trained


def _markdown(name: str) -> str:
    """A name from a stranger's files as plain Markdown text: at most 100 characters, no HTML, links or formulas."""
    name = printable(name if len(name) <= 100 else name[:99] + "…")
    return re.sub(r"([\\`*_{}\[\]()#|~$!])", r"\\\1", html.escape(name))


def _hub_header(name: str, metrics: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any]) -> list[str]:
    """What the hub reads: YAML, whose strings are written as JSON."""
    source = json.dumps(str(data.get("name", "unknown")))
    lines = ["---", "library_name: alexnet", "pipeline_tag: image-classification"]
    lines += ["tags: [alexnet, image-classification, pytorch]", "model-index:"]
    lines += [f"- name: {json.dumps(name)}", "  results:"]
    for split, scores in metrics.items():
        lines += ["  - task: {type: image-classification}"]
        lines += [f"    dataset: {{name: {source}, type: {source}, split: {json.dumps(split)}}}"]
        lines += [f"    metrics: [{{type: accuracy, value: {float(scores['top1']):.6f}}}]"]
    lines[-1] += "" if metrics else " []"
    return [*lines, "---", ""]
