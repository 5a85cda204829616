"""Public types of the arguments that several functions and modules share.

Example:
  >>> from typing import get_args
  >>> from batchnorm_jax.typing import Collective, SaveForBackward
  >>> get_args(Collective), get_args(SaveForBackward)
  (('psum', 'all_gather'), ('input', 'output', 'nothing'))
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.typing import ArrayLike

Axes = int | Sequence[int]
"""The feature axis, or several."""

AxisName = Hashable | Sequence[Hashable]
"""The name of a mapped axis, or the names of several, to reduce over."""

Groups = Sequence[Sequence[int]]
"""Disjoint groups of equal size that together hold the index of every participant of the axes, as in `jax.lax.psum`."""

Activation = Callable[..., jax.Array]
"""An elementwise function of one array."""

Collective = Literal["psum", "all_gather"]
"""How statistics are pooled over devices: one psum of sums, or one all_gather of moments."""

SaveForBackward = Literal["input", "output", "nothing"]
"""The array that a norm keeps for the backward pass."""

RecalibrationMode = Literal["pooled", "layerwise"]
"""The statistics that layers normalise by while `recalibrate` collects moments: the batch's, or the running ones."""

Limit = float | Callable[[jax.Array], ArrayLike]
"""A limit of batch renormalization: a number, or a function of the number of updates."""

Variables = Mapping[str, Any]
"""The variables of a Flax model: for linen, collections such as "params" and "batch_stats", nested by module."""

VariableDict = dict[str, Any]
"""New variables of a Flax model, or a part of them, as nested dictionaries."""
