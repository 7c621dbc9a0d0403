"""The registry of plots: every kind has a function, and help and docs list it."""

from pathlib import Path

import pytest

from alexnet import cli
from alexnet.plots import run_plots
from alexnet.plots.registry import IMAGE_PLOTS, PLOTS, TRAINING_PLOTS

PAGE = Path(__file__).parents[2] / "docs" / "explaining.md"


@pytest.mark.parametrize("kind", PLOTS)
def test_each_kind_has_a_function_and_a_line_in_the_docs(kind):
    assert callable(getattr(run_plots, f"draw_{kind}"))
    assert f"| `{kind}` | {PLOTS[kind].description} |" in PAGE.read_text(encoding="utf-8")


def test_each_function_has_a_kind():
    functions = {name.removeprefix("draw_") for name in vars(run_plots) if name.startswith("draw_")}
    assert functions == set(PLOTS)
    assert set(TRAINING_PLOTS) | set(IMAGE_PLOTS) < set(PLOTS)


def test_the_help_has_each_description(capsys):
    with pytest.raises(SystemExit):
        cli.run(["plot", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for kind, plot in PLOTS.items():
        assert f"{kind}: {plot.description}" in text
