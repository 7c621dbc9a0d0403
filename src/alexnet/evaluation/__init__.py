"""Evaluation of a classifier on a split: metrics, intervals, calibration, comparison and drift."""
