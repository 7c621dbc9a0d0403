"""Fisher vectors of images for the check of labels, and the message where they cannot be computed."""

import numpy as np
import pytest

from alexnet.data.sources import open_source
from alexnet.errors import DataError
from alexnet.experiments.fisher import features
from alexnet.experiments.fisher.features import fisher_features

from .conftest import KINDS


def test_features_are_those_of_each_image(faulty_images):
    pytest.importorskip("cv2")
    samples = [p for p in open_source(faulty_images).splits["all"] if p.origin != "dogs/broken.png"][:24]
    seen = []
    vectors = fisher_features(samples, lambda *counts: seen.append(counts))
    assert vectors.shape[0] == 24 and vectors.dtype == np.float16 and seen[-1] == (24, 24)
    assert (fisher_features(samples) == vectors).all()
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
    assert lengths == pytest.approx(np.full(24, np.sqrt(2)), abs=0.01), "one unit vector of SIFT, one of colors"
    assert len(KINDS) == 3 and len({vector.tobytes() for vector in vectors}) == 24
    assert fisher_features([]).shape == (0, 1)


def test_where_there_are_none(monkeypatch):
    monkeypatch.setattr(features, "MAX_IMAGES", 1)
    with pytest.raises(DataError, match="2 images; must be at most 1 for the check of labels without a run"):
        fisher_features([None, None])

    def missing():
        raise DataError("Fisher vectors need OpenCV")

    monkeypatch.setattr(features, "opencv", missing)
    with pytest.raises(DataError, match=r"needs OpenCV; must be installed; pip install 'alexnet\[contest\]', or check"):
        fisher_features([])
