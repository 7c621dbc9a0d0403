"""From a folder of images to a watched server: every step of docs/walkthrough.md, on a folder with planted faults.

The folder DATA has one folder of images for each class. The program copies a part of it to the new folder WORK and
plants faults by a seed: labels that are exchanged, copies, and files that are no images. Then it runs the commands as a
person would type them. The person is simulated: in the review the suggestions of the doctor are accepted, and doubtful
labels are answered by the truth, one by one. The clock of the server is moved, so that a week takes some minutes.

    python benchmarks/walkthrough.py DATA WORK --per-class 200 --epochs 6 --no-report --quiet --device cpu

All options behind WORK are those of ``alexnet train``. The steps, their times and what was found are printed and
written to WORK/walkthrough.txt.
"""

import argparse
import contextlib
import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from alexnet import cli
from alexnet.data.decode import decode, encode_jpeg, fit
from alexnet.data.sources.folders import image_files
from alexnet.evaluation.corruptions import corrupt

IMAGES, POOL, HELD_OUT = 0.6, 0.15, 0.25  # parts of DATA: the data set, unlabeled images, clean images for comparisons
DAYS, BASELINE = tuple(f"2026-01-{day:02}" for day in range(1, 9)), 3
SHIFTS = dict(zip(DAYS[-3:], ("blurred images", "one class vanishes", "another camera"), strict=True))
SERVER = """
import datetime, pathlib, sys
from alexnet.serve import monitor
clock = pathlib.Path(sys.argv[1])
class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(clock.read_text())
monitor.datetime = Clock
sys.argv = ["alexnet", *sys.argv[2:]]
from alexnet.cli import main
main()
"""


class Walk:
    """The folder of a walk: the truth about each image, and what was printed.

    Attributes:
        truth: Class of each image by its name without folders.
        exchanged: Names of the images with a wrong label.
        copies: Name of each copy, and that of its original.
        broken: Names of the files that are no images.
    """

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True)
        self.work, self.lines = work, []
        self.truth: dict[str, str] = {}
        self.exchanged: set[str] = set()
        self.copies: dict[str, str] = {}
        self.broken: set[str] = set()

    def say(self, text: str) -> None:
        """Print a line and keep it."""
        print(text, flush=True)
        self.lines.append(text)
        (self.work / "walkthrough.txt").write_text("\n".join(self.lines) + "\n")

    def plant(self, data: Path, args: argparse.Namespace) -> None:
        """Copy a part of DATA to the folders images, new and held-out, and plant the faults in images."""
        draw = np.random.default_rng(args.seed)
        folders = sorted(folder for folder in data.iterdir() if folder.is_dir())[: args.classes or None]
        classes = [folder.name for folder in folders]
        names: list[str] = []
        for folder in folders:
            every = image_files(folder)
            files = [every[i] for i in draw.permutation(len(every))][: args.per_class or None]
            ends = np.cumsum([round(len(files) * part) for part in (IMAGES, POOL)])
            for i, file in enumerate(files):
                part = "images" if i < ends[0] else "new" if i < ends[1] else "held-out"
                name = f"{folder.name if part != 'new' else 'new'}-{len(self.truth):05}{file.suffix.lower()}"
                self.truth[name] = folder.name
                label = folder.name
                if part == "images":
                    names.append(name)
                    if draw.random() < args.exchanged:
                        label = str(draw.choice([one for one in classes if one != label]))
                        self.exchanged.add(name)
                self.write(Path(part) / (label if part != "new" else "") / name, file.read_bytes())
        if max(args.copies, args.broken) > len(names):
            sys.exit(f"--copies {args.copies}, --broken {args.broken}: at most one for each of the {len(names)} images")
        for i, name in enumerate(draw.choice(names, args.copies, replace=False).tolist()):
            original = next((self.work / "images").rglob(name))
            copy = f"copy-{i:02}.jpg"
            self.copies[copy] = name
            self.truth[copy] = self.truth[name]
            if name in self.exchanged:
                self.exchanged.add(copy)
            content = original.read_bytes()
            if i % 2:  # every second one is smaller, and saved with a loss
                pixels = decode(content)
                content = encode_jpeg(fit(pixels, 3 * min(pixels.shape[:2]) // 4, "squash"), 75)
            self.write(original.parent.relative_to(self.work) / copy, content)
        for i, name in enumerate(draw.choice(names, args.broken, replace=False).tolist()):
            original = next((self.work / "images").rglob(name))
            file = f"broken-{i:02}.jpg"
            self.broken.add(file)
            content = original.read_bytes()
            parts = (content[: len(content) // 2], b"", b"<html>404 Not Found</html>", draw.bytes(5000))
            self.write(original.parent.relative_to(self.work) / file, parts[i % 4])
        wrong = len(self.exchanged - self.copies.keys())
        self.say(
            f"images: {len(names)} of {len(classes)} classes, {wrong} with an exchanged label; {len(self.copies)} "
            f"copies and {len(self.broken)} unreadable files in addition"
        )

    def write(self, path: Path, data: bytes) -> None:
        """Write a file below the folder of the walk."""
        (self.work / path).parent.mkdir(parents=True, exist_ok=True)
        (self.work / path).write_bytes(data)

    def run(self, *argv: object) -> str:
        """Run a command in this process, as if it had been typed in WORK; returns what it prints."""
        words = [str(word) for word in argv]
        self.say(f"\n$ alexnet {' '.join(words)}")
        started, out = time.perf_counter(), io.StringIO()
        with contextlib.chdir(self.work), contextlib.redirect_stdout(out):
            status = cli.run(words)
        self.say(f"{out.getvalue().rstrip()}\n[status {status}, {time.perf_counter() - started:.1f} s]")
        if status >= 128:  # a signal ended the command
            sys.exit(status)
        return out.getvalue()

    def found(self, step: str, origins: Sequence[str]) -> None:
        """How many of the images that a step names are planted."""
        names = {Path(origin).name for origin in origins}
        copies = sum(bool({copy, original} & names) for copy, original in self.copies.items())
        planted = self.exchanged | self.copies.keys() | set(self.copies.values()) | self.broken
        self.say(
            f"=> {step}: {len(names & self.exchanged)} of {len(self.exchanged)} exchanged labels, {copies} of "
            f"{len(self.copies)} copies (or their originals), {len(names & self.broken)} of {len(self.broken)} "
            f"unreadable files; {len(names - planted)} other images"
        )

    @contextlib.contextmanager
    def page(self, *argv: object) -> Iterator[str]:
        """Start a command that serves a page; gives the address, and ends the command by Ctrl-C."""
        words = [str(word) for word in argv]
        self.say(f"\n$ alexnet {' '.join(words)}")
        started = time.perf_counter()
        call = [sys.executable, "-c", "from alexnet.cli import main; main()", *words]
        process = subprocess.Popen(call, cwd=self.work, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines: list[str] = []
        while not (address := re.search(r"http://\S+", lines[-1] if lines else "")):
            lines.append(process.stdout.readline())
            if not lines[-1]:
                sys.exit(f"{' '.join(words)} ended with status {process.wait()}")
        try:
            yield address[0]
        finally:
            process.send_signal(signal.SIGINT)
            self.say("".join([*lines, process.stdout.read()]).rstrip())
            self.say(f"[status {process.wait()}, {time.perf_counter() - started:.1f} s]")

    def decide(self, address: str) -> None:
        """Decide on every case of the page at ``address``, as a person who knows the images."""
        page = json.loads(urllib.request.urlopen(f"{address}data.json").read())
        changes: dict[int, dict[str, object]] = {}
        doubtful = Counter[str]()
        for topic in page["topics"]:
            for case in topic["cases"]:
                for index, suggested in zip(case["images"], case["suggested"], strict=True):
                    image = page["images"][index]
                    truth = self.truth.get(Path(image["origin"]).name)
                    if not image["split"]:
                        changes[index] = {"image": index, "action": "add", "label": truth}
                    elif suggested is None or index in changes:
                        continue
                    elif suggested["action"] == "exclude":
                        changes[index] = {"image": index, "action": "exclude"}
                    else:
                        wrong = image["label"] != truth
                        doubtful["wrong" if wrong else "right"] += 1
                        action = {"action": "relabel", "label": truth} if wrong else {"action": "keep"}
                        changes[index] = {"image": index, **action}
        request = urllib.request.Request(f"{address}decisions", json.dumps(list(changes.values())).encode())
        urllib.request.urlopen(request).read()
        if doubtful:
            self.say(f"=> doubtful labels: {doubtful['wrong']} wrong, {doubtful['right']} right")

    def serve(self, images: Sequence[Path], per_day: int, seed: int) -> None:
        """Send the images of each day to the server of ``served``; on the last days something has changed."""
        clock, draw = self.work / "clock", np.random.default_rng(seed)
        vanishing = max(self.truth.values())
        words = ["serve", "served", "--monitor", "counts", "--port", "0", "--reload-interval", "1"]
        self.say(f"\n$ alexnet {' '.join(words)}")
        clock.write_text(DAYS[0])
        call = [sys.executable, "-c", SERVER, str(clock), *words]
        with (self.work / "server.log").open("w") as log:
            process = subprocess.Popen(call, cwd=self.work, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            self.say((process.stdout.readline() + process.stdout.readline()).rstrip())
            address = re.search(r"http://\S+", "".join(self.lines[-1:]))
            assert address is not None, "the server did not start"
            for day in DAYS:
                clock.write_text(day)
                started, shift = time.perf_counter(), SHIFTS.get(day, "")
                sent = [one for one in images if shift != "one class vanishes" or self.truth[one.name] != vanishing]
                chosen = draw.choice(len(sent), min(per_day, len(sent)), replace=False)
                for data in (shifted(sent[i].read_bytes(), shift) for i in chosen):
                    request = urllib.request.Request(f"{address[0]}/v1/predict", data, {"Content-Type": "image/jpeg"})
                    urllib.request.urlopen(request).read()
                seconds = time.perf_counter() - started
                self.say(f"{day}: {len(chosen)} images{f', {shift}' * bool(shift)}, {seconds:.1f} s")
            metrics = urllib.request.urlopen(f"{address[0]}/metrics").read().decode()
            shown = re.findall(r"^alexnet_(?:feature_distance|pixels|confidence)_(?:count|sum) .*$", metrics, re.M)
            self.say("\n".join(shown))
        finally:
            process.send_signal(signal.SIGTERM)
            self.say(f"[status {process.wait()}]")


def shifted(data: bytes, shift: str) -> bytes:
    """A file as it is sent on a day of the shift, one of SHIFTS or none."""
    if shift == "blurred images":
        return encode_jpeg(corrupt(decode(data), "defocus_blur", 3), 90)
    if shift == "another camera":  # half the pixels of each side, darker, warmer, and saved with more loss
        pixels = decode(data)
        small = fit(pixels, min(pixels.shape[:2]) // 2, "squash") * np.array([0.85, 0.75, 0.6])
        return encode_jpeg(small.astype(np.uint8), 60)
    return data


def main() -> None:
    """Plant the faults and walk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one folder of images for each class")
    parser.add_argument("work", type=Path, help="new folder for everything that the walk makes")
    parser.add_argument("--classes", type=int, default=0, help="the first so many classes; 0: all")
    parser.add_argument("--per-class", type=int, default=0, help="so many images of a class; 0: all")
    parser.add_argument("--exchanged", type=float, default=0.05, help="fraction of exchanged labels")
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--broken", type=int, default=20, help="unreadable files")
    parser.add_argument("--count", type=int, default=50, help="images to label that alexnet suggest chooses")
    parser.add_argument("--margin", type=float, default=3.0, help="points of accuracy, for compare and promote")
    parser.add_argument("--per-day", type=int, default=200, help="images a day for the server")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    args, train = parser.parse_known_args()
    walk = Walk(args.work.resolve())
    walk.plant(args.data, args)
    corrections = "images.labels.csv"

    walk.run("doctor", "images", "--exclude-list", "exclude.txt")
    listed = (walk.work / "exclude.txt").read_text().splitlines()
    walk.found("listed by the doctor", [line.partition("\t")[0] for line in listed if not line.startswith("#")])
    with walk.page("review", "images") as address:
        walk.decide(address)
    with (walk.work / corrections).open(newline="") as file:
        decided = [row["path"] for row in csv.DictReader(file) if row["decision"] in ("exclude", "relabel")]
    walk.found("excluded or relabeled in the review", decided)

    walk.run("train", "images", "--output-dir", "before", *train)
    walk.run("promote", "before", "served", "--data", "held-out")
    walk.run("train", "images", "--corrections", corrections, "--output-dir", "cleaned", *train)
    compared = walk.run("compare", "cleaned", "before", "--data", "held-out", "--margin", args.margin)
    with walk.page("suggest", "cleaned", "new", "--count", args.count, "--review") as address:
        walk.decide(address)
    walk.run("train", "images", "--corrections", corrections, "--output-dir", "after", *train)
    page = "compare.html"
    compared += walk.run("compare", "after", "before", "--data", "held-out", "--margin", args.margin, "--html", page)
    rates = dict(re.findall(r"(?:new|old): (\w+) +([\d.]+ %)", compared))
    walk.say(f"=> accuracy on the clean images: {', '.join(f'{name} {rate}' for name, rate in rates.items())}")
    walk.run("promote", "after", "served", "--data", "held-out", "--margin", args.margin)
    walk.serve(image_files(walk.work / "held-out"), args.per_day, args.seed)
    walk.run("monitor", "counts", "--baseline-days", BASELINE, "--html", "monitor.html")


if __name__ == "__main__":
    main()
