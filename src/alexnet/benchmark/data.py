"""Candidates for decoding, loading and a trained epoch from JPEG files, of this project and of torchvision."""

import itertools
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from alexnet import recipe as recipes
from alexnet.benchmark import peers, steps
from alexnet.benchmark.runner import Candidate, Round, Unit, timed
from alexnet.benchmark.steps import OURS, PLAIN, TORCHVISION
from alexnet.data import decode, resize
from alexnet.data.prepare import prepare
from alexnet.data.sources.folders import read_folder
from alexnet.data.sources.source import is_image_name
from alexnet.data.store import Store
from alexnet.errors import DataError
from alexnet.loader.loader import Loader
from alexnet.recipe import Recipe
from alexnet.system import temporary_folder
from alexnet.training import optim
from alexnet.training.run import normalization_for

EPOCHS = 10  # over which the preparation is divided
SIZE = 256  # of stored images, as in 2012
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # torchvision's reference script has these


def decoding(folder: Path) -> list[Candidate]:
    """Candidates for JPEG file to 256×256 pixels, one core."""
    arguments = {"folder": folder}
    return [
        Candidate(OURS, our_decoding, arguments),
        Candidate("torchvision's transforms (Pillow)", torchvision_decoding, arguments),
    ]


def loading(folder: Path, batch: int) -> list[Candidate]:
    """Candidates for an epoch of training batches, without a network."""
    arguments = {"folder": folder, "batch": batch}
    return [
        Candidate(f"{OURS}, from a prepared store", our_batches, arguments),
        Candidate("ImageFolder and DataLoader, 2 workers", torchvision_batches, arguments),
    ]


def end_to_end(folder: Path, batch: int, model: str) -> list[Candidate]:
    """Candidates for JPEG files to a trained epoch; a tenth of the preparation is counted."""
    arguments = {"folder": folder, "batch": batch}
    results = [
        Candidate(f"{OURS}, {kind}", our_epoch, arguments | {"model": model, "precision": kind})
        for kind in ("fp32", "bf16")
    ]
    if peers.build_on_meta(model).image_size >= 200:
        loader = f"{TORCHVISION}, this project's loader"
        ours = arguments | {"model": peers.TORCHVISION}
        results += [
            Candidate(f"{loader}, {kind}", our_epoch, ours | {"precision": kind}, precision=kind, peer=loader)
            for kind in ("fp32", "bf16")
        ]
        return results + steps.forms(f"{TORCHVISION}, reference script", torchvision_epoch, arguments | {"model": None})
    return results + steps.forms(f"{PLAIN}, ImageFolder", torchvision_epoch, arguments | {"model": model})


def write_synthetic_images(folder: Path, count: int) -> None:
    """Write ``count`` JPEG files of 500×375 pixels in ten classes, about as large as photographs."""
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 12, 16)).astype(np.float32))
        smooth = F.interpolate(coarse, (375, 500), mode="bicubic")[0].permute(1, 2, 0).numpy()
        image = (smooth + random.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"class{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(decode.encode_jpeg(image, 90))


def check(folder: Path) -> int:
    """Return the number of images in a folder of class folders.

    Raises:
        DataError: The folder is missing or has too few images.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder}: no folder", "a folder with a folder of JPEG files for each class")
    count = len(_files(folder))
    if len({path.parent for path in _files(folder)}) < 2 or count < 20:
        raise DataError(f"--images {folder}: {count} images in class folders", "at least 20 of two classes or more")
    return count


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*/*")) if is_image_name(path.name)]


def our_decoding(folder: Path) -> Unit:
    """What ``alexnet prepare`` does with each file, in one thread."""
    files = _files(folder)
    resize.build()

    def work() -> None:
        for path in files:
            decode.fit(decode.decode(decode.read(path), str(path)), SIZE)

    return lambda: timed(work, len(files))


def torchvision_decoding(folder: Path) -> Unit:
    """Open, shorter side to 256, center: the test transforms of torchvision's reference script, without tensors."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms import v2

    files, change = _files(folder), v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE)])

    def work() -> None:
        for path in files:
            change(default_loader(str(path))).load()

    return lambda: timed(work, len(files))


def our_batches(folder: Path, batch: int) -> Unit:
    """Crops, mirrors and color noise of the paper's recipe from a store, by the loader's own thread."""
    recipe = _recipe("alexnet", batch)
    kept = ExitStack()
    store = _prepared(folder, kept.enter_context(temporary_folder()) / "store")
    loader, epochs = _loader(store, recipe, 224, 3), itertools.count()

    def work() -> None:
        assert kept  # keeps the folder
        for loaded in loader.epoch(next(epochs)):
            del loaded

    return lambda: timed(work, len(store.split("train")))


def torchvision_batches(folder: Path, batch: int) -> Unit:
    """torchvision's ImageFolder with its reference script's transforms, and PyTorch's DataLoader with two workers."""
    batches = _data_loader(folder, batch)
    return lambda: timed(lambda: [None for _ in batches], len(batches.dataset))


def our_epoch(folder: Path, batch: int, model: str, precision: str = "fp32") -> Unit:
    """``alexnet prepare`` into a new store, and an epoch from it as ``training/loop.py`` has it."""
    from alexnet.evaluation.evaluate import autocast

    device, recipe = torch.device("cpu"), _recipe(model, batch)
    steps.configure_process(precision)
    network = peers.build(model).to(memory_format=torch.channels_last).train()
    rule = optim.PaperSGD(network.parameters())

    def unit() -> Round:
        with temporary_folder() as kept:
            prepared = timed(lambda: _prepared(folder, kept / "store"), 0).seconds
            store = Store.open(kept / "store")
            waited, started = 0.0, time.perf_counter()
            batches = _loader(store, recipe, network.image_size, network.in_channels).epoch(0)
            while True:
                requested = time.perf_counter()
                loaded = next(batches, None)
                waited += time.perf_counter() - requested
                if loaded is None:
                    break
                with autocast(device, precision):
                    loss = F.cross_entropy(network(loaded.images).float(), loaded.labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optim.clip_grad_norm(list(network.parameters()), 0.0)
                rule.step()
                rule.zero_grad()
            seconds = time.perf_counter() - started + prepared / EPOCHS
            return Round(len(store.split("train")), seconds, waited)

    return unit


def torchvision_epoch(folder: Path, batch: int, model: str | None, form: peers.Form) -> Unit:
    """An epoch of torchvision's reference script, which decodes the images in every epoch."""
    step = steps.plain_step(model, form)
    batches = _data_loader(folder, batch, peers.build_on_meta(model or peers.TORCHVISION).image_size)

    def work() -> None:
        for images, labels in batches:
            step(images, labels)

    return lambda: timed(work, len(batches.dataset))


def _recipe(model: str, batch: int) -> Recipe:
    return recipes.get_recipe("paper").replace(
        model=model,
        batch_size=batch,
        stored_size=SIZE,
        validation=0.0,
        test=0.0,
        select_weights="last",
        schedule="cosine",
    )


def _prepared(folder: Path, path: Path) -> Store:
    shutil.rmtree(path, ignore_errors=True)
    return prepare(read_folder(folder), path, size=SIZE, validation=0.0, test=0.0)


def _loader(store: Store, recipe: Recipe, side: int, channels: int) -> Loader:
    return Loader(
        store.split("train"),
        recipe,
        normalization_for(store, recipe, side),
        image_size=side,
        channels=channels,
        device=torch.device("cpu"),
    )


def _data_loader(folder: Path, batch: int, side: int = 224) -> Any:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    change = v2.Compose(
        [
            v2.RandomResizedCrop(side),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(MEAN, DEVIATION),
        ]
    )
    return DataLoader(ImageFolder(str(folder), change), batch, shuffle=True, num_workers=2)
