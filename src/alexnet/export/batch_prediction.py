"""Prediction of many images: decoded on all cores beside the network, results written as they come; without PyTorch.

Results go to ``FILE.partial`` first, one line of JSON an image, below a line with the settings. At the end they become
FILE in its own format. An interrupted prediction continues behind the last whole batch of FILE.partial. Since every
batch then has the images that it would have had, the results are bit for bit those of an uninterrupted prediction.
"""

import csv
import fcntl
import io
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alexnet.data import resize
from alexnet.data.atomic_io import atomic_write, crc_matches, line_with_crc, remove_leftovers, sha256_of
from alexnet.data.remote import is_address, local_path
from alexnet.data.shards import map_in_order, ray_cluster
from alexnet.data.sources.unlabeled import UnlabeledImage, UnlabeledImages
from alexnet.errors import BundleError, ImageError, RecipeError, RunError, no_files, printable
from alexnet.evaluation.conformal import check_level
from alexnet.export.exported_model import ExportedModel
from alexnet.export.prediction import (
    Prediction,
    as_pixels,
    best,
    check_threshold,
    conformal_limits,
    threshold_for,
)
from alexnet.system import cores
from alexnet.terminal import Progress, csv_cell

EXPORTED = (".onnx", ".xml")  # suffixes of exported files that predict here
_READERS = 32  # threads where images are at an address: most of them wait
_FORMAT, _VERSION = "alexnet-predictions", 2


class Unreadable(NamedTuple):
    """An image that could not be read, and why."""

    filename: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return self._asdict()


Result: TypeAlias = Prediction | Unreadable


@dataclass(frozen=True)
class PredictionOptions:
    """How many images are predicted.

    Attributes:
        top: predictions per image.
        crops: 1: center crop; 9 or 10: the mean of so many crops.
        confidence_threshold: predictions abstain below this probability; None: never.
        target_risk: likewise, with the bundle's threshold for this fraction of wrong predictions.
        conformal: add prediction sets that hold the true class in this fraction of images; of a bundle, center crops.
        batch_size: images of one pass through the network.
        num_workers: decoding threads; None: one for each core, 32 where images are at an address.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32`` or ``bf16``.
        engine: ``threads`` of this process, or ``ray``: the machines of a Ray cluster, which need the model and the
            images at the same path.
    """

    top: int = 5
    crops: Literal[1, 9, 10] = 1
    confidence_threshold: float | None = None
    target_risk: float | None = None
    conformal: float | None = None
    batch_size: int = 32
    num_workers: int | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    engine: Literal["threads", "ray"] = "threads"

    def check(self) -> None:
        """Raise :class:`RecipeError` for an invalid value."""
        check_threshold(self.confidence_threshold, self.target_risk)
        check_level(self.conformal)
        if self.conformal is not None and self.crops != 1:
            raise RecipeError(f"--conformal with --crops {self.crops}", "the center crop, which its thresholds are for")
        for name, value in (("top", self.top), ("batch-size", self.batch_size), ("num-workers", self.num_workers)):
            if value is not None and value < 1:
                raise RecipeError(f"--{name} is {value}", "at least 1")
        if self.engine not in ("threads", "ray"):
            raise RecipeError(f"--engine is {self.engine!r}", "threads or ray")


class PredictionSummary(NamedTuple):
    """What :func:`predict_files` wrote."""

    path: Path
    images: int  # results in the file
    unreadable: int  # of them
    resumed: int  # of them, from an interrupted call
    seconds: float


class _Decoded(NamedTuple):
    """A decoded image: RGB uint8 [H, W, 3]."""

    filename: str
    pixels: NDArray[np.uint8]


class BatchPredictor:
    """A run, a bundle or an exported file that predicts batches of images.

    Attributes:
        sha256: identifies the model: the SHA-256 of a bundle's ``config.json``, which holds those of its other files,
            or of an exported file.
        threshold: predictions abstain below this probability; None: never.
        limits: a class is in the prediction set from this probability on [K]; None: there are no sets.
    """

    def __init__(self, model: str | Path, options: PredictionOptions) -> None:
        options.check()
        path, self.options = local_path(model), options
        self._path = path.absolute()
        self._model: Any
        if path.suffix in EXPORTED and not path.is_dir():
            self._open_exported(path)
        else:
            self._open_bundle(path)
        self.threshold = options.confidence_threshold
        if options.target_risk is not None:
            self.threshold = threshold_for(self._thresholds, options.target_risk, str(model))
        self.limits: tuple[float, ...] | None = None
        if options.conformal is not None:
            self.limits = conformal_limits(self._conformal, options.conformal, str(model))

    def _open_bundle(self, path: Path) -> None:
        from alexnet.bundle import find_bundle
        from alexnet.export.classifier import Classifier

        bundle = find_bundle(path)
        classifier = Classifier.load(bundle, self.options.device, self.options.precision)
        self._model, self._thresholds = classifier, dict(classifier.bundle.thresholds)
        self._conformal = classifier.bundle.conformal
        self.sha256 = sha256_of(bundle / "config.json")
        self._resizes = False  # the model: images are resized here
        self._keywords = {"crops": self.options.crops}

    def _open_exported(self, path: Path) -> None:
        crops, precision = self.options.crops, self.options.precision
        if self.options.conformal is not None:
            raise BundleError("--conformal has no effect on an exported file", "", "predict with the bundle or the run")
        if crops != 1:
            raise BundleError(f"--crops {crops} of an exported file", "1, the center", "ten crops need the bundle")
        if precision != "fp32":
            raise BundleError(f"--precision {precision} of an exported file", "that of the file", "leave it out")
        model = ExportedModel.load(path)
        self._model, self._thresholds = model, dict(model.manifest.thresholds)
        self.sha256 = sha256_of(path)
        self._resizes = model.manifest.input == "images"
        self._keywords = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What the results depend on, apart from the images."""
        options = self.options
        names = ("top", "crops", "precision", "batch_size")
        sets = {} if options.conformal is None else {"conformal": options.conformal}
        values = {name: getattr(options, name) for name in names}
        return {"model": self.sha256, "threshold": self.threshold} | values | sets

    @property
    def columns(self) -> tuple[str, ...]:
        """What each result has besides its predictions."""
        return ("abstained",) * (self.threshold is not None) + ("prediction_set",) * (self.limits is not None)

    def expect(self, images: int) -> None:
        """Prepare for so many images: compile the kernels where that saves time."""
        resize.expect(images)
        if not isinstance(self._model, ExportedModel):
            self._model.expect(images * self.options.crops)

    def decode(self, image: UnlabeledImage) -> _Decoded:
        """Load, decode and resize an image; safe in many threads. Raises :class:`ImageError`."""
        pixels = as_pixels(image.load(), image.name)
        return _Decoded(image.name, pixels if self._resizes else self._model.prepare(pixels, image.name))

    def stream(self, inputs: Sequence[str | Path]) -> Iterator[Result]:
        """The result for each image of the inputs, in order."""
        images = UnlabeledImages(inputs)
        for batch in self.batches(images, images.count()):
            yield from batch

    def batches(self, images: UnlabeledImages, total: int, done: int = 0) -> Iterator[list[Result]]:
        """The results of each batch, from image ``done`` on; ``total`` is the number of images."""
        rest = itertools.islice(images, done, None)
        remote = any(is_address(entry) for entry in images.inputs)
        if self.options.engine == "ray":
            return _predicted_on_ray(self._path, self.options, rest, total, remote)
        self.expect(total)
        workers = max(_READERS, cores()) if remote else cores()
        return _predicted(self, rest, self.options.num_workers or workers)

    def predict(self, batch: Sequence[_Decoded | Unreadable]) -> list[Result]:
        """The results for the images of a batch, in order."""
        pixels = [image.pixels for image in batch if not isinstance(image, Unreadable)]
        rows = iter(self._model.probabilities(pixels, batch_size=len(pixels), **self._keywords) if pixels else ())
        return [
            image
            if isinstance(image, Unreadable)
            else best(image.filename, next(rows), self._model.classes, self.options.top, self.threshold, self.limits)
            for image in batch
        ]


def stream_predictions(model: str | Path, inputs: Sequence[str | Path], **options: Any) -> Iterator[Result]:
    """Predict images one after the other; decoding runs ahead on other cores, and the memory does not grow.

    Args:
        model: a run, a bundle, FILE.onnx or FILE.xml.
        inputs: files, folders, ``.tar`` and ``.parquet`` files, globs, and addresses (``s3://bucket/folder/``).
        **options: fields of :class:`PredictionOptions`, such as ``top=1``.

    Yields:
        A :class:`Prediction` or an :class:`Unreadable` for each image, in the order of the inputs.

    Example:
        >>> import alexnet
        >>> for result in alexnet.stream_predictions("my-run", ["photos/"], top=1):
        ...     print(result.to_dict())

    Raises:
        AlexNetError: the model or an option is wrong, or an input has no images.
    """
    yield from BatchPredictor(model, PredictionOptions(**options)).stream(inputs)


def predict_files(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
    **options: Any,
) -> PredictionSummary:
    """Predict images and write the results to a file. The same call after an interruption continues.

    Args:
        model: a run, a bundle, FILE.onnx or FILE.xml.
        inputs: files, folders, ``.tar`` and ``.parquet`` files, globs, and addresses (``s3://bucket/folder/``).
        output: FILE.csv, FILE.jsonl or FILE.parquet. Until it is complete, the results are in FILE.partial.
        progress: called with the number of images done and in total.
        log: called with a line for each image that cannot be read, and one where an earlier call is continued.
        **options: fields of :class:`PredictionOptions`, such as ``top=1``.

    Example:
        >>> import alexnet
        >>> alexnet.predict_files("my-run", ["photos/"], "predictions.csv", top=1)  # doctest: +SKIP

    Raises:
        RunError: the file exists, or FILE.partial has results of other images or settings.
        AlexNetError: the model or an option is wrong, or an input has no images.
    """
    path = local_path(output)
    convert = _converter(path)
    with _Journal.open(path) as journal:
        images = UnlabeledImages(inputs)
        total, predictor = images.count(), BatchPredictor(model, PredictionOptions(**options))
        done = resumed = journal.resume(predictor.settings, images, total)
        if resumed and log:
            log(f"continuing after {resumed:,} of {total:,} images ({journal.path})")
        if progress:
            progress(done, total)
        started = time.perf_counter()
        for batch in predictor.batches(images, total, done):
            journal.append(batch)
            done += len(batch)
            if log:
                for result in batch:
                    if isinstance(result, Unreadable):
                        log(printable(result.error))
            if progress:
                progress(done, total)
        with atomic_write(path) as file:
            convert(file, journal.rows(), predictor.columns)
        journal.path.unlink()
        return PredictionSummary(path, done, journal.unreadable, resumed, time.perf_counter() - started)


def _predicted(predictor: BatchPredictor, images: Iterable[UnlabeledImage], workers: int) -> Iterator[list[Result]]:
    """The results of each batch. The pool decodes the images of the next batches while the network computes."""
    read, size = partial(_read, predictor), predictor.options.batch_size
    with ThreadPoolExecutor(workers, "alexnet-decode") as pool:
        try:
            decoded = map_in_order(pool, read, images, 2 * size + 2 * workers)
            while batch := list(itertools.islice(decoded, size)):
                yield predictor.predict(batch)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _read(predictor: BatchPredictor, image: UnlabeledImage) -> _Decoded | Unreadable:
    try:
        return predictor.decode(image)
    except ImageError as error:
        if no_files(error):  # the image is not damaged
            raise
        return Unreadable(image.name, str(error))


_GROUP = 8  # batches that an actor of Ray predicts at a time


class _RayPredictor:
    """Predicts groups of images in a process of Ray, as this process would."""

    def __init__(self, model: Path, options: PredictionOptions, images: int, folder: Path) -> None:
        os.chdir(folder)  # relative paths of images begin there
        self.predictor = BatchPredictor(model, options)
        self.predictor.expect(images)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        from ray import cloudpickle

        workers = self.predictor.options.num_workers or 1
        batches = list(_predicted(self.predictor, cloudpickle.loads(row["images"]), workers))
        return {"results": cloudpickle.dumps(batches)}


def _predicted_on_ray(
    model: Path, options: PredictionOptions, images: Iterable[UnlabeledImage], total: int, remote: bool
) -> Iterator[list[Result]]:
    """The results of each batch, in order, computed by Ray Data: one process for each GPU, or for each core."""
    with ray_cluster("finished batches are kept") as ray:
        from ray.data import ActorPoolStrategy, DataContext, from_items

        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        actors = gpus or cpus
        workers = options.num_workers or (_READERS if remote else max(1, cpus // actors))
        args = (model, replace(options, num_workers=workers), total, Path.cwd())
        remaining, size = iter(images), _GROUP * options.batch_size
        groups = iter(lambda: list(itertools.islice(remaining, size)), [])
        rows = [{"images": ray.cloudpickle.dumps(group)} for group in groups]
        context = DataContext.get_current()
        context.execution_options.preserve_order, context.enable_progress_bars = True, False
        predicted = from_items(rows, override_num_blocks=len(rows)).map(
            _RayPredictor,
            fn_constructor_args=args,
            compute=ActorPoolStrategy(size=actors),
            num_cpus=max(1, cpus // actors),
            num_gpus=1 if gpus else 0,
        )
        for row in predicted.iter_rows():
            yield from ray.cloudpickle.loads(row["results"])


_LONGEST = 1 << 20  # bytes of the line with the settings, at most


class _Journal:
    """``FILE.partial``: a line with the settings, then one for each image: JSON with its CRC-32. One process only."""

    def __init__(self, output: Path, path: Path, descriptor: int) -> None:
        self.output, self.path, self.descriptor, self.unreadable = output, path, descriptor, 0

    @classmethod
    @contextmanager
    def open(cls, output: Path) -> Iterator["_Journal"]:
        """Create the file, or open that of an interrupted call. Raises RunError."""
        path = output.with_name(output.name + ".partial")
        exists = RunError(f"{output} exists", "a new file", "delete it, or choose another name")
        if output.exists() and not path.exists():
            raise exists
        if not output.parent.is_dir():
            raise RunError(f"there is no folder {output.parent}", "a folder that exists", "create it first")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RunError(f"{path} is not a regular file", "results of an interrupted call", "move it away")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{path}: another process writes it", "one process at a time", "wait for it") from error
            if not os.fstat(descriptor).st_nlink:  # another process finished meanwhile
                raise exists
            try:
                remove_leftovers(output)  # of a process that was killed while it converted the results
                yield cls(output, path, descriptor)
            finally:
                if not os.fstat(descriptor).st_size:  # its own: only this process has the lock
                    path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def resume(self, settings: Mapping[str, Any], images: Iterable[UnlabeledImage], total: int) -> int:
        """The number of images whose results are here. Results behind the last whole batch are removed.

        Raises:
            RunError: these are results of other images or settings.
        """
        header = {"format": _FORMAT, "version": _VERSION, "settings": dict(settings)}
        with self.path.open("rb") as file:
            first, line = file.readline(_LONGEST), line_with_crc(header)
            if len(first) < len(line) and line.startswith(first):  # a new file, or its first line was not finished
                os.ftruncate(self.descriptor, 0)
                self._write([header])
                return 0
            self._check_header(first, header)
            end = at = len(first)
            done = count = bad = 0
            for image, line in zip(itertools.chain(images, itertools.repeat(None)), file, strict=False):
                if not (line.endswith(b"\n") and crc_matches(line)):  # cut by a killed process, or damaged
                    break
                row = json.loads(line)
                if "filename" not in row:  # another line with the settings
                    break
                if image is None or row["filename"] != image.name:
                    current = repr(image.name) if image else "no more images"
                    problem = f"{self.path} has image {count + 1:,} {row['filename']!r}; now it is {current}"
                    raise RunError(printable(problem), "", self._other("inputs"))
                at, count, bad = at + len(line), count + 1, bad + ("error" in row)
                if count == total or count % settings["batch_size"] == 0:
                    end, done, self.unreadable = at, count, bad
        os.ftruncate(self.descriptor, end)
        return done

    def _check_header(self, line: bytes, header: Mapping[str, Any]) -> None:
        stored = json.loads(line) if crc_matches(line) else {}
        if (stored.get("format"), stored.get("version")) != (_FORMAT, _VERSION):
            raise RunError(f"{self.path} is not of this version of alexnet predict, or damaged", "", "move it away")
        before, now = stored["settings"], header["settings"]
        if before == now:
            return
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        raise RunError(f"{self.path} has results of another {' and '.join(names)}", "", self._other("options"))

    def _other(self, what: str) -> str:
        return f"Repeat the command with the {what} that began it, or delete {self.path.name} to start over"

    def append(self, results: Sequence[Result]) -> None:
        """Add the results of a batch. Raises RunError if the disk is full; the command can then be repeated."""
        self.unreadable += sum(isinstance(result, Unreadable) for result in results)
        self._write([result.to_dict() for result in results])

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        data = memoryview(b"".join(map(line_with_crc, rows)))
        try:
            while data:
                data = data[os.write(self.descriptor, data) :]
        except OSError as error:
            hint = "make room and repeat the command: it continues"
            raise RunError(f"{self.path}: {error.strerror}", "", hint) from error

    def rows(self) -> Iterator[dict[str, Any]]:
        """The results as plain values, in order."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                row = json.loads(line)
                del row["crc32"]
                yield row


# The formats of a file of results


def csv_rows(results: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[list[str]]:
    """The header and the cells of a CSV file: a row for each prediction, or one with the error of an image.

    Args:
        results: what ``Prediction.to_dict`` and ``Unreadable.to_dict`` return.
        columns: further columns, ``abstained`` and ``prediction_set``: JSON, ``true`` and ``["a", "b"]``.
    """
    yield ["filename", "rank", "label", "score", "error", *columns]
    for result in results:
        name = csv_cell(result["filename"])
        last = [json.dumps(result[key], ensure_ascii=False) if key in result else "" for key in columns]
        for rank, entry in enumerate(result.get("top_k", []), 1):
            yield [name, str(rank), csv_cell(entry["label"]), f"{entry['score']:.6f}", "", *last]
        if "error" in result:
            yield [name, "", "", "", csv_cell(result["error"]), *last]


def _write_csv(file: IO[bytes], rows: Iterator[dict[str, Any]], columns: Sequence[str]) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    csv.writer(text, lineterminator="\n").writerows(csv_rows(rows, columns))
    text.detach()


def _write_jsonl(file: IO[bytes], rows: Iterator[dict[str, Any]], columns: Sequence[str]) -> None:
    file.writelines(json.dumps(row).encode() + b"\n" for row in rows)


_ROW_GROUP = 8192  # images of one row group of a parquet file


def _write_parquet(file: IO[bytes], rows: Iterator[dict[str, Any]], columns: Sequence[str]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    top_k = arrow.list_(arrow.struct([("label", arrow.string()), ("score", arrow.float32())]))
    fields = [("filename", arrow.string()), ("label", arrow.string()), ("score", arrow.float32()), ("top_k", top_k)]
    types = {"abstained": arrow.bool_(), "prediction_set": arrow.list_(arrow.string())}
    fields += [("error", arrow.string())] + [(name, types[name]) for name in columns]
    schema = arrow.schema(fields)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP)):
            values = [{**_first(row), **row, "filename": printable(row["filename"])} for row in group]
            writer.write_table(arrow.Table.from_pylist(values, schema))


def _first(row: Mapping[str, Any]) -> dict[str, Any]:
    """Label and score of the first prediction; empty for an image that could not be read."""
    return dict(row["top_k"][0]) if "top_k" in row else {}


_FORMATS: dict[str, Callable[[IO[bytes], Iterator[dict[str, Any]], Sequence[str]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}


def _converter(path: Path) -> Callable[[IO[bytes], Iterator[dict[str, Any]], Sequence[str]], None]:
    """The function that writes the format of ``path``. Raises RunError."""
    convert = _FORMATS.get(path.suffix.lower())
    if convert is None:
        raise RunError(f"{path} is of no known format", f"a name that ends in {', '.join(_FORMATS)}")
    if convert is _write_parquet:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise RunError(f"{path}: parquet needs pyarrow", "installed", "pip install 'alexnet[data]'") from error
    return convert
