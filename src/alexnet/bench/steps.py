"""One training step, and one answer: this project's, and what a user would pick instead."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.bench import peers
from alexnet.bench.arena import Contender, Skipped, Unit, repeated
from alexnet.bench.subject import Subject, noise
from alexnet.deploy.classifier import Classifier, Precision
from alexnet.evaluation.evaluate import autocast
from alexnet.models import kernel
from alexnet.models.network import Network
from alexnet.models.summary import summarize
from alexnet.recipe import Recipe
from alexnet.temporary import temporary_folder
from alexnet.training import machine, optimizer

OURS, PLAIN, TORCHVISION = "alexnet", "plain PyTorch modules", "torchvision's alexnet"
ONNX, OPENVINO = "ONNX Runtime", "OpenVINO"
OFF = "kernels off"  # the slow twin
ALL = "every product"  # --convolution plain
CPU = torch.device("cpu")
_ALIKE = 1e-3  # of the largest answer: a peer that says something else is no peer


def training(model: str, batch: int) -> list[Contender]:
    """A step in float32 and bfloat16, in plain modules, and torchvision's."""
    network = peers.shapes(model)
    flop, theirs = _training_flop(network), _training_flop(peers.shapes(peers.TORCHVISION))
    found = [
        Contender(f"{OURS}, {kind}", our_step, {"model": model, "batch": batch, "precision": kind}, flop, kind)
        for kind in ("fp32", "bf16")
    ]
    how = {"model": model, "batch": batch}
    found += [
        Contender(f"{OURS}, fp32, {ALL}", our_step, how | {"convolution": "plain"}, flop),
        Contender(f"{OURS}, fp32, {OFF}", our_step, how | {"kernels": False}, flop),
        Contender(f"{PLAIN}, fp32", plain_step, how, flop),
    ]
    if network.image_size >= 200:
        found.append(Contender(f"{TORCHVISION}, fp32", plain_step, {"model": None, "batch": batch}, theirs))
    return found


def inference(subject: Subject, batch: int) -> list[Contender]:
    """Answers to a batch of pictures that lie in memory as numbers."""
    network = subject.shapes()
    flop, how = forward_flop(network), {"subject": subject, "batch": batch}
    found = [
        Contender(f"{OURS}, {kind}", our_answer, how | {"precision": kind}, flop, kind) for kind in ("fp32", "bf16")
    ]
    found += [
        Contender(f"{PLAIN}, fp32", plain_answer, how, flop),
        Contender(f"{ONNX}, fp32", onnx_answer, how, flop),
        Contender(f"{OPENVINO}, fp32", openvino_answer, how | {"precision": "fp32"}, flop),
        Contender(f"{OPENVINO}, bf16", openvino_answer, how | {"precision": "bf16"}, flop, "bf16"),
    ]
    if network.image_size >= 200:
        theirs = forward_flop(peers.shapes(peers.TORCHVISION))
        found.append(Contender(f"{TORCHVISION}, fp32", torchvision_answer, {"batch": batch}, theirs))
    return found


def forward_flop(network: Network) -> float:
    """Operations of an answer to one picture."""
    return 2.0 * summarize(network).multiply_adds


def _training_flop(network: Network) -> float:
    """Forward, gradient by weights, gradient by inputs; the first layer needs none by its input."""
    first = next(row for row in summarize(network).rows if row.multiply_adds)
    return 3 * forward_flop(network) - 2.0 * first.multiply_adds


def our_step(model: str, batch: int, precision: str = "fp32", kernels: bool = True, convolution: str = "auto") -> Unit:
    """What ``training/loop.py`` does with a batch that is there."""
    tune(precision, kernels, convolution)
    network = peers.built(model).to(memory_format=torch.channels_last).train()
    rule = optimizer.PaperSGD(network.parameters())
    images, labels = noise(network, batch, torch.channels_last), torch.arange(batch) % network.num_classes

    def step() -> None:
        with autocast(CPU, precision):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.clip(list(network.parameters()), 0.0)
        rule.step()
        rule.zero_grad()

    return repeated(step, batch, lasting=1.0)


def plain_step(model: str | None, batch: int) -> Unit:
    """A step as tutorials have it: contiguous memory, float32, ``torch.optim.SGD``. No model: torchvision's."""
    ours = peers.built(model or peers.TORCHVISION)
    network = peers.plain(ours).train() if model else peers.torchvision_alexnet().train()
    rule = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)
    images, labels = noise(ours, batch, torch.contiguous_format), torch.arange(batch) % ours.num_classes

    def step() -> None:
        rule.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        rule.step()

    return repeated(step, batch, lasting=1.0)


def our_answer(subject: Subject, batch: int, precision: Precision) -> Unit:
    """What ``Classifier`` does with pictures that are there as numbers."""
    tune("fp32")
    classifier = Classifier(subject.bundle(), precision=precision)
    classifier.hasten()
    return _answers(classifier.answering, subject.batches(batch, torch.channels_last))


def plain_answer(subject: Subject, batch: int) -> Unit:
    """The same network in plain modules."""
    ours, images = subject.network().eval(), subject.batches(batch, torch.contiguous_format)
    network = peers.plain(ours).eval()
    if (apart := peers.same(network, ours, images[0][:2])) > _ALIKE:
        raise Skipped(f"it answers otherwise, by {apart:.1e} of the largest")
    return _answers(network, images)


def torchvision_answer(batch: int) -> Unit:
    """torchvision's network, with weights that nobody trained."""
    network, images = peers.torchvision_alexnet().eval(), Subject(peers.TORCHVISION)
    return _answers(network, images.batches(batch, torch.contiguous_format))


def _answers(network: nn.Module, images: Sequence[Tensor]) -> Unit:
    turns = itertools.cycle(images)

    def answer() -> Tensor:
        with torch.inference_mode():
            out: Tensor = network(next(turns))
        return out

    return repeated(answer, len(images[0]))


def onnx_answer(subject: Subject, batch: int) -> Unit:
    """ONNX Runtime called directly on the same network."""
    network, (images, *more) = _plain_and_images(subject, batch)
    try:
        import onnx  # noqa: F401 - what the exporter needs
        import onnxruntime
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed: pip install 'alexnet[export]'") from error
    with temporary_folder() as folder:
        path = folder / "network.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own insides
            torch.onnx.export(network, (images,), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, turns = session.get_inputs()[0].name, _numbers(images, *more)
    _check(torch.from_numpy(session.run(None, {name: images.numpy()})[0]), network, images)
    return repeated(lambda: session.run(None, {name: next(turns)}), batch)


def openvino_answer(subject: Subject, batch: int, precision: str) -> Unit:
    """OpenVINO called directly on the same network."""
    network, (images, *more) = _plain_and_images(subject, batch)
    if precision == "bf16":
        _refuse_slow()
    try:
        import openvino
    except ImportError as error:
        raise Skipped("openvino is not installed: pip install 'alexnet[export]'") from error
    hints = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces, which PyTorch would rather not have done any more
        converted = openvino.convert_model(network, example_input=images, input=[images.shape])
    compiled = openvino.compile_model(converted, "CPU", hints)
    request, turns = compiled.create_infer_request(), _numbers(images, *more)
    request.infer({0: images.numpy()})
    _check(torch.from_numpy(request.get_output_tensor(0).data.copy()), network, images, precision)
    return repeated(lambda: request.infer({0: next(turns)}), batch)


def _plain_and_images(subject: Subject, batch: int) -> tuple[nn.Module, list[Tensor]]:
    return peers.plain(subject.network()).eval(), subject.batches(batch, torch.contiguous_format)


def _numbers(*images: Tensor) -> Iterator[NDArray[np.float32]]:
    return itertools.cycle([batch.numpy() for batch in images])


def _check(answer: Tensor, network: nn.Module, images: Tensor, precision: str = "fp32") -> None:
    with torch.inference_mode():
        right = network(images)
    apart = float((answer - right).abs().max() / right.abs().max())
    if apart > (0.1 if precision == "bf16" else _ALIKE):
        raise Skipped(f"it answers otherwise, by {apart:.1e} of the largest")


_tuned = ExitStack()  # a contender's process stays tuned to its end


def tune(precision: str, kernels: bool = True, convolution: str = "auto") -> None:
    """Do to this process what a training does; raises :class:`Skipped` for bfloat16 where nobody would choose it."""
    kernel.build()
    kernel.use(kernels)
    recipe = machine.settled(Recipe().replace(precision=precision, convolution=convolution), CPU)
    if precision == "bf16" and recipe.convolution == "plain":
        _refuse_slow()
    _tuned.enter_context(machine.tuned(recipe))


def _refuse_slow() -> None:
    if machine.choose_precision("auto", CPU) != "bf16":
        raise Skipped("bfloat16 is slower than float32 on this processor, so nobody would choose it")


def batches(quick: bool) -> Sequence[int]:
    """Batch sizes of answers."""
    return (1, 8) if quick else (1, 32, 128)
