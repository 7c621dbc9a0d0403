"""Every optimizer and schedule of the registries is a choice with a help text, and trains."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest
import torch

from alexnet.errors import RecipeError
from alexnet.models import create_model
from alexnet.recipe import OPTIMIZERS, SCHEDULES, Recipe, help_text, lookup
from alexnet.training.optim import create_optimizer, set_lr
from alexnet.training.schedule import LRSchedule

TYPES = {field.name: field.type for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(("field", "registry"), [("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)])
def test_choices_and_help_come_from_the_registry(field, registry):
    assert typing.get_args(TYPES[field]) == tuple(registry)
    for name, choice in registry.items():
        assert len(choice.help) > 4 and f"{name}: {choice.help}" in help_text()[field]
        assert callable(lookup(registry, name))
        assert lookup(registry, name).__doc__
    with pytest.raises(RecipeError, match=f"--{field} is 'other'; must be {' or '.join(registry)}"):
        Recipe().replace(**{field: "other"})


@pytest.mark.parametrize("registry", [OPTIMIZERS, SCHEDULES])
def test_the_table_in_the_docs_is_that_of_the_registry(registry):
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert "\n".join(f"| `{name}` | {choice.help} |" for name, choice in registry.items()) + "\n\n" in text


def test_an_unknown_name_gets_the_most_similar_one():
    with pytest.raises(RecipeError, match=re.escape("unknown optimizer 'adam'. Did you mean 'adamw'?")):
        lookup(OPTIMIZERS, "adam")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_choice_trains_a_step(optimizer, schedule):
    recipe = Recipe(optimizer=optimizer, schedule=schedule, lr_milestones=(3,), warmup_epochs=0.5, epochs=5)
    network = create_model("lenet5", num_classes=3, generator=torch.Generator().manual_seed(0))
    made = create_optimizer(network, recipe)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    lr = LRSchedule(recipe, steps_per_epoch=2).lr(epoch=1, batch=0)
    assert 0 < lr <= recipe.peak_lr
    set_lr(made, lr)
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 0])).backward()
    made.step()
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert torch.isfinite(parameter).all() and not torch.equal(parameter, old)
