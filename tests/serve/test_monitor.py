"""``serve --monitor`` and ``alexnet monitor``: what is counted, where it is written, and that no image is."""

import dataclasses
import json

import numpy as np
import pytest

from alexnet import cli
from alexnet.data.decode import encode_png
from alexnet.errors import ServerError
from alexnet.evaluation.drift import DISTANCE, read_days
from alexnet.evaluation.ood import fit_reference
from alexnet.export.classifier import Classifier
from alexnet.serve import service
from alexnet.serve.monitor import Monitor

from .conftest import form, threaded
from .test_run import wait


def test_a_server_counts_what_it_predicts(cifar, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "FLUSH_SECONDS", 0.05)
    folder = tmp_path / "monitor"
    images = [np.full((40 + i, 50, 3), 30 * i, np.uint8) for i in range(6)]
    reference = fit_reference(cifar.network, digits, cifar.normalization)
    saved_bundle = dataclasses.replace(cifar, feature_reference=reference).save(tmp_path / "bundle")
    files = [(f"secret-{i}.png", encode_png(image)) for i, image in enumerate(images)]
    with threaded(saved_bundle, monitor=folder, confidence_threshold=0.9) as server:
        body, kind = form(*files, ("broken.png", b"no image"))
        assert server.ask("POST", "/v1/predict", body, {"Content-Type": kind}).status == 200
        text = server.get("/metrics").body.decode()
        wait(lambda: any(folder.iterdir()))  # written while the server runs, without another request
    (day,) = read_days(folder)
    rows, ranks = Classifier.load(saved_bundle).probabilities_and_distances(images)
    expected = np.bincount(rows.argmax(1), minlength=len(rows[0]))
    assert day.predicted == expected.tolist() and day.images == 6 and day.failed == 1
    assert day.abstained == int((rows.max(1) < 0.9).sum())
    assert [i for i, count in enumerate(day.brightness) for _ in range(count)] == [int(30 * i // 16) for i in range(6)]
    assert sum(day.pixels) == sum(day.confidence) == 6
    assert day.distance == np.bincount(np.searchsorted(DISTANCE, ranks, "right"), minlength=12).tolist()
    label = day.classes[int(rows[0].argmax())]
    assert f'alexnet_predicted_total{{label="{label}"}}' in text and "alexnet_brightness_bucket" in text
    assert "alexnet_feature_distance_count 6.0" in text and "alexnet_pixels_count 6.0" in text
    (file,) = folder.iterdir()
    assert file.name.startswith(f"{day.date}.{day.model_sha256[:12]}.")
    assert b"secret" not in file.read_bytes() and len(file.read_bytes()) < 3000


def test_a_folder_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="--monitor"):
        Monitor(tmp_path / "file")


def test_the_command(tmp_path, capsys):
    from evaluation.test_drift import dates, day

    generator = np.random.default_rng(0)
    for date in dates(9):
        shares = np.array([0.4, 0.0, 0.2, 0.1]) if date.endswith("09") else np.array([0.4, 0.3, 0.2, 0.1])
        (tmp_path / f"{date}.json").write_bytes(day(generator, date, shares=shares).to_json())
    words = ["monitor", str(tmp_path)]
    assert cli.run([*words, "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert out.count("first days") == 7 and "classes (p = " in out and "1 % of days raise an alarm" in out
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="alarm"') == 1 and "Predicted classes on 2026-11-09" in page and "<td>0.0 %</td>" in page
    assert cli.run([*words, "--exit-code", "--json"]) == 1
    plain = json.loads(capsys.readouterr().out)
    assert [bool(one["alarms"]) for one in plain] == [False] * 8 + [True]
    assert cli.run([*words, "--baseline-days", "0"]) == 2 and cli.run([*words, "--false-alarms", "2"]) == 2
    assert "--false-alarms is 2.0; must be a fraction" in capsys.readouterr().err
    assert cli.run(["monitor", str(tmp_path / "nowhere")]) == 1
