"""Updates in one pass beside torch.optim in float64, and the bfloat16 copies of weights."""

import copy

import pytest
import torch
from torch import nn

from alexnet import kernels
from alexnet.kernels import native_kernels, optimizer
from alexnet.training import optim

STEPS = 8
CLIP = 2.0


@pytest.fixture(autouse=True)
def compiled(native):
    if "optimizer" not in native_kernels.built():
        pytest.skip("needs a C compiler")


def weights() -> list[nn.Parameter]:
    """More than a part (32,768 values), fewer than a vector, and channels last in memory."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((70, 1001), (3,), (8, 3, 5, 5), (33,))
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    made[2].data = made[2].data.contiguous(memory_format=torch.channels_last)
    return made


def gradients(step: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    # in the memory format of the weights, as autograd makes them and PyTorch's fused updates need them
    drawn = (torch.randn(w.shape, generator=generator).mul_(0.1).to(dtype) for w in weights())
    return [torch.empty_like(w, dtype=dtype).copy_(g) for w, g in zip(weights(), drawn, strict=True)]


RULES = {
    "paper": (optim.PaperSGD, {"lr": 0.01}),
    "sgd": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "fused": True}),
    "adamw": (optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "fused": True}),
}


def train(rule, options, parameters, one_pass: bool, dtype: torch.dtype, between=lambda step, rule: rule):
    made = rule(parameters, **options)
    made.one_pass = one_pass
    norms = []
    for step in range(STEPS):
        for group in made.param_groups:
            group["lr"] = options["lr"] * (1, 0.5)[step % 2]  # the paper's rule depends on changes of the rate
        for parameter, gradient in zip(parameters, gradients(step, dtype), strict=True):
            parameter.grad = None
            parameter.grad_dtype = gradient.dtype
            parameter.grad = gradient
        norms.append(float(made.clip_grad_norm(CLIP)))
        made.step()
        made = between(step, made)
    return norms, made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_an_update_is_that_of_pytorch(name, dtype, monkeypatch):
    """The reference is PyTorch's own optimizer on float64 weights: no rounding to speak of, and none of this code."""
    rule, options = RULES[name]
    ours, exact = weights(), [nn.Parameter(w.detach().double()) for w in weights()]
    used = []
    update = optimizer._update
    monkeypatch.setattr(optimizer, "_update", lambda *args: used.append(1) or update(*args))
    norms, _ = train(rule, options, ours, True, dtype)
    assert len(used) == STEPS * len(ours)
    right = rule(exact, **options)
    for step in range(STEPS):
        for group in right.param_groups:
            group["lr"] = options["lr"] * (1, 0.5)[step % 2]
        for parameter, gradient in zip(exact, gradients(step, dtype), strict=True):
            parameter.grad = gradient.double()
        norm = nn.utils.clip_grad_norm_(exact, CLIP)
        assert norm > CLIP, "the test must clip"
        assert norms[step] == pytest.approx(float(norm), rel=1e-6)
        right.step()
    for a, b in zip(ours, exact, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-6)
        moved = min((b - w).abs().max() for w in weights() if w.shape == b.shape)
        assert moved > 1e-4, "an update must be larger than its tolerance"


@pytest.mark.parametrize("name", RULES)
def test_its_state_goes_on_in_pytorch_and_back(name):
    """A checkpoint of one is a checkpoint of the other: the state has the same names and values."""
    rule, options = RULES[name]

    def swapped(step, made):
        made.one_pass = not made.one_pass
        if step == 4:
            content = copy.deepcopy(made.state_dict())
            other = rule([p for group in made.param_groups for p in group["params"]], **options)
            optim.load_state(other, content)
            other.one_pass = made.one_pass
            return other
        return made

    ours, plain = weights(), weights()
    train(rule, options, ours, True, torch.float32, swapped)
    train(rule, options, plain, False, torch.float32)
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_without_the_kernel_gradients_in_bfloat16_are_widened():
    rule, options = RULES["sgd"]
    ours, plain = weights(), weights()
    with kernels.disabled():
        train(rule, options, ours, True, torch.bfloat16)
    train(rule, options, plain, True, torch.bfloat16)
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_without_clipping_after_one_with_it():
    rule, options = RULES["sgd"]
    (ours,), (plain,) = weights()[:1], weights()[:1]
    made, right = rule([ours], **options), torch.optim.SGD([plain], **options)
    made.one_pass = True
    for max_norm in (CLIP, 0.0):
        ours.grad, plain.grad = torch.ones_like(ours), torch.ones_like(plain)
        made.clip_grad_norm(max_norm)
        if max_norm:
            nn.utils.clip_grad_norm_([plain], max_norm)
        made.step()
        right.step()
    assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-6)


def test_a_gradient_in_another_memory_format():
    ours, plain = weights()[2], weights()[2]
    for weight, memory in ((ours, torch.contiguous_format), (plain, torch.channels_last)):
        made = optim.SGD([weight], **RULES["sgd"][1])
        made.one_pass = True
        weight.grad = gradients(0, torch.float32)[2].contiguous(memory_format=memory)
        made.step()
    assert torch.equal(ours, plain)


def test_the_number_of_threads_changes_no_bit():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            ours = weights()
            norms, _ = train(*RULES["adamw"], ours, True, torch.bfloat16)
            results.append((norms, ours))
    finally:
        torch.set_num_threads(before)
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_a_norm_that_is_not_finite_is_seen():
    (weight,) = weights()[:1]
    made = optim.SGD([weight], **RULES["sgd"][1])
    made.one_pass = True
    weight.grad = torch.zeros_like(weight)
    weight.grad[3, 7] = torch.inf
    assert not torch.isfinite(made.clip_grad_norm(CLIP))


def test_copies_follow_their_weights():
    ours = weights()
    copies = [optimizer.bf16_copy(w) for w in ours]
    train(*RULES["paper"], ours, True, torch.float32)
    for weight, kept in zip(ours, copies, strict=True):
        assert optimizer.bf16_copy(weight) is kept and torch.equal(kept, weight.detach().to(torch.bfloat16))
        assert kept.stride() == weight.stride()
    with torch.no_grad():
        ours[0].mul_(2)  # by PyTorch: noticed at the next use
    assert torch.equal(optimizer.bf16_copy(ours[0]), ours[0].detach().to(torch.bfloat16))
    with torch.no_grad():
        ours[1].add_(1)
    ours[1].grad = torch.ones_like(ours[1])
    optim.SGD([ours[1]], **RULES["sgd"][1]).step()  # a copy that is out of date is not taken for current
    assert torch.equal(optimizer.bf16_copy(ours[1]), ours[1].detach().to(torch.bfloat16))


def test_autograd_notices_an_update():
    (weight,) = weights()[:1]
    made = optim.SGD([weight], **RULES["sgd"][1])
    made.one_pass = True
    out = (weight * weight).sum()
    weight.grad = torch.ones_like(weight)
    made.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
