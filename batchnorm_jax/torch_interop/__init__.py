"""PyTorch models in and out: the state of a layer or of a model, and the options of a batch norm.

`from_torch` makes variables for `flax.linen` or `flax.nnx` of a PyTorch state dictionary, `to_torch` the dictionary of
the variables; one after the other gives back every bit. `names_from_torch` makes a first map of names, which both of
them need. Neither PyTorch nor Flax is imported.

A state dictionary holds arrays alone. What a layer does with them is for the Flax model to say: strides, padding (1 as
in PyTorch, not "SAME", which pads a strided convolution on the other side), and the options of a batch norm, which
`options_from_torch` gives.
"""

from batchnorm_jax.torch_interop._names import Layer
from batchnorm_jax.torch_interop._options import options_from_torch, options_to_torch
from batchnorm_jax.torch_interop._starter import names_from_torch
from batchnorm_jax.torch_interop._state import from_torch, to_torch

__all__ = ["Layer", "from_torch", "names_from_torch", "options_from_torch", "options_to_torch", "to_torch"]
