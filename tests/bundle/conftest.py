"""A small bundle: LeNet-5 with random weights and two reference images."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.bundle import Bundle, ReferenceSample
from alexnet.data.decode import encode_png
from alexnet.data.store import Store
from alexnet.evaluation.metrics import Scores
from alexnet.evaluation.ood import fit_reference
from alexnet.export.classifier import Classifier
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.recipe import get_recipe


def make_bundle(store: Store) -> Bundle:
    recipe = get_recipe("lenet5").replace(mean="image")
    normalization = Normalization(
        torch.from_numpy(store.mean_image),
        torch.tensor(store.color_std).float(),
        torch.tensor(store.color_axes).float(),
        torch.tensor(80.0),
    )
    bare = Bundle(
        network=create_model("lenet5", generator=torch.Generator().manual_seed(0)),
        classes=store.classes,
        normalization=normalization,
        stored_size=32,
        fit="crop",
        recipe=recipe.to_dict(),
        metrics={"test": Scores("test", 1, 50, 25, 50, 1.5, torch.ones(10, 10), 2.0).to_dict()},
        initialization="own",
        data={"name": "digits", "counts": {"train": 160}},
    )
    images = store.split("test").gather(np.arange(2))
    expected = Classifier(bare).probabilities(list(images)).tolist()
    features = fit_reference(bare.network, store, normalization)
    reference = [ReferenceSample(f"{i:02d}", encode_png(images[i]), expected[i]) for i in range(2)]
    return dataclasses.replace(bare, reference_samples=reference, feature_reference=features)


@pytest.fixture
def bundle(digits) -> Bundle:
    return make_bundle(digits)


@pytest.fixture
def saved(bundle, tmp_path) -> Path:
    return bundle.save(tmp_path / "bundle")


FILES = [
    "README.md",
    "config.json",
    "features.safetensors",
    "mean.safetensors",
    "model.safetensors",
    "reference/00.png",
    "reference/01.png",
    "reference/expected.json",
]
