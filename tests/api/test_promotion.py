"""compare with a margin, promote and its way back, on real little runs."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from alexnet import api, cli
from alexnet.api import comparison
from alexnet.bundle import Bundle
from alexnet.data.atomic_io import sha256_of
from alexnet.errors import BundleError, RecipeError
from alexnet.evaluation.comparison import equivalence


@pytest.fixture
def home(trained, tmp_path):
    for name in ("run-0", "run-1"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


def spoil(bundle, kept):
    """The bundle with a last layer that never predicts the classes from ``kept`` on."""
    layer = list(bundle.network.children())[-1]
    layer.bias.data[kept:] -= 1000
    from alexnet.export.classifier import Classifier

    classifier = Classifier(bundle)
    samples = [classifier.predict_reference(one) for one in bundle.reference_samples]
    return dataclasses.replace(bundle, reference_samples=samples)


def test_compare_with_a_margin(home, digits, capsys):
    found = api.compare(home / "run-0", home / "run-1", margin=10, device="cpu")
    split = digits.split("test")
    from alexnet.export.classifier import Classifier

    new, old = (Classifier.load(home / f"run-{i}").predict_split(split) for i in (0, 1))
    expected = equivalence(old.correct, new.correct, 0.1)
    assert found.equivalence == expected
    places = np.flatnonzero(new.correct != old.correct)
    assert sorted(one.index for one in found.flips) == places.tolist()
    for one in found.flips:
        assert one.fixed == new.correct[one.index]
        assert one.true_class == str(split.labels[one.index]) and one.origin == split.origins()[one.index]["origin"]
    assert [one.name for one in found.classes] == [str(k) for k in sorted(set(split.labels.tolist()))]
    words = ["compare", str(home / "run-0"), str(home / "run-1"), "--device", "cpu", "--margin", "10"]
    assert cli.run([*words, "--html", str(home / "page.html")]) == 0
    out = capsys.readouterr().out
    for text in ("new − old", "not worse  p =", "equal      p =", "Holm", "images flip", "page "):
        assert text in out
    page = (home / "page.html").read_text()
    assert page.count("<figure>") == len(places) and "Right with the new classifier only" in page
    assert cli.run([*words, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["equivalence"]["margin"] == 0.1 and len(plain["flips"]) == len(places)
    assert cli.run([*words[:-1], "0"]) == 2
    assert "--margin is 0.0; must be points of accuracy" in capsys.readouterr().err


def test_promote_and_back(home, capsys):
    """A first bundle, one that is not worse in its place, its certificate, and the way back, byte for byte."""
    served = home / "served"
    first = api.promote(home / "run-1", served, min_recall=0.01, device="cpu")
    assert first.promoted and first.comparison is None and first.certificate["replaced"] is None
    before = {p.name: sha256_of(p) for p in served.rglob("*") if p.is_file()}
    shutil.copytree(home / "run-1" / "bundle", home / "same")  # without data of its own: that of the run is used
    result = api.promote(home / "run-1", served, margin=10, min_recall={"3": 0.01}, device="cpu")
    assert result.promoted, result.checks
    assert [check.name for check in result.checks] == ["verified", "not worse", "no class worse", "recall of 3"]
    bundle = Bundle.load(served)
    certificate = json.loads((served / "certificate.json").read_text())
    assert certificate == bundle.certificate == result.certificate
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", certificate["date"])
    assert certificate["weights_sha256"] == sha256_of(served / "model.safetensors")
    assert certificate["images"] == 50 and certificate["replaced"]["difference"]["value"] == 0
    assert all(check["holds"] for check in certificate["checks"])
    card = (served / "README.md").read_text()
    assert f"Promoted on {certificate['date']}" in card and "- no class worse: 10 classes" in card
    assert cli.run(["promote", "--back", str(served)]) == 0
    assert "is again the bundle before, promoted on" in capsys.readouterr().out
    assert {p.name: sha256_of(p) for p in served.rglob("*") if p.is_file()} == before
    assert Bundle.load(api.promote_back(served) and served).certificate == certificate  # and forth
    other = dataclasses.replace(bundle, network=Bundle.load(home / "run-0" / "bundle").network)
    other.save(home / "other")  # a certificate is one of the tested weights
    assert not (home / "other" / "certificate.json").exists() and not Bundle.load(home / "other").certificate


def test_a_bundle_that_was_replaced_while_it_was_compared_stays(home, monkeypatch):
    """Two promotions at once: what the second was compared with is not what is served."""
    served = home / "served"
    shutil.copytree(home / "run-0" / "bundle", served)
    whole = comparison.compare

    def meanwhile(*args, **kwargs):
        result = whole(*args, **kwargs)
        dataclasses.replace(Bundle.load(served), data={"name": "of the first promotion"}).save(served)
        return result

    monkeypatch.setattr(comparison, "compare", meanwhile)
    with pytest.raises(BundleError, match="was replaced by another process meanwhile; repeat the command"):
        api.promote(home / "run-1", served, margin=99, device="cpu")
    assert Bundle.load(served).data["name"] == "of the first promotion" and not (home / "served.previous").exists()


def test_what_is_worse_is_not_promoted(home, capsys):
    served = home / "served"
    assert cli.run(["promote", str(home / "run-0"), str(served), "--device", "cpu"]) == 0
    before = sha256_of(served / "config.json")
    spoil(Bundle.load(home / "run-1" / "bundle"), 5).save(home / "run-1" / "bundle")
    words = ["promote", str(home / "run-1"), str(served), "--device", "cpu", "--margin", "5"]
    assert cli.run([*words, "--min-recall", "7=0.2"]) == 1
    both = capsys.readouterr()
    assert "not promoted: not worse" in both.err and "recall of 7" in both.err and "is unchanged" in both.err
    assert "FAILED" in both.out and "passed" in both.out
    assert cli.run([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["promoted"] is False
    assert sha256_of(served / "config.json") == before and not (home / "served.previous").exists()


def test_a_bundle_that_does_not_verify_is_not_promoted(home):
    bundle = Bundle.load(home / "run-0" / "bundle")
    samples = [dataclasses.replace(one, probabilities=one.probabilities[::-1]) for one in bundle.reference_samples]
    dataclasses.replace(bundle, reference_samples=samples).save(home / "run-0" / "bundle")
    result = api.promote(home / "run-0", home / "served", device="cpu")
    assert not result.promoted and not result.checks[0].holds and not (home / "served").exists()


def test_promotions_that_can_not_be(home, capsys):
    with pytest.raises(BundleError, match="is a run folder; must be the folder of a served bundle"):
        api.promote(home / "run-0", home / "run-1")
    with pytest.raises(BundleError, match="has no previous bundle"):
        api.promote_back(home / "run-0" / "bundle")
    with pytest.raises(BundleError, match="is the served bundle itself"):
        api.promote(home / "run-0", home / "run-0" / "bundle")
    with pytest.raises(RecipeError, match=r"names '33', which is no class\. Did you mean '3'"):
        api.promote(home / "run-0", home / "served", min_recall={"33": 0.5})
    with pytest.raises(RecipeError, match="--min-recall of 3 is 50"):
        api.promote(home / "run-0", home / "served", min_recall={"3": 50})
    for words, said in (
        (["a"], "promote has 1 paths; must be NEW and SERVED"),
        (["--back", "a", "b"], "promote has 2 paths; must be SERVED"),
        (["a", "b", "--min-recall", "x"], "--min-recall is 'x'"),
        (["a", "b", "--min-recall", "0.5", "--min-recall", "3=0.5"], "--min-recall is '0.5 3=0.5'"),
    ):
        assert cli.run(["promote", *words]) == 2
        assert said in capsys.readouterr().err
