"""Converts PyTorch models to Flax and back: the state of a layer or of a model, and the options of a batch norm.

`from_torch` turns a PyTorch state dictionary into variables for `flax.linen` or `flax.nnx`, and `to_torch` turns the
variables into the dictionary; one after the other gives back every bit. `names_from_torch` makes a first map of names,
which both need. Neither PyTorch nor Flax is imported.

A state dictionary holds only arrays. The Flax model states what a layer does with them: strides, padding (1 as in
PyTorch, not "SAME", which pads a strided convolution on the other side), and the options of a batch norm, which
`options_from_torch` gives.
"""

from batchnorm_jax.torch_interop._layers import LayerKind
from batchnorm_jax.torch_interop._names import Api, Layer, Names
from batchnorm_jax.torch_interop._options import FlaxOptions, TorchOptions, options_from_torch, options_to_torch
from batchnorm_jax.torch_interop._starter import names_from_torch
from batchnorm_jax.torch_interop._state import from_torch, to_torch

__all__ = [
    "Api",
    "FlaxOptions",
    "Layer",
    "LayerKind",
    "Names",
    "TorchOptions",
    "from_torch",
    "names_from_torch",
    "options_from_torch",
    "options_to_torch",
    "to_torch",
]
