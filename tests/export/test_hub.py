"""Bundles in the shape of Hugging Face; the hub is a folder here, behind its library's documented functions."""

import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import alexnet
from alexnet.errors import BundleError, DataError, RecipeError
from alexnet.export.classifier import Classifier
from alexnet.export.hub import FILES
from alexnet.system import choose_device


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "hub"

    class HfApi:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, *, private=None, exist_ok=False):
            if self.token == "wrong":
                raise PermissionError("401 Client Error\nInvalid username or password.")
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            (root / repo_id / ".private").write_text(str(private))
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            (root / repo_id / ".gitattributes").write_text(commit_message)

    def snapshot_download(repo_id, *, revision=None, token=None, allow_patterns=None):
        if not (root / repo_id).is_dir() or revision == "nowhere":
            raise FileNotFoundError(f"404 Client Error: {repo_id} at {revision}")
        target = tmp_path / "cache" / repo_id
        for pattern in allow_patterns:
            for file in (root / repo_id).glob(pattern):
                (target / file.relative_to(root / repo_id)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / file.relative_to(root / repo_id))
        return str(target)

    module = types.ModuleType("huggingface_hub")
    module.HfApi, module.snapshot_download = HfApi, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return root


def test_there_and_back(cifar, hub, tmp_path):
    classifier = Classifier(cifar)
    images = [np.full((40, 50, 3), v, np.uint8) for v in (10, 200)]
    expected = classifier.probabilities(images)
    folder = classifier.save_pretrained(tmp_path / "folder")
    assert np.array_equal(alexnet.from_pretrained(folder).probabilities(images), expected)
    assert classifier.push_to_hub("me/digits", private=True, message="First") == "https://huggingface.co/me/digits"
    assert (hub / "me/digits/.private").read_text() == "True"
    assert (hub / "me/digits/.gitattributes").read_text() == "First"
    found = alexnet.from_pretrained("me/digits")
    assert found.classes == cifar.classes
    assert np.array_equal(found.probabilities(images), expected)


@pytest.mark.parametrize("make", [alexnet.from_pretrained, Classifier.load])
def test_every_way_to_open_a_classifier_takes_auto(saved_bundle, make):
    classifier = make(saved_bundle, device="auto")
    assert classifier.device == next(classifier.network.parameters()).device == choose_device("auto")
    with pytest.raises(RecipeError, match="must be auto, cpu, cuda or cuda:N"):
        make(saved_bundle, device="gpu")


def test_the_patterns_take_all_of_a_bundle(saved_bundle):
    taken = {p for pattern in FILES for p in saved_bundle.glob(pattern)}
    assert taken == {p for p in saved_bundle.rglob("*") if p.is_file()}


def test_a_byte_changed_on_the_hub(cifar, hub):
    Classifier(cifar).push_to_hub("me/digits")
    (hub / "me/digits/model.safetensors").write_bytes(b"something else")
    with pytest.raises(BundleError, match=r"model\.safetensors has changed"):
        alexnet.from_pretrained("me/digits")


def test_errors_are_one_line(cifar, hub, monkeypatch):
    with pytest.raises(BundleError, match=r"me/nothing could not be fetched .*: 404 Client Error") as caught:
        alexnet.from_pretrained("me/nothing")
    with pytest.raises(BundleError, match=r"could not be pushed .*401 Client Error Invalid username") as pushed:
        Classifier(cifar).push_to_hub("me/digits", token="wrong")
    assert "\n" not in str(caught.value) + str(pushed.value)
    for name in ("../nowhere", "/nowhere", "a/b/c"):
        with pytest.raises(BundleError, match=r"there is no folder|holds no bundle"):
            alexnet.from_pretrained(name)
    with pytest.raises(DataError, match="a path is empty"):
        alexnet.from_pretrained("")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match=r"needs huggingface_hub; must be installed; pip install 'alexnet\[hub\]'"):
        alexnet.from_pretrained("me/digits")


def test_the_card_s_header_is_what_the_hub_reads(saved_bundle, cifar, tmp_path):
    import dataclasses

    lines = (saved_bundle / "README.md").read_text().splitlines()
    assert lines[0] == "---"
    header = lines[1 : lines.index("---", 1)]
    assert "library_name: alexnet" in header
    assert "pipeline_tag: image-classification" in header
    assert "  results: []" in header
    scores = {"count": 4, "crops": 1, "top1": 0.75, "top5": 1.0, "loss": 0.5}
    named = dataclasses.replace(cifar, metrics={"test": scores}, data={"name": 'my: "photos"\n'})
    card = (named.save(tmp_path / "bundle") / "README.md").read_text()
    assert 'dataset: {name: "my: \\"photos\\"\\n", type: "my: \\"photos\\"\\n", split: "test"}' in card
    assert "metrics: [{type: accuracy, value: 0.750000}]" in card


def test_a_snapshot_of_links_into_the_repository_s_blobs_is_read(cifar, tmp_path, monkeypatch, saved_bundle):
    """As the library's cache lays a repository; links that lead out of it are refused."""
    repository = tmp_path / "models--me--digits"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    blobs.mkdir(parents=True)
    for k, file in enumerate(p for p in saved_bundle.rglob("*") if p.is_file()):
        link = snapshot / file.relative_to(saved_bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / str(k))
        link.symlink_to(os.path.relpath(blobs / str(k), link.parent))
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = lambda *_, **__: str(snapshot)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    assert alexnet.from_pretrained("me/digits").classes == cifar.classes
    with pytest.raises(BundleError, match="link out of the folder"):
        alexnet.load(snapshot)
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to(saved_bundle / "README.md")
    with pytest.raises(BundleError, match=r"README\.md is a link out of the folder"):
        alexnet.from_pretrained("me/digits")
