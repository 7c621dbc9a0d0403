"""The command ``review`` as a process: its address, a decision, Ctrl-C, and the corrections in other commands."""

import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from PIL import Image

from alexnet.cli import execute
from alexnet.errors import AlexNetError


@pytest.fixture
def images(tmp_path):
    for number in range(24):
        path = tmp_path / "images" / ("bright", "dark")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((24, 24), 20 + number).convert("RGB").save(path)
    (tmp_path / "images" / "dark" / "broken.png").write_bytes(b"<html>")
    return tmp_path / "images"


def test_a_review_until_ctrl_c_and_its_corrections_in_the_next_commands(images, tmp_path, capsys):
    words = [sys.executable, "-m", "alexnet", "review", "images", "--no-check-labels"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=tmp_path, **pipes) as process:
        address = re.search(
            r"cases? to review at (http://127\.0\.0\.1:\d+/\S{22}/)$", process.stdout.readline().strip()
        )
        assert process.stdout.readline().startswith(f"Decisions are saved in {tmp_path / 'images.labels.csv'}.")
        with urllib.request.urlopen(address[1] + "data.json") as response:
            listed = [image["origin"] for image in json.load(response)["images"]]
        change = json.dumps([{"image": listed.index("dark/broken.png"), "action": "exclude"}]).encode()
        urllib.request.urlopen(urllib.request.Request(address[1] + "decisions", change, method="POST")).close()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=600)
    assert process.returncode == 0 and "1 decision. To use them: alexnet train images --corrections" in out, error
    corrections = str(tmp_path / "images.labels.csv")
    execute("doctor", [str(images), "--corrections", corrections, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert "unreadable" not in {finding["check"] for finding in report["findings"]}
    assert execute("prepare", [str(images), str(tmp_path / "s"), "--size", "8", "--corrections", corrections]) == 0
    assert json.loads((tmp_path / "s" / "dataset.json").read_text())["skipped"] == 0


def test_what_is_refused_before_the_work_begins(images, digits):
    for words, message in [
        ([str(images), "--port", "70000"], "--port is 70000; must be 0 to 65535"),
        ([str(digits.path)], "is a prepared store; must be images"),
    ]:
        with pytest.raises(AlexNetError, match=message):
            execute("review", words)
