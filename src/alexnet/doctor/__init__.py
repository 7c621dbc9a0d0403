"""Checks of a data set before training: duplicates, leaks, damaged files, wrong labels, shortcuts."""
