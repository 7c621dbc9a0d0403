"""Little trained networks that the tests of the commands share."""

import pytest

from alexnet import api
from alexnet.recipe import get_recipe


@pytest.fixture(scope="session")
def train_three(digits):
    """(folder, epochs) -> in it run-0 and run-1 on one store, and ``other`` on the digits split with another seed."""

    def train(home, epochs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(api, "TRAINING_PLOTS", ())
            for seed in (0, 1):
                recipe = get_recipe("lenet5").replace(epochs=epochs, batch_size=16, seed=seed)
                api.train(digits.path, recipe, home / f"run-{seed}", device="cpu")
            recipe = get_recipe("lenet5").replace(epochs=1, seed=7, test=0.9, validation=0.05)
            api.train("digits", recipe, home / "other", device="cpu", options=api.DataOptions(cache=home / "cache"))
        return home

    return train


@pytest.fixture(scope="session")
def trained(train_three, tmp_path_factory):
    """Three runs of twelve epochs; they are copied before anything is written into them."""
    return train_three(tmp_path_factory.mktemp("trained"), epochs=12)
