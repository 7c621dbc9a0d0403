"""The model card: a bundle's README.md, for people and for the Hugging Face hub, from ``templates/model_card.md``."""

from collections.abc import Mapping, Sequence
from typing import Any

from alexnet import pages
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
    certificate: Mapping[str, Any] | None = None,
) -> str:
    """The text of the card, Markdown with a YAML header.

    Args:
        network: The network of the bundle.
        classes: Class names in the order of its outputs.
        metrics: Scores by split.
        data: What the network was trained on.
        recipe: The recipe of the training.
        stored: Size in pixels and fit of a stored image.
        calibration: Temperature and thresholds, and what they were fitted on.
        certificate: What was tested when the bundle was promoted.
    """
    return pages.render(
        "model_card.md",
        network=network,
        parameters=sum(p.numel() for p in network.parameters()),
        classes=classes,
        top5=len(classes) > 5,  # top-5 of five classes is always right
        metrics=metrics,
        dataset=str(data.get("name", "unknown")),
        data_name=str(data.get("name", "unknown data")),
        recipe_name=recipe.get("recipe", ""),
        imported=data.get("imported"),
        pretrained=data.get("from"),
        stored=stored,
        notes=_notes(data, recipe, calibration or {}),
        certificate=certificate or {},
    )


def _notes(data: Mapping[str, Any], recipe: Mapping[str, Any], calibration: Mapping[str, Any]) -> list[str]:
    """Sentences about the training images and about what was selected on which images."""
    notes = []
    if counts := data.get("counts"):
        notes.append(f"Images: {', '.join(f'{count:,} {split}' for split, count in counts.items())}.")
    if data.get("kept"):
        notes.append(f"The weights are those of {data['kept']}; nothing was selected on the test images.")
    if compressed := data.get("compressed"):
        left = f"{100 * compressed['nonzero']:.1f} % of the weights are left"
        notes.append(f"Compressed ({compressed['method']}): {left}; {compressed['chosen_by']}.")
    if calibration:
        images = f"{calibration.get('count', 0):,} {calibration.get('fitted_on', 'validation')} images"
        temperature = float(calibration.get("temperature", 1))
        notes.append(NO_TEMPERATURE if temperature == 1.0 else f"Temperature {temperature:.3f}, fitted on {images}.")
        for risk, threshold in sorted(calibration.get("thresholds", {}).items(), key=lambda pair: float(pair[0])):
            notes.append(
                f"Predictions with a probability of {threshold:.3f} or more have at most {100 * float(risk):g} % error "
                "(with 95 % confidence)."
            )
    notes += data.get("notes", [])
    if recipe.get("seed") is not None and "imported" not in data:
        notes.append(f"Seed {recipe['seed']}; all hyperparameters are in config.json.")
    return notes
