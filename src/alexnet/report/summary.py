"""The first paragraph of a report: what the classifier is worth, for readers without training in machine learning."""

from collections.abc import Sequence

from alexnet.doctor.findings import Report as Diagnosis
from alexnet.evaluation.detailed import DetailedScores
from alexnet.evaluation.intervals import proportion_ci
from alexnet.formatting import interval, short_percent

HIGH_CONFIDENCE = 0.9  # probability from which on a top-1 prediction counts as confident
ECE_TOLERANCE = 0.02  # calibration error beyond chance up to which probabilities count as calibrated
FEW_IMAGES = 20  # images of a class below which its metrics are uncertain


def summary(
    details: DetailedScores, classes: Sequence[str], diagnosis: Diagnosis | None, undiagnosed: str
) -> list[str]:
    """The sentences of the summary. If the doctor found errors in the data, the first sentence says so.

    Args:
        details: The metrics on the reported split.
        classes: The class names.
        diagnosis: The doctor's report on the training data.
        undiagnosed: The reason why there is none.
    """
    sentences = [
        _data_errors(diagnosis),
        _accuracy(details, classes),
        _weakest_class(details),
        _confidence(details),
        _small_classes(details),
        "All of this holds for similar images only: of the same kinds of objects, taken in the same way.",
        "" if diagnosis else f"The data was not examined: {undiagnosed}.",
    ]
    return [sentence for sentence in sentences if sentence]


def status(details: DetailedScores, diagnosis: Diagnosis | None) -> str:
    """``bad`` for faulty data, ``good`` for examined data and an accuracy above chance, else ``plain``."""
    if diagnosis is not None and not diagnosis.honest:
        return "bad"
    return "good" if diagnosis is not None and beats_majority(details) else "plain"


def beats_majority(details: DetailedScores) -> bool:
    """Is the whole 95 % CI of the accuracy above that of always predicting the most frequent class?"""
    return details.classes.top1.low > details.majority


def _data_errors(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None or diagnosis.honest:
        return ""
    errors = sum(finding.severity == "error" for finding in diagnosis.findings)
    count = "an error" if errors == 1 else f"{errors} errors"
    return f"Do not rely on the numbers below: the data has {count} that make any result wrong or too good."


def _accuracy(details: DetailedScores, classes: Sequence[str]) -> str:
    top1, scores = details.classes.top1, details.scores
    accuracy = f"{short_percent(top1.value)} (95 % CI {interval(top1.low, top1.high)})"
    images = f"{scores.count:,} {scores.split} images"
    sentence = f"The classifier predicts the correct one of {len(classes)} classes for {accuracy} of {images}, "
    if scores.split == "test":
        sentence += "which were not used in training"
    else:
        sentence += "by which it was also chosen, since there are no test images"
    sentence += f". Always predicting the most frequent class gives {short_percent(details.majority)}."
    return sentence if beats_majority(details) else f"{sentence} The difference may be chance: learning is not shown."


def _weakest_class(details: DetailedScores) -> str:
    present = sorted((one for one in details.classes.classes if one.images), key=lambda one: one.recall.value)
    if len(present) < 2 or present[0].recall.value == 1:
        return ""
    low = present[0]
    sentence = (
        f"The weakest class is {low.name}: {short_percent(low.recall.value)} of {low.images} images are recognized"
    )
    if confusions := details.confusions(1):
        true, predicted, images = confusions[0]
        names = details.classes.classes
        times = "once" if images == 1 else f"{images} times"
        sentence += (
            f". The most frequent confusion, {times}, is {names[true].name} predicted as {names[predicted].name}"
        )
    return sentence + "."


def _confidence(details: DetailedScores) -> str:
    result = details.calibrated
    confident = details.confidence >= HIGH_CONFIDENCE
    sentences = ""
    if confident.any():
        accuracy = proportion_ci(details.correct[confident])
        images = f"({short_percent(float(confident.mean()))} of the images)"
        sentences = f"Predictions with a probability of {short_percent(HIGH_CONFIDENCE)} or more {images} "
        sentences += f"are correct for {short_percent(accuracy.value)}. "
    if result.ece <= result.ece_by_chance + ECE_TOLERANCE:
        return sentences + "The probabilities are well calibrated: they agree with the accuracy."
    kind = "overconfident" if result.confidence > result.accuracy else "underconfident"
    sentences += f"The classifier is {kind}: its mean probability is {short_percent(result.confidence)}, "
    return sentences + f"its accuracy {short_percent(result.accuracy)}."


def _small_classes(details: DetailedScores) -> str:
    small = [one.name for one in details.classes.classes if 0 < one.images < FEW_IMAGES]
    if not small:
        return ""
    names = ", ".join(small[:3]) + (" …" if len(small) > 3 else "")
    classes = "1 class has" if len(small) == 1 else f"{len(small)} classes have"
    return f"{classes} fewer than {FEW_IMAGES} of these images ({names}): their metrics are uncertain."
