"""The registry of networks: its entries, and the table in docs/models.md that is made from them."""

from pathlib import Path

import pytest
import torch

from alexnet.models import create_model
from alexnet.models.registry import MODELS, TORCHVISION_MODELS
from alexnet.models.summary import summarize

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def row(name: str) -> str:
    """The line of docs/models.md about a network, from its registry entry and its layers."""
    model = (MODELS | TORCHVISION_MODELS)[name]
    with torch.device("meta"):
        summary = summarize(create_model(name))
    size = "×".join(map(str, summary.input))
    work = f"{summary.multiply_adds / 1e6:,.{1 if summary.multiply_adds >= 1e6 else 2}f} M"
    return f"| `{name}` | {model.description} | {model.source} | {size} | {summary.parameters:,} | {work} |"


@pytest.mark.parametrize("name", [*MODELS, *TORCHVISION_MODELS])
def test_an_entry_and_its_line_in_the_docs(name):
    if name in TORCHVISION_MODELS:
        pytest.importorskip("torchvision")
    model = (MODELS | TORCHVISION_MODELS)[name]
    with torch.device("meta"):
        network = create_model(name)
    assert network.name == name
    assert network.image_size == model.image_size
    assert model.description and model.source and "\n" not in model.description + model.source
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    assert row(name) in lines, f"docs/models.md has another line than {row(name)}"


def test_no_network_is_registered_twice():
    assert not set(MODELS) & set(TORCHVISION_MODELS)
    described = [(model.description, model.source) for model in (MODELS | TORCHVISION_MODELS).values()]
    assert len(set(described)) == len(described)
