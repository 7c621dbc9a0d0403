"""The axes that the figures of studies share."""

import pytest

from alexnet.plots import canvas, studies


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0.0137, 0.0587), ["0.02", "0.05"]),  # of a sweep: no power of ten is within
        ((0.003, 0.3), ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]),
        ((2e-6, 5.0), ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "10"]),
    ],
)
def test_a_logarithmic_axis_has_numbers(values, labels):
    axes = canvas.plain(canvas.new_figure(4, 3).subplots())
    axes.plot(values, [1, 2])
    studies._log_axis(axes)
    low, high = axes.get_xlim()
    shown = [label.get_text() for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert [text for text in shown if text] == labels and axes.get_xscale() == "log"


@pytest.mark.parametrize("values", [(0.03, 0.03), (0.03, 0.04), (0.0, 1.0)])
def test_where_it_would_have_none_it_is_linear(values):
    axes = canvas.plain(canvas.new_figure(4, 3).subplots())
    axes.plot(values, [1, 2])
    studies._log_axis(axes)
    assert axes.get_xscale() == "linear"
