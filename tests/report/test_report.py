"""The report of a run: its numbers against the evaluation's own, its words, and its page in a real browser."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from alexnet import api
from alexnet.bundle import weights_sha256
from alexnet.data.run_file import write_run_file
from alexnet.data.sources.layout import LayoutOptions
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import ModelError, RunError
from alexnet.evaluation import ood
from alexnet.explain import opened_run
from alexnet.explain.embedding import most_confident_mistakes
from alexnet.explain.neighbors import FILE, Neighbors
from alexnet.explain.opened_run import OpenedRun
from alexnet.export import classifier
from alexnet.plots.explanations import open_index
from alexnet.recipe import Recipe, get_recipe
from alexnet.report import facts
from alexnet.training import run

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run on image files in folders, one class of an evil name, and its report with all that it can have."""
    from alexnet.data.decode import encode_png
    from alexnet.data.sources import open_source

    home = tmp_path_factory.mktemp("home")
    digits = [p for p in open_source("digits").splits["all"] if p.label < 3][:210]
    for i, image in enumerate(digits):
        folder = home / "images" / ["zero", "one & <b>one", "two"][image.label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03d}.png").write_bytes(encode_png(np.asarray(image.load())))
    options = api.DataOptions(cache=home / "cache")
    api.train(home / "images", run=home / "run", model="lenet5", epochs=4, batch_size=16, options=options, device="cpu")
    (home / "run" / FILE).unlink(missing_ok=True)
    api.write_report(home / "run", device="cpu")
    return home


def text_of(path):
    return path.read_text(encoding="utf-8")


def words(page):
    """What a person reads, on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)).split())


def test_the_numbers_are_those_of_evaluate(home):
    page, scores = words(text_of(home / "run" / "report.html")), api.evaluate(home / "run", device="cpu")
    assert f"Mean loss {scores.loss:.4f} nats" in page
    assert f"predicts the correct one of 3 classes for {100 * scores.top1:.1f} %".replace(".0 %", " %") in page
    details = api.evaluate_detailed(home / "run", device="cpu")
    low, high = 100 * details.classes.top1.low, 100 * details.classes.top1.high
    assert f"(95 % CI {low:.1f} to {high:.1f} %)" in page
    for one in details.classes.classes:
        assert f"{one.images}" in page and one.name.split(" ")[0] in page
    assert "Nothing was chosen by the test images" in page and "lenet5, 60" in page


def test_the_doctor_and_the_neighbors_are_in_it(home):
    page = words(text_of(home / "run" / "report.html"))
    assert "Found by alexnet doctor, which examined every image" in page and "not examined" not in page
    index = Neighbors.open(home / "run" / FILE, weights_sha256(home / "run"))
    store = Store.open(json.loads(text_of(home / "run" / "run.json"))["store"])
    assert len(index) == len(store.split("train")) and "the six training images" in page


def test_how_to_make_it_again_is_the_recipe(home):
    page = text_of(home / "run" / "report.html")
    assert "--epochs 4" in page and "--batch-size 16" in page and weights_sha256(home / "run") in page
    recipe = get_recipe("modern").replace(hflip=0.0, lr_milestones=(3, 5), lr=0.01)
    line = facts.train_command({"data": "my images"}, recipe)
    assert line.startswith("alexnet train 'my images' --recipe modern")
    assert "--hflip 0.0" in line and "--lr-milestones 3 5" in line and "--lr 0.01" in line
    assert facts.train_command({"data": "x"}, Recipe(recipe="modern")).count("--") >= 1
    options = DataOptions(
        group_column="patient", exclude=Path("my list"), bad="fail", allow_truncated=True, download=True
    )
    options = options.to_args()
    said = "--group-column patient --exclude 'my list' --bad fail --download --allow-truncated"
    assert (
        facts.train_command({"data": "x", "options": options}, recipe).endswith(said) and DataOptions().to_args() == []
    )
    layout = LayoutOptions("leaves", ("a b", "c*"), "file", "kind", ";")
    assert shlex.join(DataOptions(layout=layout).to_args()) == (
        "--classes leaves --image-column file --label-column kind --delimiter ';' --ignore 'a b' --ignore 'c*'"
    )


def test_a_page_in_a_browser_needs_nothing_and_serves_everyone(home, browser):
    """At a phone's width and a desk's: nothing sticks out, nothing is asked for, all is shown, all can read it."""
    from axe_playwright_python.sync_playwright import Axe

    for width in (390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(600_000)  # a busy machine
        asked, told = [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url[:80]))
        page.on("console", lambda message, told=told: told.append(message.text))
        page.on("pageerror", lambda error, told=told: told.append(str(error)))
        page.goto((home / "run" / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.evaluate("document.images.length") > 40
        assert (
            all(url.startswith(("file:", "data:")) for url in asked)
            and sum(url.startswith("file:") for url in asked) == 1
        )
        assert told == []
        assert page.evaluate("document.querySelectorAll('script, link, iframe').length") == 0
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.close()


def test_names_of_ood_stay_text(home, tmp_path):
    run = tmp_path / EVIL.replace("/", "")
    shutil.copytree(home / "run", run)
    page = text_of(api.write_report(run, doctor=False, device="cpu"))
    assert "<script" not in page and "&lt;script&gt;" in page and "one &amp; &lt;b&gt;one" in page
    assert "not examined: it was left out on request" in words(page)


def test_what_predictioning_could_do_is_not_called_good(home, tmp_path):
    options = api.DataOptions(cache=home / "cache")
    api.train(
        home / "images",
        run=tmp_path / "run",
        model="lenet5",
        epochs=1,
        lr=1e-9,
        options=options,
        device="cpu",
        dropout=0.0,
    )
    api.write_report(tmp_path / "run", device="cpu", options=options)
    page = text_of(tmp_path / "run" / "report.html")
    assert "learning is not shown" in words(page) and '<p class="verdict plain">' in page
    learned = text_of(home / "run" / "report.html")
    assert "not shown" not in words(learned) and '<p class="verdict good">' in learned


def test_at_the_end_of_training_only_seconds_are_spent(home, tmp_path, monkeypatch):
    shutil.copytree(home / "run", tmp_path / "run")
    (tmp_path / "run" / FILE).unlink()
    config = tmp_path / "run" / "bundle" / "config.json"
    before = config.read_bytes()
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    monkeypatch.setattr(ood, "SAMPLE_IMAGES", 0)  # 5 of each class
    page = words(text_of(api.write_report(tmp_path / "run", tmp_path / "other.html", quick=True, device="cpu")))
    assert "Only 15 of the " in page and "drawn at random, were searched" in page
    assert "the six training images" in page and not (tmp_path / "run" / FILE).exists()
    assert config.read_bytes() == before and (tmp_path / "run" / "journal.jsonl").read_bytes() == journal


def test_training_shares_its_predictions_with_its_plots_and_its_report(home, tmp_path, monkeypatch):
    """The test images and the sample of training images are predicted once; the page is that of a later report."""
    predicted, sampled, splits, samples = run.predict_split, ood.sample_training_images, [], []

    def predicting(network, split, *args, **kwargs):
        splits.append(split.name)
        return predicted(network, split, *args, **kwargs)

    def sampling(*args):
        samples.append(sampled(*args))
        return samples[-1]

    for module in (run, classifier):
        monkeypatch.setattr(module, "predict_split", predicting)
    for module in (run, ood, opened_run):
        monkeypatch.setattr(module, "sample_training_images", sampling)
    options, about = api.DataOptions(cache=home / "cache"), {"model": "lenet5", "epochs": 1, "device": "cpu"}
    result = api.train(home / "images", run=tmp_path / "run", options=options, report=True, **about)
    assert splits == ["validation", "test"] and len(samples) == 1
    assert result.report == tmp_path / "run" / "report.html"
    opened = opened_run.OpenedRun(tmp_path / "run", device="cpu")
    for split, scores in result.scores.items():
        again = opened.predictions(opened.store.split(split)).scores()
        assert again.correct1 == scores.correct1 and again.loss == pytest.approx(scores.loss, rel=1e-6)
    np.testing.assert_allclose(opened.training_sample.features, samples[0].features, rtol=1e-4, atol=1e-4)
    page = api.write_report(tmp_path / "run", tmp_path / "later.html", quick=True, device="cpu", options=options)
    assert words(text_of(page)) == words(text_of(result.report))


def test_what_is_missing_is_said(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    about = json.loads(text_of(tmp_path / "run" / "run.json"))
    shutil.copytree(about["store"], tmp_path / "store")
    write_run_file(tmp_path / "run", about | {"data": str(tmp_path / "gone")})
    (tmp_path / "run" / "results.csv").unlink()
    (tmp_path / "run" / "journal.jsonl").write_text('{"event": "star')
    page = words(text_of(api.write_report(tmp_path / "run", store=tmp_path / "store", device="cpu")))
    assert "not examined: the images are not available" in page
    assert "The run has no results.csv" in page and "training time no record" in page
    with pytest.raises(RunError, match="is no run folder"):
        api.write_report(tmp_path / "run" / "bundle", device="cpu")
    with pytest.raises(RunError, match="cannot be written"):
        api.write_report(home / "run", tmp_path / "no" / "page.html", doctor=False, device="cpu")


def test_drawings_that_explain(home, tmp_path):
    run, image = home / "run", sorted((home / "images" / "two").iterdir())[0]
    for what, config in {
        "features": {"layer": "c3", "images": [image]},
        "saliency": {"target_class": "two", "images": [image]},
        "neighbors": {"count": 2},
        "embedding": {"method": "pca"},
    }.items():
        assert api.plot(what, run, tmp_path / f"{what}.png", device="cpu", **config).stat().st_size > 5000
    with pytest.raises(ModelError, match="unknown layer 'c4' of lenet5"):
        api.plot("features", run, layer="c4", device="cpu")
    with pytest.raises(ModelError, match=r"unknown class 'tow'\. Did you mean 'two'"):
        api.plot("saliency", run, target_class="tow", device="cpu")
    with pytest.raises(RunError, match="curves takes no images; plots that do: features, saliency, neighbors"):
        api.plot("curves", run, images=[image])
    with pytest.raises(RunError, match="features of 2 images"):
        api.plot("features", run, images=[image, image])
    with pytest.raises(RunError, match="--count 0; must be at least 1"):
        api.plot("neighbors", run, count=0)


def test_near_identical_mistakes_are_one_mistake(tmp_path):
    """Five mistakes on two images that are nearly the same each: two are shown, the surest of each."""
    from alexnet.data.decode import encode_png
    from alexnet.evaluation.evaluate import SplitPredictions

    draw = np.random.default_rng(0)
    bases = np.kron(draw.integers(0, 256, (4, 6, 6, 3)), np.ones((1, 8, 8, 1)))
    for number, base in enumerate((0, 0, 0, 1, 1, 2, 3)):
        image = (bases[base] + draw.integers(-2, 3, bases[base].shape)).clip(0, 255).astype(np.uint8)
        place = tmp_path / "set" / "test" / "ab"[number == 6]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(encode_png(image))
    shutil.copytree(tmp_path / "set" / "test", tmp_path / "set" / "train")
    split = api.prepare(tmp_path / "set", tmp_path / "store", Recipe(stored_size=48)).split("test")
    sure = np.array([0.6, 0.9, 0.7, 0.8, 0.95, 0.1, 0.9])  # of class b
    rows = np.log(np.stack([1 - sure, sure], axis=1)).astype(np.float32)
    predictions = SplitPredictions("test", 1, split.labels, rows)
    shown, near = most_confident_mistakes(split, predictions, 1.0, 10)
    assert [Path(name).name for name in shown.names] == ["4.png", "1.png"] and near == [1, 2]
    shown, near = most_confident_mistakes(split, predictions, 1.0, 1)
    assert [Path(name).name for name in shown.names] == ["4.png"] and near == [1]
    right = SplitPredictions("test", 1, split.labels, rows[:, ::-1] * 0 + np.eye(2, dtype=np.float32)[split.labels])
    assert len(most_confident_mistakes(split, right, 1.0, 10)[0]) == 0


def test_a_stale_index_is_made_anew_in_one_line(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    classifier, told = api.load(home / "run", "cpu"), []
    store = Store.open(json.loads(text_of(home / "run" / "run.json"))["store"])
    Neighbors.build(tmp_path / "run" / FILE, classifier.bundle, store, "ab" * 32)
    index = open_index(OpenedRun(tmp_path / "run", device="cpu"), told.append)
    assert index.weights == weights_sha256(home / "run")
    assert re.match(r"index .* was made with other weights, SHA-256 abababababab…: it is built again", told[0])
    told.clear()
    open_index(OpenedRun(tmp_path / "run", device="cpu"), told.append)
    assert told == []
