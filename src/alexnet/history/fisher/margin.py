"""One linear support vector machine for each class against all others, from the vectors' inner products.

The vectors are long and few, so the machines are found from a table of inner products (scikit-learn's SVC), which is
exactly the linear machine, and written out as weights. Glossary: N vectors, R regions, F length, K classes.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

MOST = 8000  # training vectors: a table of 8000² numbers has 512 MB
BLOCK = 64 << 20  # numbers of vectors in memory at once, as float32: 256 MB


def products(a: NDArray[np.float16], b: NDArray[np.float16]) -> NDArray[np.float64]:
    """Inner products by region: [n, R, F] and [m, R, F] -> [R, n, m]."""
    regions = a.shape[1]
    out = np.zeros((regions, len(a), len(b)))
    rows = max(1, BLOCK // max(1, a.shape[2]))
    for r in range(regions):
        for i in range(0, len(a), rows):
            left = a[i : i + rows, r].astype(np.float32)
            for j in range(0, len(b), rows):
                out[r, i : i + rows, j : j + rows] = left @ b[j : j + rows, r].astype(np.float32).T
    return out


def fit(
    table: NDArray[np.float64], labels: NDArray[np.int64], classes: int, penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Machines from inner products [N, N]: what each vector counts in each class's weights [N, K], and offsets [K].

    ``penalty`` is C, what a picture on the wrong side costs. A class of which there is no picture, or no other, answers
    −1 always.
    """
    from sklearn.svm import SVC

    def one(label: int) -> tuple[NDArray[np.float64], float]:
        counts, mine = np.zeros(len(labels)), labels == label
        if mine.all() or not mine.any():
            return counts, -1.0
        machine = SVC(C=penalty, kernel="precomputed", cache_size=50).fit(table, mine)
        counts[machine.support_] = machine.dual_coef_[0]
        return counts, float(machine.intercept_[0])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # libsvm computes without the interpreter's lock
        found = list(pool.map(one, range(classes)))
    return np.stack([counts for counts, _ in found], 1), np.array([offset for _, offset in found])


def weights(counts: NDArray[np.float64], vectors: NDArray[np.float16], used: Sequence[int]) -> NDArray[np.float32]:
    """What the machines give to each number of a vector, in the regions ``used``: [N, K], [N, R, F] -> [K, R', F]."""
    out = np.zeros((counts.shape[1], len(used), vectors.shape[2]), np.float32)
    rows = max(1, BLOCK // max(1, vectors.shape[2]))
    for place, r in enumerate(used):
        for i in range(0, len(vectors), rows):
            out[:, place] += counts[i : i + rows].T.astype(np.float32) @ vectors[i : i + rows, r].astype(np.float32)
    return out
