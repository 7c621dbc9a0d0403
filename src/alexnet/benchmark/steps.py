"""Whose answers are timed: a network with fresh weights on noise, or a trained one on images of its own test split.

What is 0 behind a ReLU, and what is nearly so, is what training made it: only a trained network tells how long answers
take to whom it matters, and how many of them are right.


One training step, and one answer: this project's, and what a user would pick instead.

Answers in int8: the file that ``alexnet export`` writes, and the same network as OpenVINO's own tool makes it.
"""

import functools
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet import kernels as switchboard
from alexnet.benchmark import peers
from alexnet.benchmark.runner import Candidate, Skipped, Unit, repeated
from alexnet.bundle import Bundle, find_bundle
from alexnet.data.store import Split, Store
from alexnet.errors import BundleError
from alexnet.evaluation.evaluate import autocast
from alexnet.evaluation.features import inputs_of
from alexnet.export.classifier import Classifier, Precision
from alexnet.export.export import Format, export
from alexnet.export.export_run import calibration
from alexnet.export.exported_model import ExportedModel
from alexnet.kernels import native_kernels
from alexnet.loader.augmentation import Normalization
from alexnet.models.network import Network
from alexnet.models.summary import summarize
from alexnet.recipe import Recipe
from alexnet.system import temporary_folder
from alexnet.training import optim, runtime
from alexnet.training.evaluation_data import store_of

CALIBRATION = 32  # painted images; ranges of real ones cost the same time
_POOL = 64  # images of the test split that batches are made of, as far as they go


@dataclass(frozen=True)
class Subject:
    """A model's name, and the run that trained one of it; "": nobody did."""

    model: str
    run: str = ""

    @classmethod
    def of(cls, run: Path) -> "Subject":
        """Raises :class:`BundleError` for what is no run, or one without images to test it on."""
        if not (run / "run.json").is_file():
            raise BundleError(f"--run {run}: no run", "the folder that `alexnet train --run` wrote")
        subject = cls(Bundle.load(find_bundle(run)).network.name, str(run))
        if not len(subject.test()):
            raise BundleError(f"--run {run} has no test images", "at least one", "leave --run out")
        return subject

    def bundle(self) -> Bundle:
        """The run's, or one of fresh weights with a gray mean."""
        if self.run:
            return _loaded(self.run)
        network = peers.built(self.model).eval()
        gray = Normalization(torch.full((3,), 128.0), torch.zeros(3), torch.eye(3), torch.tensor(1.0))
        classes = tuple(f"class {number}" for number in range(network.num_classes))
        stored = network.image_size if network.image_size < 200 else 256
        return Bundle(network=network, classes=classes, statistics=gray, stored_size=stored, fit="crop")

    def network(self) -> Network:
        """In channels-first memory, as it comes."""
        return self.bundle().network if self.run else peers.built(self.model)

    def shapes(self) -> Network:
        """For what is counted from its shapes."""
        return self.network() if self.run else peers.shapes(self.model)

    def test(self) -> Split:
        """The run's test split."""
        return Store.open(store_of(Path(self.run))).split("test")

    def calibration(self) -> NDArray[np.uint8]:
        """Images that ranges of int8 are measured on: of the training split, or painted ones."""
        if self.run:
            return calibration(Store.open(store_of(Path(self.run))))
        return self.stored(CALIBRATION)

    def stored(self, count: int) -> NDArray[np.uint8]:
        """Images as they are stored, uint8 [n, S, S, 3]: spread over the test split, some again if it is small."""
        if self.run:
            split = self.test()
            return split.gather(np.linspace(0, len(split) - 1, count).astype(np.int64))
        size = self.bundle().stored_size
        return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)

    def batches(self, batch: int, layout: torch.memory_format) -> list[Tensor]:
        """Different inputs [N, C, s, s] of a network, to be answered in turn; one batch of noise without a run."""
        if not self.run:
            network = self.shapes()
            return [noise(network, batch, layout)]
        bundle, many = self.bundle(), max(1, _POOL // batch)
        inputs = inputs_of(bundle.network, self.stored(many * batch), bundle.statistics)
        return [part.contiguous(memory_format=layout) for part in inputs.chunk(many)]


@functools.cache
def _loaded(run: str) -> Bundle:
    return Bundle.load(find_bundle(run))


def noise(network: Network, batch: int, layout: torch.memory_format) -> Tensor:
    """[N, C, s, s], as wide as images around their mean."""
    side, generator = network.image_size, torch.Generator().manual_seed(1)
    images = torch.randn(batch, network.in_channels, side, side, generator=generator) * 60
    return images.contiguous(memory_format=layout)


OURS, PLAIN, TORCHVISION = "alexnet", "plain PyTorch modules", "torchvision's alexnet"
ONNX, OPENVINO = "ONNX Runtime", "OpenVINO"
OFF = "kernels off"  # the reference implementation
ALL = "every product"  # --convolution plain
CPU = torch.device("cpu")
_ALIKE = 1e-3  # of the largest answer: a peer that says something else is no peer


def training(model: str, batch: int) -> list[Candidate]:
    """A step in float32 and bfloat16, in plain modules, and torchvision's."""
    network = peers.shapes(model)
    flop, theirs = _training_flop(network), _training_flop(peers.shapes(peers.TORCHVISION))
    results = [
        Candidate(f"{OURS}, {kind}", our_step, {"model": model, "batch": batch, "precision": kind}, flop, kind)
        for kind in ("fp32", "bf16")
    ]
    how = {"model": model, "batch": batch}
    results += [
        Candidate(f"{OURS}, fp32, {ALL}", our_step, how | {"convolution": "plain"}, flop),
        Candidate(f"{OURS}, fp32, {OFF}", our_step, how | {"kernels": False}, flop),
        Candidate(f"{PLAIN}, fp32", plain_step, how, flop),
    ]
    if network.image_size >= 200:
        results.append(Candidate(f"{TORCHVISION}, fp32", plain_step, {"model": None, "batch": batch}, theirs))
    return results


def inference(subject: Subject, batch: int) -> list[Candidate]:
    """Answers to a batch of images that lie in memory as numbers."""
    network = subject.shapes()
    flop, how = forward_flop(network), {"subject": subject, "batch": batch}
    results = [
        Candidate(f"{OURS}, {kind}", our_answer, how | {"precision": kind}, flop, kind) for kind in ("fp32", "bf16")
    ]
    results += [
        Candidate(f"{PLAIN}, fp32", plain_answer, how, flop),
        Candidate(f"{ONNX}, fp32", onnx_answer, how, flop),
        Candidate(f"{OPENVINO}, fp32", openvino_answer, how | {"precision": "fp32"}, flop),
        Candidate(f"{OPENVINO}, bf16", openvino_answer, how | {"precision": "bf16"}, flop, "bf16"),
    ]
    if network.image_size >= 200:
        theirs = forward_flop(peers.shapes(peers.TORCHVISION))
        results.append(Candidate(f"{TORCHVISION}, fp32", torchvision_answer, {"batch": batch}, theirs))
    return results


def forward_flop(network: Network) -> float:
    """Operations of an answer to one image."""
    return 2.0 * summarize(network).multiply_adds


def _training_flop(network: Network) -> float:
    """Forward, gradient by weights, gradient by inputs; the first layer needs none by its input."""
    first = next(row for row in summarize(network).rows if row.multiply_adds)
    return 3 * forward_flop(network) - 2.0 * first.multiply_adds


def our_step(model: str, batch: int, precision: str = "fp32", kernels: bool = True, convolution: str = "auto") -> Unit:
    """What ``training/loop.py`` does with a batch that is there."""
    tune(precision, kernels, convolution)
    network = peers.built(model).to(memory_format=torch.channels_last).train()
    rule = optim.PaperSGD(network.parameters())
    images, labels = noise(network, batch, torch.channels_last), torch.arange(batch) % network.num_classes

    def step() -> None:
        with autocast(CPU, precision):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optim.clip_grad_norm(list(network.parameters()), 0.0)
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
    """What ``Classifier`` does with images that are there as numbers."""
    tune("fp32")
    classifier = Classifier(subject.bundle(), precision=precision)
    classifier.optimize()
    return _predictions(classifier.inference, subject.batches(batch, torch.channels_last))


def plain_answer(subject: Subject, batch: int) -> Unit:
    """The same network in plain modules."""
    ours, images = subject.network().eval(), subject.batches(batch, torch.contiguous_format)
    network = peers.plain(ours).eval()
    if (apart := peers.same(network, ours, images[0][:2])) > _ALIKE:
        raise Skipped(f"it answers otherwise, by {apart:.1e} of the largest")
    return _predictions(network, images)


def torchvision_answer(batch: int) -> Unit:
    """torchvision's network, with weights that nobody trained."""
    network, images = peers.torchvision_alexnet().eval(), Subject(peers.TORCHVISION)
    return _predictions(network, images.batches(batch, torch.contiguous_format))


def _predictions(network: nn.Module, images: Sequence[Tensor]) -> Unit:
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
    native_kernels.build()
    if not kernels:
        switchboard.use("off")
    recipe = runtime.resolve_auto(Recipe().replace(precision=precision, convolution=convolution), CPU)
    if precision == "bf16" and recipe.convolution == "plain":
        _refuse_slow()
    _tuned.enter_context(runtime.cpu_settings(recipe))


def _refuse_slow() -> None:
    if runtime.choose_precision("auto", CPU) != "bf16":
        raise Skipped("bfloat16 is slower than float32 on this processor, so nobody would choose it")


def batches(quick: bool) -> Sequence[int]:
    """Batch sizes of answers."""
    return (1, 8) if quick else (1, 32, 128)


FORMATS: dict[str, Format] = {".xml": "openvino", ".onnx": "onnx"}


def int8_inference(subject: Subject, batch: int) -> list[Candidate]:
    """Answers to a batch in int8, beside the same network in plain modules, in float32."""
    flop, how = forward_flop(subject.shapes()), {"subject": subject, "batch": batch}
    return [
        Candidate(f"{OURS}, int8 file, by OpenVINO", our_file, how | {"suffix": ".xml"}, flop, "int8"),
        Candidate(f"{OURS}, int8 file, by ONNX Runtime", our_file, how | {"suffix": ".onnx"}, flop, "int8"),
        Candidate(f"{OPENVINO}, int8 by NNCF", nncf_answer, how, flop, "int8"),
        Candidate(f"{PLAIN}, fp32", plain_answer, how, flop),
    ]


def our_file(subject: Subject, batch: int, suffix: str) -> Unit:
    """``alexnet export --precision int8 --input decoded``, from stored pixels to probabilities."""
    kept = ExitStack()
    folder = kept.enter_context(temporary_folder())
    file, images = exported(subject, folder, suffix), list(subject.stored(batch))

    def answer() -> NDArray[np.float32]:
        assert kept  # the folder lives as long as this
        return file.probabilities(images, batch_size=batch)

    return repeated(answer, batch)


def exported(subject: Subject, folder: Path, suffix: str) -> ExportedModel:
    """The int8 file, written to ``folder`` and opened. Raises :class:`Skipped`."""
    path, form = folder / f"network{suffix}", FORMATS[suffix]
    try:
        export(
            subject.bundle(), path, format=form, precision="int8", input="decoded", calibration=subject.calibration()
        )
        return ExportedModel.load(path)
    except BundleError as error:
        raise Skipped(str(error)) from error


def nncf_answer(subject: Subject, batch: int) -> Unit:
    """OpenVINO called directly on the plain network, quantized by NNCF as its documentation shows."""
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed: pip install nncf openvino") from error
    nncf.set_log_level(logging.ERROR)
    network = peers.plain(subject.network()).eval()
    images = subject.batches(CALIBRATION + batch, torch.contiguous_format)[0]
    shape = [-1, *images.shape[1:]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_of: Any = openvino.convert_model(network, example_input=images[:1], input=[shape])
    ranges = nncf.Dataset([image[None].numpy() for image in images[batch:]])
    compiled = openvino.compile_model(nncf.quantize(model_of, ranges, subset_size=CALIBRATION), "CPU")
    request, numbers = compiled.create_infer_request(), images[:batch].numpy()
    return repeated(lambda: request.infer({0: numbers}), batch)


def int8_batches(quick: bool) -> Sequence[int]:
    """Batch sizes of answers; each means four conversions of the network."""
    return (8,) if quick else (1, 32)
