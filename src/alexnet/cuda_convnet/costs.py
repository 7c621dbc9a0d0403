"""The costs of layer files: sums over the images of a batch, which training minimizes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_ZERO = -1e30  # log of an empty sum; finite, so that gradients are finite
_MIN_LOG = -50.0  # log of a probability of 0 or less


def logreg(labels: Tensor, scores: Tensor) -> Tensor:
    """−Σ log p(label). ``labels`` int64 [N], ``scores`` [N, K] before the softmax."""
    return F.cross_entropy(scores, labels, reduction="sum")


def msm(labels: Tensor, scores: Tensor, size: int) -> Tensor:
    """−Σ log P(a random set of ``size`` classes contains the label), P(set) ∝ exp(sum of the set's scores).

    ``labels`` int64 [N], ``scores`` [N, K]. With ``size`` 1 it is :func:`logreg`. The sums over sets are elementary
    symmetric polynomials, computed in logarithms, class by class: sets of s members from those of s and s − 1.
    """
    scores = scores - scores.detach().amax(1, keepdim=True)
    label = labels[:, None]
    others = scores.scatter(1, label, _LOG_ZERO)  # sets with the label: size − 1 members of the other classes
    terms = torch.cat([scores, others])  # [2N, K]
    sums = terms.new_full((len(terms), size + 1), _LOG_ZERO)
    sums[:, 0] = 0
    for term in terms.unbind(1):
        longer = torch.logaddexp(sums[:, 1:], sums[:, :-1] + term[:, None])
        sums = torch.cat([sums[:, :1], longer], 1)
    all_sets, without = sums.chunk(2)
    return (all_sets[:, size] - scores.gather(1, label)[:, 0] - without[:, size - 1]).sum()


def crossent(targets: Tensor, scores: Tensor) -> Tensor:
    """−Σ t · log p over images and classes. ``targets`` [N, K], ``scores`` [N, K] before the softmax."""
    return -(targets * scores.log_softmax(1)).sum()


def crossent2(targets: Tensor, values: Tensor, logistic: bool) -> Tensor:
    """−Σ (t · log y + (1 − t) · log(1 − y)); ``values`` are y, or with ``logistic`` the input of y = sigmoid."""
    out: Tensor = _CrossEntropy.apply(targets, values, logistic)
    return out


class _CrossEntropy(torch.autograd.Function):
    """The gradient is y − t for the input of a logistic neuron, and −t/y + (1 − t)/(1 − y) for any other y.

    The 2012 code has the wrong sign before the second term of the latter.
    """

    @staticmethod
    def forward(ctx: Any, targets: Tensor, values: Tensor, logistic: bool) -> Tensor:
        y = values.sigmoid() if logistic else values
        ctx.save_for_backward(targets, y)
        ctx.logistic = logistic
        return -(targets * _log(y) + (1 - targets) * _log(1 - y)).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        t, y = ctx.saved_tensors
        gradient = y - t if ctx.logistic else (1 - t) / (1 - y) - t / y
        return None, gradient * grads[0], None


def _log(y: Tensor) -> Tensor:
    return torch.where(y > 0, y.clamp(min=torch.finfo(y.dtype).tiny).log(), y.new_full((), _MIN_LOG))


def sum2(values: Tensor) -> Tensor:
    """Σ x²."""
    return values.square().sum()


def rflickr(targets: Tensor, values: Tensor) -> Tensor:
    """Σ log(1 + (y − t)²)."""
    return torch.log1p((values - targets).square()).sum()


def gsum2(gate: Tensor, values: Tensor) -> Tensor:
    """Σ g · x²: ``gate`` [N, 1], ``values`` [N, D]."""
    return (gate * values.square()).sum()


def errors(labels: Tensor, probabilities: Tensor, k: int) -> float:
    """Number of images whose label is not among the top ``k``; ties count in fractions.

    ``labels`` int64 [N], ``probabilities`` [N, K]. If n classes share the label's probability, and m of them fit into
    the top k, the prediction counts as m/n correct (at k = 1: 1/n).
    """
    label_probability = probabilities.gather(1, labels[:, None])
    above = (probabilities > label_probability).sum(1)  # [N]
    equal = (probabilities == label_probability).sum(1)
    correct = ((k - above) / equal).clamp(0, 1)
    return float((1 - correct.double()).sum())
