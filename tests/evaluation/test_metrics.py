import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from alexnet.evaluation.intervals import proportion_ci
from alexnet.evaluation.metrics import MetricAccumulator, Scores


def predictions(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_p = (3 * torch.randn(count, classes, generator=generator)).log_softmax(1)
    return log_p, torch.randint(0, classes, (count,), generator=generator)


def count_up(log_p: torch.Tensor, labels: torch.Tensor, batch: int, order: torch.Tensor | None = None) -> Scores:
    counter = MetricAccumulator(log_p.shape[1], len(labels))
    order = torch.arange(len(labels)) if order is None else order
    for indices in order.split(batch):
        counter.add(log_p[indices], labels[indices], indices)
    return counter.scores("test", 1, 2.0)


@given(st.integers(1, 60), st.integers(2, 12), st.integers(1, 70), st.integers(0, 1000))
def test_scores_against_scikit_learn(count, classes, batch, seed):
    log_p, labels = predictions(count, classes, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    scores = count_up(log_p, labels, batch, order)
    names = list(range(classes))
    first, true, p = log_p.argmax(1).numpy(), labels.numpy(), log_p.double().exp().numpy()
    assert scores.count == count
    assert scores.correct1 == metrics.accuracy_score(true, first, normalize=False)
    assert scores.top1 == metrics.accuracy_score(true, first)
    assert np.array_equal(scores.confusion.numpy(), metrics.confusion_matrix(true, first, labels=names))
    if classes > 2:
        k = min(5, classes)
        five = metrics.top_k_accuracy_score(true, p, k=k, labels=names, normalize=False) if k < classes else count
        assert scores.correct5 == five
    # Sums of float32 logarithms in float64, against probabilities normalized once more.
    p /= p.sum(1, keepdims=True)
    assert scores.loss == pytest.approx(metrics.log_loss(true, p, labels=names), rel=1e-5, abs=1e-7)


def test_hand_counts():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]])
    scores = count_up(p.log(), torch.tensor([0, 1, 1, 2]), 3)
    assert (scores.count, scores.correct1, scores.correct5) == (4, 2, 4)
    assert (scores.top1, scores.top5) == (0.5, 1.0)
    assert scores.confusion.tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 1]]
    assert scores.loss == pytest.approx(-np.log([0.7, 0.3, 0.4, 0.6]).mean(), rel=1e-6)


def test_the_fifth_prediction_counts_and_the_sixth_does_not():
    p = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).log_softmax(1).expand(6, 6)
    scores = count_up(p, torch.arange(6), 6)
    assert (scores.correct1, scores.correct5) == (1, 5)


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_among_five_classes_or_fewer_the_five_best_always_hold_the_true_one(classes):
    log_p, labels = predictions(20, classes)
    assert count_up(log_p, labels, 7).correct5 == 20


def test_the_batch_size_changes_no_count():
    """A mean of batch means would: the last batch is smaller."""
    log_p, labels = predictions(101, 7)
    found = [count_up(log_p, labels, batch) for batch in (1, 3, 50, 101, 1000)]
    assert len({(s.count, s.correct1, s.correct5) for s in found}) == 1
    assert all(torch.equal(s.confusion, found[0].confusion) for s in found)
    assert all(s.loss == pytest.approx(found[0].loss, rel=1e-12) for s in found)  # float64 sums in another order


def test_a_image_counted_twice_is_refused():
    log_p, labels = predictions(4, 3)
    counter = MetricAccumulator(3, 4)
    counter.add(log_p[:2], labels[:2], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="evaluated twice"):
        counter.add(log_p[1:3], labels[1:3], torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="evaluated twice"):
        MetricAccumulator(3, 4).add(log_p[:2], labels[:2], torch.tensor([3, 3]))


def test_a_image_left_out_is_refused():
    log_p, labels = predictions(4, 3)
    counter = MetricAccumulator(3, 6)
    counter.add(log_p, labels, torch.tensor([0, 1, 2, 5]))
    with pytest.raises(ValueError, match="2 images of test were not evaluated"):
        counter.scores("test", 1)


def test_a_image_that_is_not_there_is_refused():
    log_p, labels = predictions(1, 3)
    with pytest.raises(IndexError):
        MetricAccumulator(3, 4).add(log_p, labels, torch.tensor([4]))


def test_as_plain_values():
    log_p, labels = predictions(10, 7)
    scores = count_up(log_p, labels, 4)
    plain = scores.to_dict()
    assert plain["top1_error"] == 1 - scores.top1
    assert plain["top5_error"] == 1 - scores.top5
    assert plain["images_per_second"] == 5.0
    assert (plain["split"], plain["crops"], plain["count"]) == ("test", 1, 10)
    assert Scores("test", 1, 1, 1, 1, 0.0, torch.ones(1, 1)).to_dict()["images_per_second"] is None


def test_one_number_has_one_interval():
    """That of the scores is that of ``share``: by groups where they are known, also when processes count together."""
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 7, 400))
    log_p = torch.from_numpy(generator.normal(size=(400, 7))).log_softmax(1)
    log_p[:250, 0] += labels[:250] == 0  # some classes are easier, so that groups differ
    groups = tuple(f"g{i // 8}" for i in range(400))
    hits = (log_p.argmax(1) == labels).numpy()
    counter, parts = MetricAccumulator(7, 400), [MetricAccumulator(7, 400) for _ in range(2)]
    counter.add(log_p, labels, torch.arange(400))
    for part, own in zip(parts, torch.arange(400).chunk(2), strict=True):
        part.add(log_p[own], labels[own], own)

    def add(*tensors):
        others = (parts[1].seen.to(torch.int64), parts[1].correct.to(torch.int64), parts[1].confusion)
        sums = torch.tensor([parts[1].correct5, parts[1].loss], dtype=torch.float64)
        for mine, other in zip(tensors, (*others, sums), strict=True):
            mine += other

    parts[0].all_reduce(add)
    for one in (counter, parts[0]):
        for known in ((), groups):
            scores, expected = one.scores("test", 1, groups=known), proportion_ci(hits, known)
            assert scores.top1_interval == (expected.low, expected.high)
            assert scores.top1 == expected.value and scores.to_dict()["top1_interval"] == [expected.low, expected.high]
    assert proportion_ci(hits, groups) != proportion_ci(hits)


@pytest.mark.parametrize(("classes", "known"), [(2, False), (5, False), (6, True)])
def test_there_is_no_top_5_of_five_classes(classes, known):
    counter = MetricAccumulator(classes, 1)
    counter.add(torch.zeros(1, classes).log_softmax(1), torch.tensor([1]), torch.tensor([0]))
    scores = counter.scores("test", 1)
    plain = scores.to_dict()
    assert scores.has_top5 == known
    assert (plain["top5"] is None, plain["top5_error"] is None) == (not known, not known)
