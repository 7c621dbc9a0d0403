"""Bundles: trained classifiers on disk, their integrity checks and compressed weights."""

from alexnet.bundle.bundle import (
    STARTER,
    STARTER_FOLDER,
    Bundle,
    config_sha256,
    find_bundle,
    is_trained,
    restore_previous,
    weights_sha256,
)
from alexnet.schema import ReferenceSample

__all__ = [
    "STARTER",
    "STARTER_FOLDER",
    "Bundle",
    "ReferenceSample",
    "config_sha256",
    "find_bundle",
    "is_trained",
    "restore_previous",
    "weights_sha256",
]
