"""Krizhevsky's layer and parameter files of 2011–2012: reads them, checks them, and builds their networks."""

from collections.abc import Mapping

import torch

from alexnet.cuda_convnet import parameters, reader
from alexnet.cuda_convnet.grammar import Data, Definition, Tree, decode
from alexnet.cuda_convnet.network import Files, Function, GraphNetwork

__all__ = ["Data", "Definition", "Files", "GraphNetwork", "Tree", "build", "decode", "define"]


def define(text: str, data: Data | None = None, file: str = "layers.cfg") -> Definition:
    """Read and check the text of a layer file. Raises :class:`alexnet.errors.ModelError` with layer and line."""
    return reader.read(text, data or Data(), file)


def build(
    files: Files,
    data: Data | None = None,
    *,
    generator: torch.Generator | None = None,
    draw: bool = True,
    functions: Mapping[str, Function] | None = None,
) -> GraphNetwork:
    """Build the network of a layer file and its parameter file.

    Args:
        files: The two files.
        data: Image size, classes and tree of classes.
        generator: Source of the weights; None is PyTorch's default generator.
        draw: False leaves the weights at 0, for loading others.
        functions: Python functions for initWFunc, initBFunc and initCFunc, by their names in the file.

    Raises:
        ModelError: A file is invalid, or names a function that is not in ``functions``.
    """
    definition = define(files.layers, data, files.layers_file)
    values = parameters.read(files.parameters, definition, files.parameters_file)
    network = GraphNetwork(definition, values, files, functions)
    return network.initialize(generator) if draw else network
