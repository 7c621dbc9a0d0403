"""Verification of a bundle, an exported file or a server: it must predict what the original predicted.

The expected probabilities are those of the reference samples. Where they differ, the usual causes are tried one by one:
classes in another order, red and blue swapped, another resize.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.data.remote import local_path
from alexnet.errors import BundleError
from alexnet.export.exported_model import FORMATS, TOLERANCE, ExportedModel
from alexnet.schema import ReferenceSample

LIMIT = 1e-4  # largest difference of a probability from the expected one, fp32
HALF_LIMIT = 3e-2  # in bf16, which has three digits: detects a wrong network only


class Predictor(Protocol):
    """A classifier, an exported model or a client: probabilities [N, K] of images, in the order of ``classes``."""

    classes: tuple[str, ...]

    def probabilities(self, images: Any) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Verified:
    """The result of a verification.

    Attributes:
        target: What was verified.
        kind: ``bundle``, ``onnx``, ``openvino``, ``torch``, ``web`` or ``server``.
        images: Number of images that were compared.
        max_abs_diff: The largest difference of a probability.
        limit: The largest difference that is accepted.
    """

    target: str
    kind: str
    images: int
    max_abs_diff: float
    limit: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return vars(self) | {"ok": True}


@dataclass(frozen=True)
class _Opened:
    kind: str
    model: Predictor
    reference_samples: list[ReferenceSample]
    stored: tuple[int, decode.Fit] | None  # stored size and fit; unknown for a server
    limit: float = LIMIT


def verify(target: str | Path, against: str | Path | None = None, key: str = "", trust: bool = False) -> Verified:
    """Predict the reference images again and compare with the stored probabilities.

    Args:
        target: A bundle, a run, an exported file, a folder for the browser, or the URL of a server. The folder has no
            reference samples, since it is published.
        against: The original, to compare with: its classes, and its predictions for its reference images and for
            images of odd sizes. Without it, the target's own reference samples are used.
        key: API key of a server.
        trust: Allow to open a .pt2 file; see :meth:`ExportedModel.load`.

    Returns:
        The number of images and the largest difference.

    Raises:
        BundleError: The target differs or is damaged, or the server does not respond; the message names the cause.

    Example:
        >>> alexnet.verify("my-run.onnx", against="my-run").max_abs_diff
    """
    opened = _open(target, key, trust)
    original = _open(against, "", trust) if against is not None else opened
    reference = _expected(against, original) if against is not None else opened.reference_samples
    if not reference:
        raise BundleError(f"{target} has no reference images", "at least one", "give --against RUN")
    _same_classes(opened.model.classes, original.model.classes, target)
    limit = max(opened.limit, original.limit)
    drift = replay(str(target), opened.model, reference, original.stored or opened.stored, limit)
    return Verified(str(target), opened.kind, len(reference), drift, limit)


def _open(target: str | Path, key: str, trust: bool) -> _Opened:
    if str(target).startswith(("http://", "https://")):
        from alexnet.export.client import Client  # with httpx

        client = Client(str(target), key)
        return _Opened("server", client, client.reference_samples(), None)
    path = local_path(target)
    if path.suffix in FORMATS and not path.is_dir():
        file = ExportedModel.load(path, trust)
        manifest = file.manifest
        fit: Any = manifest.fit
        return _Opened(
            FORMATS[path.suffix],
            file,
            list(manifest.reference_samples),
            (manifest.stored_size, fit),
            manifest.tolerance,
        )
    if (path / "metadata.json").is_file() and not (path / "config.json").exists():
        from alexnet.export.web_folder import WebFolder  # with PyTorch

        web = WebFolder(path)
        tolerance = TOLERANCE[web.metadata.precision]
        return _Opened("web", web, [], (web.metadata.stored_size, web.metadata.fit), tolerance)
    from alexnet.bundle import Bundle, find_bundle
    from alexnet.export.classifier import Classifier

    bundle = Bundle.load(find_bundle(path))
    return _Opened("bundle", Classifier(bundle), list(bundle.reference_samples), (bundle.stored_size, bundle.fit))


def _expected(against: str | Path, original: _Opened) -> list[ReferenceSample]:
    """Reference samples of the original, which is verified first; for a bundle also of images in odd sizes."""
    if original.reference_samples:
        replay(str(against), original.model, original.reference_samples, original.stored, original.limit)
    if original.kind != "bundle":
        return original.reference_samples
    from alexnet.export.classifier import Classifier
    from alexnet.export.export import predict_samples

    assert isinstance(original.model, Classifier)
    return predict_samples(original.model.bundle)


def _same_classes(results: Sequence[str], must: Sequence[str], target: str | Path) -> None:
    if tuple(results) == tuple(must):
        return
    if sorted(results) == sorted(must):
        k = next(k for k, (a, b) in enumerate(zip(results, must, strict=True)) if a != b)
        problem = f"has its classes in another order: number {k} is {results[k]!r}"
        raise BundleError(f"{target} {problem}", repr(must[k]), "export it again from the original")
    missing, extra = sorted(set(must) - set(results)), sorted(set(results) - set(must))
    words = [f"lacks {', '.join(missing[:5])}"] * bool(missing) + [f"has {', '.join(extra[:5])} besides"] * bool(extra)
    problem = " and ".join(words) or "names a class twice"
    raise BundleError(f"{target} has other classes: it {problem}", f"the {len(must)} classes of the original")


def replay(
    target: str,
    model: Predictor,
    reference: Sequence[ReferenceSample],
    stored: tuple[int, decode.Fit] | None,
    limit: float,
) -> float:
    """The largest difference of a probability from the expected ones.

    Raises :class:`BundleError` with its cause where that is over ``limit``.
    """
    expected = np.array([g.probabilities for g in reference])  # [G, K]
    result = model.probabilities([g.png for g in reference]).astype(np.float64)
    if expected.shape != result.shape:
        raise BundleError(f"{target} gives {result.shape[1]} probabilities", f"{expected.shape[1]}, one a class")
    if not np.isfinite(result).all():
        raise BundleError(f"{target} computes probabilities that are NaN or Inf", "", "use another copy")
    differences = np.abs(result - expected)
    drift = float(differences.max())
    if drift <= limit:
        return drift
    worst = int(differences.max(1).argmax())
    measured = f"{reference[worst].name} differs by {drift:.2g} in a probability"
    close = max(limit, drift / 10)  # a cause explains nine tenths of it
    cause = _cause(model, reference, expected, result, stored, close)
    raise BundleError(f"{target}: {cause}; {measured}", f"at most {limit:g}", "export or deploy it again")


def _cause(
    model: Predictor,
    reference: Sequence[ReferenceSample],
    expected: NDArray[Any],
    results: NDArray[Any],
    stored: tuple[int, decode.Fit] | None,
    close: float,
) -> str:
    order = _permutation(expected, results, close)
    if order is not None:
        k = next(k for k, j in enumerate(order) if k != j)
        name = model.classes
        return f"classes in another order ({name[k]!r} has the probability of {name[order.index(k)]!r})"
    images = [decode.decode(g.png, g.name) for g in reference]
    swapped = [np.ascontiguousarray(p[..., ::-1]) for p in images]

    def explains(tried: Sequence[NDArray[np.uint8]]) -> bool:
        return bool(np.abs(model.probabilities(list(tried)) - expected).max() <= close)

    if explains(swapped):
        return "swapped channels (it reads BGR in place of RGB)"
    if stored is not None:
        if explains([decode.fit(p, *stored) for p in images]):
            return "another resize or crop (images in stored size are predicted correctly)"
        if explains([decode.fit(p, *stored) for p in swapped]):
            return "swapped channels and another resize"
    return "drift (other weights, another mean or other arithmetic)"


def _permutation(expected: NDArray[Any], results: NDArray[Any], close: float) -> list[int] | None:
    """The index of each expected column among ``results``, if they are the same columns in another order; else None."""
    left = list(range(results.shape[1]))
    order = []
    for k in range(expected.shape[1]):
        distances = np.abs(results[:, left] - expected[:, [k]]).max(0)
        best = int(distances.argmin())
        if k in left and distances[left.index(k)] <= min(close, distances[best] + 1e-6):
            best = left.index(k)
        if distances[best] > close:
            return None
        order.append(left.pop(best))
    return order if order != sorted(order) else None
