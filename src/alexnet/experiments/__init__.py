"""Experiments on the results of 2012: claims of the paper, network depth, and a comparison of classifiers."""
