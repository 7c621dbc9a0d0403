"""Plots: functions from arrays to PNG files. ``run_plots`` and ``explanations`` compute the arrays from a run.

matplotlib is imported when a plot is drawn.
"""
