"""The distance of features against a slow formula, and against probabilities that see nothing."""

import numpy as np
import pytest

from alexnet.evaluation.ood import FeatureDistance, FeatureReference, ood_score


def known(generator, count, width=20):
    """Features of three classes with a shared, skewed covariance."""
    labels = generator.integers(0, 3, count)
    mixing = np.linalg.qr(np.random.default_rng(5).normal(size=(width, width)))[0] * np.linspace(1, 5, width)
    return (generator.normal(size=(count, width)) @ mixing + 12 * np.eye(width)[labels]), labels


def test_it_is_the_distance_to_the_nearest_class():
    generator = np.random.default_rng(0)
    features, labels = known(generator, 600)
    new, _ = known(generator, 10)
    found = FeatureDistance.fit(features.astype(np.float32), labels)(new)
    means = np.stack([features[labels == k].mean(0) for k in range(3)])
    inverse = np.linalg.inv(np.cov((features - means[labels]).T, bias=True))
    mean, every = features.mean(0), np.linalg.inv(np.cov(features.T, bias=True))
    slow = [min((x - m) @ inverse @ (x - m) for m in means) - (x - mean) @ every @ (x - mean) for x in new]
    assert found == pytest.approx(slow, rel=1e-3, abs=1e-2)


def test_many_features_few_images_and_constant_ones():
    generator = np.random.default_rng(1)
    features, labels = generator.normal(size=(50, 300)), generator.integers(0, 3, 50)
    features[:, :10] = 7.0
    found = FeatureDistance.fit(features, labels)(features)
    assert np.isfinite(found).all()


def test_classes_of_one_image():
    generator = np.random.default_rng(3)
    features = generator.normal(size=(30, 8))
    assert np.isfinite(FeatureDistance.fit(features, np.arange(30))(features)).all()


def test_a_reference_ranks_images_among_those_that_were_held_out():
    generator = np.random.default_rng(4)
    features, labels = known(generator, 500)
    held_out, new = known(generator, 2000)[0], known(generator, 5)[0]
    reference = FeatureReference.fit(features, labels, held_out)
    among = (reference.distance(held_out) < reference.distance(new)[:, None]).mean(1)
    assert reference.rank(new) == pytest.approx(among, abs=0.01)  # 101 quantiles
    assert np.bincount((reference.rank(held_out) * 9.999).astype(int), minlength=10) == pytest.approx(200, abs=4)
    far = new + 1000 * generator.normal(size=new.shape)
    assert reference.rank(far) == pytest.approx(1.0, abs=0.05)
    again = FeatureReference.from_arrays(reference.arrays())
    assert again.rank(new) == pytest.approx(reference.rank(new), abs=1e-4)
    assert all(array.dtype == np.float32 for array in reference.arrays().values())
    for change in (
        {"quantiles": None},
        {"more": np.zeros(3)},
        {"middle": np.zeros(3)},
        {"within": np.zeros((3, 3))},
        {"centers": np.zeros((0, 16))},
        {"quantiles": np.linspace(1, 0, 101)},
        {"components": np.zeros(16)},
    ):
        arrays = {name: array for name, array in (reference.arrays() | change).items() if array is not None}
        with pytest.raises(ValueError, match="its arrays"):
            FeatureReference.from_arrays(arrays)


def test_a_score_is_judged_by_its_ranks():
    generator = np.random.default_rng(2)
    features, labels = known(generator, 600)
    inside, _ = known(generator, 200)
    outside = known(generator, 150)[0] + 40 * generator.normal(size=(150, 20))
    distance = FeatureDistance.fit(features, labels)
    found = ood_score("distance", distance(inside), distance(outside))
    pairs = (distance(outside)[:, None] > distance(inside)).mean()
    assert found.auroc.value == pytest.approx(pairs) and pairs > 0.8
    limit = np.quantile(distance(inside), 0.95)
    assert found.caught.value == (distance(outside) > limit).mean()
    blind = ood_score("noise", generator.random(200), generator.random(150))
    assert abs(blind.auroc.value - 0.5) < 0.1 and found.to_dict()["auroc"]["value"] == found.auroc.value
