"""A trained classifier on disk."""

from alexnet.bundle.bundle import Bundle, ReferencePrediction, find, is_trained, weights_sha256

__all__ = ["Bundle", "ReferencePrediction", "find", "is_trained", "weights_sha256"]
