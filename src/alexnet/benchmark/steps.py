"""Candidates for training steps and for inference, in float32, bfloat16 and int8, and the target that is timed.

The target is a network with random weights on noise, or a trained run on its test images. Only a trained network
has realistic zeros after its ReLUs, on which the speed of inference depends.
"""

import dataclasses
import functools
import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
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
from alexnet.benchmark.peers import Form
from alexnet.benchmark.runner import Candidate, Skipped, Unit, repeated
from alexnet.bundle import Bundle, find_bundle
from alexnet.data.store import Split, Store
from alexnet.errors import BundleError
from alexnet.evaluation.evaluate import autocast, inputs_of
from alexnet.export.classifier import Classifier, Precision
from alexnet.export.export import Format, calibration, export
from alexnet.export.exported_model import ExportedModel
from alexnet.kernels import linear, native_kernels
from alexnet.loader.augmentation import Normalization
from alexnet.models.network import Network
from alexnet.models.summary import summarize
from alexnet.recipe import Recipe
from alexnet.system import temporary_folder
from alexnet.training import optim, runtime
from alexnet.training.run_folder import own_store

CALIBRATION = 32  # images for int8 ranges
_POOL = 64  # images of the test split that batches are made of


@dataclass(frozen=True)
class Target:
    """The network that is timed: a model with random weights, or the network of a run."""

    model: str
    run: str = ""
    moved: str | None = None  # where the prepared images of the run are now

    @classmethod
    def of(cls, run: Path, store: str | None = None) -> "Target":
        """Return the target of a run.

        Raises:
            BundleError: ``run`` is no run folder, or has no test images.
        """
        if not (run / "run.json").is_file():
            raise BundleError(f"--run {run}: no run", "the folder that `alexnet train --output-dir` wrote")
        target = cls(Bundle.load(find_bundle(run)).network.name, str(run), store)
        if not len(target.test()):
            raise BundleError(f"--run {run} has no test images", "at least one", "leave --run out")
        return target

    def bundle(self) -> Bundle:
        """The bundle of the run, or one with random weights and a gray mean."""
        if self.run:
            return _loaded(self.run)
        network = peers.build(self.model).eval()
        gray = Normalization(torch.full((3,), 128.0), torch.zeros(3), torch.eye(3), torch.tensor(1.0))
        classes = tuple(f"class {number}" for number in range(network.num_classes))
        stored = network.image_size if network.image_size < 200 else 256
        return Bundle(network=network, classes=classes, normalization=gray, stored_size=stored, fit="crop")

    def network(self) -> Network:
        """The network in contiguous memory."""
        return self.bundle().network if self.run else peers.build(self.model)

    def shapes(self) -> Network:
        """The network for counts that need only shapes."""
        return self.network() if self.run else peers.build_on_meta(self.model)

    def test(self) -> Split:
        """The run's test split."""
        return self.store().split("test")

    def store(self) -> Store:
        """The run's prepared images."""
        return own_store(Path(self.run), self.moved)

    def calibration(self) -> NDArray[np.uint8]:
        """Images for int8 ranges: of the training split, or noise."""
        if self.run:
            return calibration(self.store())
        return self.stored(CALIBRATION)

    def stored(self, count: int) -> NDArray[np.uint8]:
        """Stored images, uint8 [n, S, S, 3]: spread over the test split, repeated if it is small."""
        if self.run:
            split = self.test()
            return split.gather(np.linspace(0, len(split) - 1, count).astype(np.int64))
        size = self.bundle().stored_size
        return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)

    def batches(self, batch: int, layout: torch.memory_format) -> list[Tensor]:
        """Different input batches [N, C, s, s]; one batch of noise without a run."""
        if not self.run:
            network = self.shapes()
            return [noise(network, batch, layout)]
        bundle, many = self.bundle(), max(1, _POOL // batch)
        inputs = inputs_of(bundle.network, self.stored(many * batch), bundle.normalization)
        return [part.contiguous(memory_format=layout) for part in inputs.chunk(many)]


@functools.cache
def _loaded(run: str) -> Bundle:
    return Bundle.load(find_bundle(run))


def noise(network: Network, batch: int, layout: torch.memory_format) -> Tensor:
    """Noise [N, C, s, s] with the standard deviation of images around their mean."""
    side, generator = network.image_size, torch.Generator().manual_seed(1)
    images = torch.randn(batch, network.in_channels, side, side, generator=generator) * 60
    return images.contiguous(memory_format=layout)


OURS, PLAIN, TORCHVISION = "alexnet", "plain PyTorch modules", "torchvision's alexnet"
ONNX, OPENVINO = "ONNX Runtime", "OpenVINO"
OFF = "kernels off"
DIRECT = "direct convolutions"  # --convolution plain
CPU = torch.device("cpu")
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.2}  # of a peer's outputs, relative to the largest


def training(model: str, batch: int) -> list[Candidate]:
    """Candidates for a training step of this project, of plain modules and of torchvision."""
    network = peers.build_on_meta(model)
    flop, torchvision_flop = _training_flop(network), _training_flop(peers.build_on_meta(peers.TORCHVISION))
    results = [
        Candidate(f"{OURS}, {kind}", our_step, {"model": model, "batch": batch, "precision": kind}, flop, kind)
        for kind in ("fp32", "bf16")
    ]
    arguments = {"model": model, "batch": batch}
    results += [
        Candidate(f"{OURS}, fp32, {DIRECT}", our_step, arguments | {"convolution": "plain"}, flop),
        Candidate(f"{OURS}, fp32, {OFF}", our_step, arguments | {"kernels": False}, flop),
        *forms(PLAIN, plain_training, arguments, flop),
    ]
    if network.image_size >= 200:
        results += forms(TORCHVISION, plain_training, {"model": None, "batch": batch}, torchvision_flop)
    return results


def forms(peer: str, make: Callable[..., Unit], arguments: dict[str, Any], flop: float = 0.0) -> list[Candidate]:
    """A peer in PyTorch, in all its forms."""
    return [
        Candidate(f"{peer}, {form.name}", make, arguments | {"form": form}, flop, form.precision, peer)
        for form in peers.FORMS
    ]


def inference(target: Target, batch: int) -> list[Candidate]:
    """Candidates for inference of a batch that is in memory."""
    network = target.shapes()
    flop, arguments = forward_flop(network), {"target": target, "batch": batch}
    results = [
        Candidate(f"{OURS}, {kind}", our_inference, arguments | {"precision": kind}, flop, kind)
        for kind in ("fp32", "bf16")
    ]
    results += [
        *forms(PLAIN, plain_inference, arguments, flop),
        *_runtimes(arguments, flop, ("fp32", "bf16")),
    ]
    if network.image_size >= 200:
        torchvision_flop = forward_flop(peers.build_on_meta(peers.TORCHVISION))
        results += forms(TORCHVISION, torchvision_inference, {"batch": batch}, torchvision_flop)
        arguments = {"target": Target(peers.TORCHVISION), "batch": batch}
        results += _runtimes(arguments, torchvision_flop, ("fp32", "bf16"), TORCHVISION)
    return results


def _runtimes(arguments: dict[str, Any], flop: float, precisions: Sequence[str], peer: str = "") -> list[Candidate]:
    """ONNX Runtime and OpenVINO, peers of their own or forms of ``peer``, in each of ``precisions``."""
    return [
        Candidate(
            f"{peer}, {who}, {kind}" if peer else f"{who}, {kind}",
            make,
            arguments | {"precision": kind},
            flop,
            kind,
            peer or who,
        )
        for who, make in ((ONNX, onnx_inference), (OPENVINO, openvino_inference))
        for kind in precisions
    ]


def forward_flop(network: Network) -> float:
    """Operations of a forward pass of one image."""
    return 2.0 * summarize(network).multiply_adds


def _training_flop(network: Network) -> float:
    """Forward pass, gradients of weights and of inputs; the first layer needs no gradient of its input."""
    first = next(row for row in summarize(network).rows if row.multiply_adds)
    return 3 * forward_flop(network) - 2.0 * first.multiply_adds


def our_step(model: str, batch: int, precision: str = "fp32", kernels: bool = True, convolution: str = "auto") -> Unit:
    """A training step as in ``training/loop.py``, without loading."""
    configure_process(precision, kernels, convolution)
    network = peers.build(model).to(memory_format=torch.channels_last).train()
    rule = optim.PaperSGD(network.parameters())
    rule.one_pass = precision == "bf16"
    optim.use_bf16_gradients(network, rule.one_pass)
    images, labels = noise(network, batch, torch.channels_last), torch.arange(batch) % network.num_classes

    def step() -> None:
        with autocast(CPU, precision):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        rule.clip_grad_norm(0.0)
        rule.step()
        rule.zero_grad()

    return repeated(step, batch, lasting=1.0)


def plain_training(model: str | None, batch: int, form: Form) -> Unit:
    """Training steps of :func:`plain_step` on one batch of noise."""
    shapes = peers.build_on_meta(model or peers.TORCHVISION)
    step = plain_step(model, form)
    images, labels = noise(shapes, batch, torch.contiguous_format), torch.arange(batch) % shapes.num_classes
    images = form.input(images)
    return repeated(lambda: step(images, labels), batch, lasting=1.0)


def plain_step(model: str | None, form: Form) -> Callable[[Tensor, Tensor], None]:
    """A training step as in tutorials, with ``torch.optim.SGD``, on a batch and its labels. No model: torchvision's.

    Raises:
        Skipped: The outputs of the network differ from this project's.
    """
    ours = peers.build(model or peers.TORCHVISION)
    network = peers.plain(ours) if model else peers.torchvision_alexnet()
    images = noise(ours, 2, torch.contiguous_format)
    call = _in_form(network, ours if model else network, images, form, training=True)
    rule = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        rule.zero_grad()
        F.cross_entropy(call(form.input(images)).float(), labels).backward()  # type: ignore[no-untyped-call]
        rule.step()

    return step


def our_inference(target: Target, batch: int, precision: Precision) -> Unit:
    """Inference of ``Classifier`` on normalized images."""
    configure_process("fp32")
    classifier = Classifier(target.bundle(), precision=precision)
    classifier.optimize()
    return _predictions(classifier.inference, target.batches(batch, torch.channels_last))


def plain_inference(target: Target, batch: int, form: Form) -> Unit:
    """The same network in plain modules."""
    ours = target.network()
    return _inference_in_form(peers.plain(ours), ours, target.batches(batch, torch.contiguous_format), form)


def torchvision_inference(batch: int, form: Form) -> Unit:
    """torchvision's network with random weights, checked against itself in float32."""
    network, target = peers.torchvision_alexnet(), Target(peers.TORCHVISION)
    return _inference_in_form(network, network, target.batches(batch, torch.contiguous_format), form)


def _inference_in_form(network: nn.Module, reference: nn.Module, images: Sequence[Tensor], form: Form) -> Unit:
    call = _in_form(network, reference, images[0], form, training=False)
    return _predictions(call, [form.input(batch) for batch in images])


def _in_form(
    network: nn.Module, reference: nn.Module, images: Tensor, form: Form, training: bool
) -> Callable[[Tensor], Tensor]:
    """``network`` as a function in ``form``, after its outputs for ``images`` were compared with ``reference``.

    The process gets the memory settings of ``alexnet train``, so that a peer is not slowed down by the allocator.

    Raises:
        Skipped: The outputs differ, or the processor cannot compute in this form.
    """
    if form.precision == "bf16" and not linear.multiplies_bfloat16():
        raise Skipped("PyTorch multiplies bfloat16 number by number on this processor")
    if form.compiled and form.precision != runtime.choose_precision("auto", CPU):
        raise Skipped("not compiled: this processor is slower in its precision")
    _settings.enter_context(runtime.cpu_settings())
    with torch.inference_mode():
        right = reference.eval()(images)
    network = form.network(network.eval())
    # A training form is compiled for training only; its outputs are checked before that.
    call = (dataclasses.replace(form, compiled=False) if training else form).function(network)
    with torch.inference_mode():
        _compare(call(form.input(images)), right, form.precision)
    return form.function(network.train()) if training else call


def _predictions(network: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> Unit:
    turns = itertools.cycle(images)

    def output() -> Tensor:
        with torch.inference_mode():
            out: Tensor = network(next(turns))
        return out

    return repeated(output, len(images[0]))


def onnx_inference(target: Target, batch: int, precision: str) -> Unit:
    """ONNX Runtime called directly on the same network; int8 by its own static quantization."""
    network, images = _plain_and_images(target, batch)
    try:
        import onnx
        import onnxruntime
        from onnxruntime import quantization
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed: pip install 'alexnet[export]'") from error
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with temporary_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings inside the exporter
        path = folder / "network.onnx"
        torch.onnx.export(network.to(dtype), (images[0].to(dtype),), path, dynamo=True, verbose=False)
        name = onnx.load(path, load_external_data=False).graph.input[0].name
        if precision == "int8":
            ranges = iter([{name: values} for values in _calibration(target, batch)])
            reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda _: next(ranges, None)})()
            quantization.quantize_static(path, path := folder / "int8.onnx", reader, per_channel=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return _runtime_inference(lambda values: session.run(None, {name: values})[0], network, images, precision)


def openvino_inference(target: Target, batch: int, precision: str) -> Unit:
    """OpenVINO called directly on the same network; int8 by NNCF, as in its documentation."""
    network, images = _plain_and_images(target, batch)
    try:
        import openvino
    except ImportError as error:
        raise Skipped("openvino is not installed: pip install 'alexnet[export]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated in PyTorch
        model: Any = openvino.convert_model(network, example_input=images[0], input=[images[0].shape])
    if precision == "int8":
        try:
            import nncf
        except ImportError as error:
            raise Skipped("nncf is not installed: pip install nncf") from error
        nncf.set_log_level(logging.ERROR)
        ranges = _calibration(target, batch)
        model = nncf.quantize(model, nncf.Dataset(ranges), subset_size=len(ranges))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    # The rest of an int8 network is computed in bfloat16 where OpenVINO takes that to be faster.
    hints |= {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision]} if precision != "int8" else {}
    request = openvino.compile_model(model, "CPU", hints).create_infer_request()

    def output(values: NDArray[np.float32]) -> NDArray[np.float32]:
        request.infer({0: values})
        result: NDArray[np.float32] = request.get_output_tensor(0).data
        return result

    return _runtime_inference(output, network, images, precision)


def _plain_and_images(target: Target, batch: int) -> tuple[nn.Module, list[Tensor]]:
    return peers.plain(target.network()).eval(), target.batches(batch, torch.contiguous_format)


def _calibration(target: Target, batch: int) -> list[NDArray[np.float32]]:
    """Input batches for int8 ranges, together at least :data:`CALIBRATION` images, apart from those that are timed."""
    count = -(-CALIBRATION // batch)
    images = target.batches((count + 1) * batch, torch.contiguous_format)[0]
    return [part.numpy() for part in images.chunk(count + 1)[1:]]


def _runtime_inference(
    function: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    network: nn.Module,
    images: Sequence[Tensor],
    precision: str,
) -> Unit:
    """A unit of ``function``, after its outputs were compared with the network's."""
    with torch.inference_mode():
        right = network.float()(images[0])
    turns = itertools.cycle([batch.numpy() for batch in images])
    _compare(torch.from_numpy(function(next(turns)).copy()), right, precision)
    return repeated(lambda: function(next(turns)), len(images[0]))


def _compare(outputs: Tensor, right: Tensor, precision: str) -> None:
    """Raise :class:`Skipped` unless a peer's outputs equal the reference's to the tolerance of its precision."""
    difference = float((outputs.float() - right).abs().max() / right.abs().max())
    if not difference <= _TOLERANCE[precision]:  # also if it is not finite
        raise Skipped(f"its outputs differ by {difference:.1e} of the largest")


_settings = ExitStack()  # kept until the candidate's process ends


def configure_process(precision: str, kernels: bool = True, convolution: str = "auto") -> None:
    """Apply the process settings of a training.

    Raises:
        Skipped: bfloat16 would be slower than float32 on this processor.
    """
    native_kernels.build()
    if not kernels:
        switchboard.use("off")
    recipe = runtime.resolve_auto(Recipe().replace(precision=precision, convolution=convolution), CPU)
    if precision == "bf16" and recipe.convolution == "plain":
        _refuse_slow()
    _settings.enter_context(runtime.cpu_settings(recipe))


def _refuse_slow() -> None:
    if runtime.choose_precision("auto", CPU) != "bf16":
        raise Skipped("bfloat16 is slower than float32 on this processor")


def batches(quick: bool) -> Sequence[int]:
    """Batch sizes of inference."""
    return (1, 8) if quick else (1, 32, 128)


FORMATS: dict[str, Format] = {".xml": "openvino", ".onnx": "onnx"}


def int8_inference(target: Target, batch: int) -> list[Candidate]:
    """Candidates for int8 inference, and ``Classifier`` in bfloat16 for comparison."""
    flop, arguments = forward_flop(target.shapes()), {"target": target, "batch": batch}
    results = [
        Candidate(f"{OURS}, int8 file, by {who}", exported_inference, arguments | {"suffix": suffix}, flop, "int8")
        for who, suffix in ((OPENVINO, ".xml"), (ONNX, ".onnx"))
    ]
    results += [
        Candidate(f"{OURS}, bf16", our_inference, arguments | {"precision": "bf16"}, flop, "bf16"),
        *_runtimes(arguments, flop, ("int8",)),
    ]
    if target.shapes().image_size >= 200:
        torchvision_flop = forward_flop(peers.build_on_meta(peers.TORCHVISION))
        arguments = {"target": Target(peers.TORCHVISION), "batch": batch}
        results += _runtimes(arguments, torchvision_flop, ("int8",), TORCHVISION)
    return results


def exported_inference(target: Target, batch: int, suffix: str) -> Unit:
    """``alexnet export --precision int8 --input decoded``, from stored pixels to probabilities."""
    kept = ExitStack()
    folder = kept.enter_context(temporary_folder())
    file, images = export_int8(target, folder, suffix), list(target.stored(batch))

    def output() -> NDArray[np.float32]:
        assert kept  # keeps the folder
        return file.probabilities(images, batch_size=batch)

    return repeated(output, batch)


def export_int8(target: Target, folder: Path, suffix: str) -> ExportedModel:
    """Export an int8 file to ``folder`` and load it.

    Raises:
        Skipped: The format is not available.
    """
    path, form = folder / f"network{suffix}", FORMATS[suffix]
    try:
        export(target.bundle(), path, format=form, precision="int8", input="decoded", calibration=target.calibration())
        return ExportedModel.load(path)
    except BundleError as error:
        raise Skipped(str(error)) from error


def int8_batches(quick: bool) -> Sequence[int]:
    """Batch sizes of int8 inference; each needs four conversions of the network."""
    return (8,) if quick else (1, 32)
