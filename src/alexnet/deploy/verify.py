"""Golden pictures replayed on a bundle, an exported file or a running server; what differs is called by its name.

Expected are the probabilities that the original gave when it was trained or exported. Where they are missed, the
usual causes are tried one by one: classes in another order, red and blue swapped, another resize.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alexnet.data import pixels
from alexnet.data.remote import local_path
from alexnet.deploy.remote import Remote
from alexnet.deploy.runtime import Exported
from alexnet.deploy.seal import FORMATS, Replay
from alexnet.errors import BundleError

LIMIT = 1e-4  # how far a probability may lie from the expected one, fp32
HALF_LIMIT = 3e-2  # in bf16, whose numbers have three digits: against a wrong network alone


class Answers(Protocol):
    """Whatever gives probabilities [N, K] of pictures, K in the order of its classes."""

    classes: tuple[str, ...]

    def probabilities(self, pictures: Any) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Verified:
    """What held: the target, its kind, how many pictures it was asked, and the largest difference found."""

    target: str
    kind: str  # bundle | onnx | openvino | torch | server
    pictures: int
    drift: float
    limit: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return vars(self) | {"ok": True}


@dataclass(frozen=True)
class _Opened:
    kind: str
    answers: Answers
    golden: list[Replay]
    stored: tuple[int, pixels.Fit] | None  # size and fit of the stored form; a server does not tell
    limit: float = LIMIT


def verify(target: str | Path, against: str | Path | None = None, key: str = "", trust: bool = False) -> Verified:
    """Replay golden pictures on ``target``: a bundle or run, an exported file, or the URL of a server.

    ``against`` is the original, a bundle, run or exported file: its classes, and what it says of its golden pictures
    and of pictures in odd sizes made from them, are expected. Without it the target's own golden pictures are, with
    the probabilities recorded in it. Raises :class:`BundleError` that names the first difference; ``key`` is for a
    server, ``trust`` allows to open a .pt2 (see :meth:`Exported.load`).
    """
    opened = _open(target, key, trust)
    original = _open(against, "", trust) if against is not None else opened
    golden = _expected(against, original) if against is not None else opened.golden
    if not golden:
        raise BundleError(f"{target} has no golden pictures", "at least one", "give --against BUNDLE")
    _same_classes(opened.answers.classes, original.answers.classes, target)
    limit = max(opened.limit, original.limit)
    drift = replay(str(target), opened.answers, golden, original.stored or opened.stored, limit)
    return Verified(str(target), opened.kind, len(golden), drift, limit)


def _open(target: str | Path, key: str, trust: bool) -> _Opened:
    if str(target).startswith(("http://", "https://")):
        remote = Remote(str(target), key)
        return _Opened("server", remote, remote.golden(), None)
    path = local_path(target)
    if path.suffix in FORMATS and not path.is_dir():
        file = Exported.load(path, trust)
        about = file.manifest
        fit: Any = about.fit
        return _Opened(FORMATS[path.suffix], file, list(about.golden), (about.stored_size, fit), about.tolerance)
    from alexnet.bundle import Bundle, find
    from alexnet.deploy.classifier import Classifier

    bundle = Bundle.load(find(path))
    golden = [Replay(g.name, g.png, g.probabilities) for g in bundle.golden]
    return _Opened("bundle", Classifier(bundle), golden, (bundle.stored_size, bundle.fit))


def _expected(against: str | Path, original: _Opened) -> list[Replay]:
    """The original first proves itself; then it is asked about the same pictures in odd sizes too."""
    if original.golden:
        replay(str(against), original.answers, original.golden, original.stored, original.limit)
    if original.kind != "bundle":
        return original.golden
    from alexnet.deploy.classifier import Classifier
    from alexnet.deploy.export import expected

    assert isinstance(original.answers, Classifier)
    return expected(original.answers.bundle)


def _same_classes(found: Sequence[str], must: Sequence[str], target: str | Path) -> None:
    if tuple(found) == tuple(must):
        return
    if sorted(found) == sorted(must):
        k = next(k for k, (a, b) in enumerate(zip(found, must, strict=True)) if a != b)
        what = f"has its classes in another order: number {k} is {found[k]!r}"
        raise BundleError(f"{target} {what}", repr(must[k]), "export it again from the original")
    missing, extra = sorted(set(must) - set(found)), sorted(set(found) - set(must))
    words = [f"lacks {', '.join(missing[:5])}"] * bool(missing) + [f"has {', '.join(extra[:5])} besides"] * bool(extra)
    what = " and ".join(words) or "names a class twice"
    raise BundleError(f"{target} has other classes: it {what}", f"the {len(must)} classes of the original")


def replay(
    target: str, answers: Answers, golden: Sequence[Replay], stored: tuple[int, pixels.Fit] | None, limit: float
) -> float:
    """The largest difference of a probability from the expected ones.

    Raises :class:`BundleError` with its cause where that is over ``limit``.
    """
    expected = np.array([g.probabilities for g in golden])  # [G, K]
    found = answers.probabilities([g.png for g in golden]).astype(np.float64)
    if expected.shape != found.shape:
        raise BundleError(f"{target} gives {found.shape[1]} probabilities", f"{expected.shape[1]}, one a class")
    if not np.isfinite(found).all():
        raise BundleError(f"{target} answers with what is no number", "probabilities", "use another copy")
    differences = np.abs(found - expected)
    drift = float(differences.max())
    if drift <= limit:
        return drift
    worst = int(differences.max(1).argmax())
    measured = f"{golden[worst].name} differs by {drift:.2g} in a probability"
    close = max(limit, drift / 10)  # a cause explains nine tenths of it
    cause = _cause(answers, golden, expected, found, stored, close)
    raise BundleError(f"{target}: {cause}; {measured}", f"at most {limit:g}", "export or deploy it again")


def _cause(
    answers: Answers, golden: Sequence[Replay], expected: NDArray[Any], found: NDArray[Any],
    stored: tuple[int, pixels.Fit] | None, close: float,
) -> str:  # fmt: skip
    order = _permutation(expected, found, close)
    if order is not None:
        k = next(k for k, j in enumerate(order) if k != j)
        name = answers.classes
        return f"classes in another order ({name[k]!r} has the probability of {name[order.index(k)]!r})"
    pictures = [pixels.decode(g.png, g.name) for g in golden]
    swapped = [np.ascontiguousarray(p[..., ::-1]) for p in pictures]

    def explains(tried: Sequence[NDArray[np.uint8]]) -> bool:
        return bool(np.abs(answers.probabilities(list(tried)) - expected).max() <= close)

    if explains(swapped):
        return "swapped channels (it reads BGR in place of RGB)"
    if stored is not None:
        if explains([pixels.fit(p, *stored) for p in pictures]):
            return "another resize or cut (pictures in stored form it answers right)"
        if explains([pixels.fit(p, *stored) for p in swapped]):
            return "swapped channels and another resize"
    return "drift (other weights, another mean or other arithmetic)"


def _permutation(expected: NDArray[Any], found: NDArray[Any], close: float) -> list[int] | None:
    """Which found column each expected column is, if they are the same columns in another order; else None."""
    left = list(range(found.shape[1]))
    order = []
    for k in range(expected.shape[1]):
        distances = np.abs(found[:, left] - expected[:, [k]]).max(0)
        best = int(distances.argmin())
        if k in left and distances[left.index(k)] <= min(close, distances[best] + 1e-6):
            best = left.index(k)
        if distances[best] > close:
            return None
        order.append(left.pop(best))
    return order if order != sorted(order) else None
