"""Batches + model -> bundle."""
