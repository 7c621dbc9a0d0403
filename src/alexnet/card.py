"""A bundle's README.md: what it is and what it was scored at, for people and for the Hugging Face hub."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet.models.network import Network


def model_card(
    network: Network,
    classes: Sequence[str],
    metrics: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    recipe: Mapping[str, Any],
    stored: str,
) -> str:
    """The text of the card. ``metrics``: split -> scores; ``stored``: size in pixels and fit of a stored picture."""
    parameters, side = sum(p.numel() for p in network.parameters()), network.image_size
    lines = [
        *_hub_header(network.name, metrics, data),
        f"# {network.name} for {len(classes)} classes",
        "",
        f"{_origin(data, recipe)}; {parameters:,} parameters.",
        "",
        "| split | pictures | top-1 | top-5 | loss |",
        "|---|---|---|---|---|",
    ]
    for split, scores in metrics.items():
        lines.append(
            f"| {split}, {scores['views']} view{'s' * (scores['views'] > 1)} | {scores['count']} "
            f"| {100 * scores['top1']:.2f} % | {100 * scores['top5']:.2f} % | {scores['loss']:.4f} |"
        )
    lines += [
        "",
        f"Classes: {', '.join(classes[:50])}{' …' if len(classes) > 50 else ''}.",
        "",
        f"A picture is brought to {stored} pixels; the network sees the middle {side}×{side}, minus the mean of the "
        "training pictures.",
        "",
        "    alexnet predict THIS_FOLDER picture.jpg",
    ]
    return "\n".join(lines) + "\n"


def _origin(data: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Where the weights come from, in a sentence."""
    if "imported" in data:
        about = data["imported"]
        return f"Imported from {about['kind']}: `{about['file']}`, SHA-256 `{about['sha256']}`"
    trained = f"Trained on {data.get('name', 'unknown data')} with the recipe `{recipe.get('recipe', '')}`"
    started = data.get("from")
    return f"{trained}, starting from {started['name']} (SHA-256 `{started['sha256']}`)" if started else trained


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
