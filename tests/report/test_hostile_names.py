"""Hostile class and file names (markup, formulas, control characters) in plots, the report and the doctor's page."""

import csv
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from alexnet import api, cli
from alexnet.bundle import Bundle
from alexnet.plots import PLOTS, canvas

CLASSES = ("<script>alert(1)</script>", "bell\x07 and \x1b[31mred", "$\\frac{1}{0}$ \u202egnp.exe")
FILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits whose classes have hostile names."""
    from alexnet.data.decode import encode_png
    from alexnet.data.sources import open_source

    home = tmp_path_factory.mktemp("hostile")
    samples = [sample for sample in open_source("digits").splits["all"] if sample.label < 3][:150]
    with (home / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for i, sample in enumerate(samples):
            name = f"{i}<b>.png"
            (home / name).write_bytes(encode_png(np.asarray(sample.load())))
            rows.writerow([name, CLASSES[sample.label]])
    options = api.DataOptions(cache=home / "cache")
    api.train(
        home / "labels.csv", run=home / "run", model="lenet5", epochs=2, batch_size=16, options=options, device="cpu"
    )
    return home / "run"


@pytest.fixture
def drawn_texts(monkeypatch):
    """The texts of the figures that are saved."""
    texts, render = [], canvas._render

    def recorded(figure):
        from matplotlib.text import Text

        png = render(figure)
        texts.extend(text for text in figure.findobj(Text) if text.get_text())
        return png

    monkeypatch.setattr(canvas, "_render", recorded)
    return texts


@pytest.mark.parametrize("kind", PLOTS)
def test_plots_draw_names_as_plain_text(run, tmp_path, kind, drawn_texts):
    options = {"count": 60, "method": "pca"} if kind == "embedding" else {}
    path = api.plot(kind, run, tmp_path / f"{kind}.png", device="cpu", **options)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert not any(text.get_parse_math() for text in drawn_texts if "$" in text.get_text())
    texts = [text.get_text() for text in drawn_texts]
    assert all(line.isprintable() for text in texts for line in text.split("\n")), texts
    if kind not in ("filters", "curves", "features", "patches", "deconvnet"):
        assert any("<script>" in text for text in texts)


def test_the_user_s_file_name_is_plain_text(run, tmp_path, drawn_texts):
    source = next(run.parent.glob("*.png"))
    shutil.copy(source, tmp_path / FILE)
    api.plot("saliency", run, tmp_path / "saliency.png", images=[tmp_path / FILE], device="cpu")
    assert any("<img src=x" in text.get_text() for text in drawn_texts)


def test_a_long_name_does_not_fill_the_report(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    bundle = Bundle.load(run / "bundle")
    names = ("x" * 10_000, "x" * 9_999 + "y", bundle.classes[2])
    shutil.rmtree(tmp_path / "run" / "bundle")
    replace(bundle, classes=names).save(tmp_path / "run" / "bundle")
    text = api.write_report(tmp_path / "run", doctor=False, quick=True, device="cpu").read_text(encoding="utf-8")
    assert "x" * 199 not in text and "x…" in text and "xy" in text  # the two are told apart


def test_the_report_and_the_doctor_s_page_escape_names(run, tmp_path, browser):
    api.write_report(run, tmp_path / "report.html", device="cpu")
    cli.run(["doctor", str(run.parent / "labels.csv"), "--html", str(tmp_path / "doctor.html")])
    for name in ("report.html", "doctor.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text, name
        assert "<script" not in text
        assert all(c in "\n\t" or c.isprintable() or c == "\xa0" for c in text), name
        assert "bell\\x07 and \\x1b[31mred" in text
        page = browser.new_page()
        page.set_default_timeout(600_000)  # a busy machine
        dialogs = []
        page.on("dialog", lambda dialog, dialogs=dialogs: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto((tmp_path / name).as_uri())
        assert page.evaluate("document.querySelectorAll('script, [onerror]').length") == 0
        assert dialogs == []
        page.close()
    assert not re.search(r"[\x00-\x08\x1b]", (tmp_path / "report.html").read_text(encoding="utf-8"))
