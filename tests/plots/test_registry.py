"""The registry of plots: every kind has a function, and help and docs list it."""

from pathlib import Path

import pytest

from alexnet import cli
from alexnet.errors import AlexNetError
from alexnet.plots import IMAGE_PLOTS, PLOTS, TRAINING_PLOTS, run_plots

PAGE = Path(__file__).parents[2] / "docs" / "explaining.md"


@pytest.mark.parametrize("kind", PLOTS)
def test_each_kind_has_a_function_and_a_line_in_the_docs(kind):
    assert callable(getattr(run_plots, f"draw_{kind}"))
    assert f"| `{kind}` | {PLOTS[kind].description} |" in PAGE.read_text(encoding="utf-8")


def test_each_function_has_a_kind():
    functions = {name.removeprefix("draw_") for name in vars(run_plots) if name.startswith("draw_")}
    assert functions == set(PLOTS)
    assert set(TRAINING_PLOTS) | set(IMAGE_PLOTS) < set(PLOTS)


@pytest.mark.parametrize("kind", PLOTS)
@pytest.mark.parametrize(
    "option",
    [
        {"images": ("a.png",)},
        {"count": 3},
        {"layer": "conv1"},
        {"target_class": "3"},
        {"method": "pca"},
        {"store": "s"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_an_option_without_effect_is_refused(tmp_path, kind, option):
    """An option is taken, then the missing run is the error; or it is refused before anything is read."""
    (name,) = option
    with pytest.raises(AlexNetError) as caught:
        options = run_plots.PlotOptions(**option)
        run_plots.draw(kind, options.open(tmp_path / "none"), None, options)
    refused = str(caught.value).startswith(f"{kind} takes no {'images' if name == 'images' else '--' + name[:6]}")
    assert refused == (name not in PLOTS[kind].options)
    assert refused == ("plots that do: " in str(caught.value))


def test_the_help_has_each_description(capsys):
    with pytest.raises(SystemExit):
        cli.run(["plot", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for kind, plot in PLOTS.items():
        assert f"{kind}: {plot.description}" in text
