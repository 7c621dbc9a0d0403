"""A trained classifier made small: what is wanted, how it is reached, what it cost, and the folder that holds it."""

import dataclasses
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet.api.honest import replayed
from alexnet.api.provenance import note_test
from alexnet.api.shrinking import Effort, Shrunk
from alexnet.api.sizing import Job, folder_size
from alexnet.api.stages import Stage
from alexnet.batches.loader import choose_device
from alexnet.bundle import Bundle, find
from alexnet.compression import quantizing
from alexnet.compression.quantizing import Method
from alexnet.data.options import DataOptions
from alexnet.data.remote import local_path
from alexnet.data.run_file import write_run_file
from alexnet.data.writing import sha256_of, whole_folder, write_file
from alexnet.deploy.classifier import Classifier
from alexnet.errors import BundleError, RunError
from alexnet.evaluation import calibration as calibrations
from alexnet.evaluation import paired
from alexnet.evaluation.metrics import Scores
from alexnet.evaluation.paired import Paired
from alexnet.evaluation.responses import Responses, collect
from alexnet.training import run as runs
from alexnet.training.journal import append_event
from alexnet.training.retrain import own_recipe
from alexnet.visualize import compression as chart


@dataclass(frozen=True)
class Compressed:
    """What came of it. ``test``: original and compressed on the same test pictures, looked at once, at the end."""

    folder: Path
    original: Path
    method: str
    stages: list[Stage]
    original_bytes: int  # of the whole bundle: weights, golden pictures, card
    bytes: int
    chosen: str  # what chose what
    test: Paired | None
    test_scores: Scores | None
    layers: dict[str, dict[str, Any]]
    seconds: float
    max_loss: float | None = None  # points of validation accuracy that were allowed to be lost; None: any
    points_lost: float | None = None  # that were lost, negative where it has more; None: not measured

    @property
    def ratio(self) -> float:
        """How many times smaller the bundle is."""
        return self.original_bytes / self.bytes

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        words = {"folder": str(self.folder), "original": str(self.original), "ratio": self.ratio}
        weights = {
            "weights_bytes": self.stages[-1].bytes,
            "weights_ratio": self.stages[0].bytes / self.stages[-1].bytes,
        }
        return vars(self) | words | weights | {
            "stages": [stage.to_dict() for stage in self.stages],
            "test": self.test.to_dict() if self.test else None,
            "test_scores": self.test_scores.to_dict() if self.test_scores else None,
        }  # fmt: skip


def compress(
    run: str | Path,
    output: str | Path | None = None,
    data: str | Path | None = None,
    *,
    method: Method = "deep",
    target_size: int | None = None,
    max_loss: float | None = None,
    effort: Effort | None = None,
    device: str = "auto",
    workers: int = 1,
    options: DataOptions | None = None,
    quiet: bool = True,
) -> Compressed:
    """Write a much smaller copy of a run's or bundle's classifier to the new folder ``output``.

    ``target_size``: bytes of the whole bundle, at most; ``max_loss``: points of validation accuracy that may be lost,
    at most, while it is made as small as that allows. Neither: a 35th,
    or larger, until at most 1 point is lost. ``method`` deep prunes, trains again on the
    run's own pictures (or ``data``) and shares weights; int8 and int4 only round. Without pictures nothing is pruned.
    Raises :class:`BundleError` where what is asked for can not be reached; nothing is written then.
    """
    started, options = time.perf_counter(), options or DataOptions()
    job = Job(Path(run), find(run), method, target_size, max_loss, effort or Effort(), options)
    folder = local_path(output) if output is not None else Path(f"{job.name}-compressed")
    runs.refuse_used(folder, "choose another -o, or delete it")
    job.open(data, choose_device(device))
    try:
        with whole_folder(folder) as partial:
            found = job.shrink(partial, workers, quiet)
            made = _finish(job, found, partial, folder, started)
            runs.refuse_used(folder, "choose another -o, or delete it")
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise RunError(f"{folder} can not be written: {error.strerror or error}", "", "choose another -o") from error
    return made


def _finish(job: Job, found: Shrunk, partial: Path, folder: Path, started: float) -> Compressed:
    """Write the bundle, read it back, and measure what was read; only then look at the test split."""
    bundle = dataclasses.replace(job.bundle, network=found.network, coding=found.coding)
    path = _complete(job, bundle, found).save(partial / "bundle")
    read = Classifier.load(path, job.device)  # every number from here on is of the file
    size = folder_size(path)
    if job.target is not None and size > job.target:
        todo = "ask for a larger --target-size" if job.method == "deep" else "take --method deep"
        todo = "pruning needs pictures: give the run, or DATA" if job.store is None else todo
        raise BundleError(f"it takes {size:,} bytes", f"at most {job.target:,} as --target-size says", todo)
    coded = job.scale.stage(
        "coded", "the file, read back", read.bundle.network, (path / "model.safetensors").stat().st_size, rounds=2
    )
    test, scores = _test(job, read)
    if scores is not None:
        path = dataclasses.replace(
            read.bundle, metrics=dict(read.bundle.metrics) | {"test": scores.to_dict()}
        ).save(path)  # fmt: skip
    made = Compressed(
        folder, job.run, job.method, [job.first, *found.stages, coded], job.bytes, folder_size(path),
        job.chosen(), test, scores, _layers(read.bundle), round(time.perf_counter() - started, 1),
        job.max_loss, job.points_lost(coded),
    )  # fmt: skip
    _write(job, made, partial)
    return made


def _complete(job: Job, bundle: Bundle, found: Shrunk) -> Bundle:
    """With the temperature, golden answers, scores and origin of the network as it is now."""
    metrics, calibration = {}, dict(bundle.calibration)
    if job.store is not None:
        answers = _answers(job, bundle, "validation")
        made = calibrations.calibrate(answers.log_probabilities, answers.labels, answers.groups)
        calibration = made.to_dict() if made else {}
        metrics = {"validation": answers.scores().to_dict()}
    about = {
        "from": str(job.run), "sha256": sha256_of(job.place / "config.json"), "method": job.method,
        "stages": [stage.name for stage in found.stages], "kept": found.stages[-1].kept,
        "chosen_by": job.chosen(),
    }  # fmt: skip
    bundle = dataclasses.replace(
        bundle, metrics=metrics, calibration=calibration, data=dict(bundle.data) | {"compressed": about}
    )
    answering = Classifier(bundle, job.device)
    return dataclasses.replace(bundle, golden=[replayed(answering, one) for one in bundle.golden])


def _answers(job: Job, bundle: Bundle, split: str) -> Responses:
    assert job.store is not None
    network = bundle.network
    return collect(
        network, job.store.split(split), bundle.statistics, side=network.image_size,
        channels=network.in_channels, device=job.device,
    )  # fmt: skip


def _test(job: Job, read: Classifier) -> tuple[Paired | None, Scores | None]:
    if job.store is None or not len(job.store.split("test")):
        return None, None
    before, after = _answers(job, job.bundle, "test"), _answers(job, read.bundle, "test")
    note_test(str(job.run), job.store, "test", "compress", job.options.tell)
    return paired.compare(before.correct, after.correct, after.groups), after.scores()


def _write(job: Job, made: Compressed, folder: Path) -> None:
    text = json.dumps(made.to_dict(), indent=1, ensure_ascii=False)
    write_file(folder / "compression.json", text.encode())
    chart.draw(
        [(s.name, s.bytes, s.validation.top1 if s.validation else None,
          s.validation.top1_interval if s.validation else None) for s in made.stages],
        folder / "pictures" / "compression.png",
    )  # fmt: skip
    if job.store is None:
        return
    write_file(folder / "recipe.toml", own_recipe(job.bundle).to_toml().encode())
    append_event(folder / "journal.jsonl", "compressed", ratio=made.ratio)
    write_run_file(folder, {"data": job.store.address, "store": job.store.absolute, "compressed": str(job.run)})


def _layers(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What is left of each layer, for people: weights, how many are not 0, how many values they take."""
    found = {}
    for name, weight in quantizing.layers(bundle.network).items():
        flat = weight.detach().flatten()
        alive = flat[flat != 0]
        found[name] = {
            "weights": flat.numel(), "kept": alive.numel() / flat.numel(), "kind": bundle.coding[name],
            "values": torch.unique(alive).numel() if bundle.coding[name] == "shared" else None,
        }  # fmt: skip
    return found
