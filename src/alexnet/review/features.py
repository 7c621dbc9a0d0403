"""Features of images for the check of labels: Fisher vectors, which use no label and no trained network."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.data.shards import map_in_order
from alexnet.data.sources.source import Sample
from alexnet.errors import DataError
from alexnet.experiments.fisher.features import (
    Descriptors,
    Grid,
    extract_descriptors,
    fisher_vectors,
    fit_codebook,
    normalize,
    opencv,
)
from alexnet.system import cores

SIZE = 128  # pixels: the size at which images are described
GRID = Grid(step=4, patch=24, scales=4)
AXES, GAUSSIANS = 64, 32  # of each codebook
CODEBOOK_IMAGES, CODEBOOK_PATCHES = 400, 100  # images, and patches of each, to which the codebooks are fitted
MAX_IMAGES = 50_000  # 16 kB each


def fisher_features(
    samples: Sequence[Sample], progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float16]:
    """Fisher vectors of SIFT and color descriptors of readable images, on all cores.

    Args:
        samples: N images.
        progress: called with the number of images done and in total.

    Returns:
        float16 [N, 2·2·GAUSSIANS·AXES], fewer columns for very few images.

    Raises:
        DataError: OpenCV is missing, or there are more than MAX_IMAGES images.
    """
    _check(len(samples))
    draw = np.random.Generator(np.random.PCG64(0))
    chosen = [samples[i] for i in np.sort(draw.permutation(len(samples))[:CODEBOOK_IMAGES])]
    threads = cores()
    with ThreadPoolExecutor(threads, "alexnet-fisher") as pool:
        described = []
        for one in map_in_order(pool, _describe, chosen, 2 * threads):
            patches = draw.permutation(len(one.sift))[:CODEBOOK_PATCHES]
            described.append((one.sift[patches], one.color[patches]))
        if not described:
            return np.zeros((0, 1), np.float16)
        books = [fit_codebook(np.concatenate(parts), AXES, GAUSSIANS, 0) for parts in zip(*described, strict=True)]

        def encode(sample: Sample) -> NDArray[np.float16]:
            one = _describe(sample)
            whole = np.ones((1, len(one.sift)), bool)
            pairs = zip(books, (one.sift, one.color), strict=True)
            vectors = [normalize(fisher_vectors(book.project(part), book.mixture, whole))[0] for book, part in pairs]
            return np.concatenate(vectors).astype(np.float16)

        length = sum(book.mixture.vector_length for book in books)
        features = np.zeros((len(samples), length), np.float16)
        for row, vector in enumerate(map_in_order(pool, encode, samples, 4 * threads)):
            features[row] = vector
            if progress is not None:
                progress(row + 1, len(samples))
    return features


def _describe(sample: Sample) -> Descriptors:
    data = sample.load()
    pixels = decode.decode(data, sample.origin, allow_truncated=True) if isinstance(data, bytes) else data
    return extract_descriptors(decode.fit(pixels, SIZE, "squash"), GRID)


def _check(count: int) -> None:
    hint = "check labels with the features of a run: --bundle RUN of doctor, review DATA RUN"
    try:
        opencv()
    except DataError as error:
        raise DataError(
            "the check of labels needs OpenCV", "installed", f"pip install 'alexnet[contest]', or {hint}"
        ) from error
    if count > MAX_IMAGES:
        raise DataError(f"{count:,} images", f"at most {MAX_IMAGES:,} for the check of labels without a run", hint)
