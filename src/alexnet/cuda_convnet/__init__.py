"""Krizhevsky's layer and parameter files of 2011–2012 -> networks: read, checked, shown, built."""

from collections.abc import Mapping

import torch

from alexnet.cuda_convnet import parameters, reader
from alexnet.cuda_convnet.definition import Data, Definition, Tree
from alexnet.cuda_convnet.grammar import decode
from alexnet.cuda_convnet.network import Files, Function, GraphNetwork

__all__ = ["Data", "Definition", "Files", "GraphNetwork", "Tree", "build", "decode", "define"]


def define(text: str, data: Data | None = None, file: str = "layers.cfg") -> Definition:
    """The checked network of a layer file's text. Raises :class:`alexnet.errors.ModelError` with layer and line."""
    return reader.read(text, data or Data(), file)


def build(
    files: Files,
    data: Data | None = None,
    *,
    generator: torch.Generator | None = None,
    draw: bool = True,
    functions: Mapping[str, Function] | None = None,
) -> GraphNetwork:
    """The network of a layer file and its parameter file, weights drawn from ``generator`` as the file says.

    ``draw=False`` leaves weights at 0, for those that load others. ``functions`` are start values from code, by the
    name that the file gives them. Raises :class:`alexnet.errors.ModelError`.
    """
    definition = define(files.layers, data, files.layers_file)
    result = parameters.read(files.parameters, definition, files.parameters_file)
    network = GraphNetwork(definition, result, files, functions)
    return network.initialize(generator) if draw else network
