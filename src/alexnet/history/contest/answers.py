"""What a contestant answered to every test picture, on disk: so that a finished one stays finished."""

from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from alexnet.data.writing import whole_file
from alexnet.errors import RunError


class Answers(NamedTuple):
    """``scores`` [N, K], greater is more likely; ``labels`` int64 [N]. Of equals the first class comes first."""

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def first(self) -> NDArray[np.bool_]:
        """Is the first guess right? [N]"""
        return np.asarray(self.scores.argmax(1) == self.labels)

    def among(self, best: int = 5) -> NDArray[np.bool_]:
        """Is the truth among the ``best`` first guesses? [N]"""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :best]
        return np.asarray((order == self.labels[:, None]).any(1))

    def save(self, path: Path) -> None:
        """As two plain arrays."""
        with whole_file(path) as file:
            np.savez(file, allow_pickle=False, scores=self.scores, labels=self.labels)


def load(path: Path) -> Answers:
    """What :meth:`Answers.save` wrote. Raises :class:`RunError`."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return Answers(file["scores"], file["labels"])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise RunError(f"{path} is damaged: {error}", "", f"delete {path.parent} and give the same command") from error
