import numpy as np
import pytest

from alexnet.experiments.fisher import classifier


def some(count=60, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    centers = random.normal(size=(classes, 2, 8))
    return (centers[labels] + random.normal(size=(count, 2, 8)) * 0.8).astype(np.float16), labels


@pytest.mark.parametrize("block", [classifier.BLOCK, 64])
def test_multiplications_by_region(block, monkeypatch):
    monkeypatch.setattr(classifier, "BLOCK", block)  # 64: eight rows at a time
    a, _ = some()
    b, _ = some(33, seed=1)
    expected = np.einsum("nrf,mrf->rnm", a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(classifier.multiplications(a, b), expected, rtol=1e-4, atol=1e-4)


def test_the_machines_are_those_of_the_vectors_themselves():
    """By the table of inner products or by the vectors: the same linear machine, one class against all others."""
    from sklearn.svm import SVC

    vectors, labels = some()
    flat = vectors.reshape(len(vectors), -1).astype(np.float64)
    counts, offsets = classifier.fit(classifier.multiplications(vectors, vectors).sum(0), labels, 3, 1.0)
    for label in range(3):
        theirs = SVC(C=1.0, kernel="linear").fit(flat, labels == label)
        np.testing.assert_allclose(
            flat @ flat.T @ counts[:, label] + offsets[label], theirs.decision_function(flat), atol=0.01
        )


def test_weights_give_the_same_scores():
    vectors, labels = some()
    counts, offsets = classifier.fit(classifier.multiplications(vectors, vectors)[1], labels, 3, 10.0)
    weights = classifier.svm_weights(counts, vectors, (1,))
    assert weights.shape == (3, 1, 8)
    direct = np.einsum("krf,nrf->nk", weights, vectors[:, [1]].astype(np.float32)) + offsets
    np.testing.assert_allclose(direct, classifier.multiplications(vectors, vectors)[1] @ counts + offsets, atol=1e-2)


def test_a_class_that_is_missing_predictions_no():
    vectors, labels = some()
    counts, offsets = classifier.fit(classifier.multiplications(vectors, vectors).sum(0), labels, 4, 1.0)
    assert not counts[:, 3].any() and offsets[3] == -1
