"""A trained classifier on disk."""

from alexnet.bundle.whole import Bundle, Golden, find, is_trained, weights_sha256

__all__ = ["Bundle", "Golden", "find", "is_trained", "weights_sha256"]
