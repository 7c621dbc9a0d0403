"""What a training refuses before it prepares a picture or makes a folder."""

import pytest

from alexnet import api
from alexnet.errors import ModelError, RecipeError


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"model": "alexnett"}, ModelError, "model 'alexnett' does not exist; did you mean 'alexnet'"),
        ({"model": "lenet5", "freeze": "conv9"}, RecipeError, "--freeze names 'conv9'"),
        ({"model": "alexnet", "image_size": 10}, ModelError, "10"),
    ],
)
def test_a_network_that_can_not_be_is_refused_at_once(tmp_path, changes, error, text):
    options = api.DataOptions(cache=tmp_path / "cache")
    with pytest.raises(error, match=text):
        api.train("digits", run=tmp_path / "run", options=options, **changes)
    assert list(tmp_path.iterdir()) == []
