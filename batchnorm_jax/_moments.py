"""Moments of a set of positions: the local sums, and what they become once they are pooled."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """Mean, variance and count of the positions that were pooled, per feature.

    Attributes:
      mean: shape (*features), in at least float32.
      var: the biased variance (divided by `count`), real, of the same shape.
      count: the number of pooled positions: shape (), or (*features) if the mask differs per feature.

    Example:
      >>> import jax.numpy as jnp
      >>> from batchnorm_jax import batch_norm
      >>> _, moments = batch_norm(jnp.array([[1.0], [3.0]]))
      >>> moments.mean.item(), moments.var.item(), moments.count.item()
      (2.0, 1.0, 2.0)
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


def feature_axes(axis: int | Sequence[int], ndim: int, *, caller: str) -> tuple[int, ...]:
    """The feature axes, non-negative and in ascending order; the statistics have these axes in this order."""
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    for a in given:
        if not -ndim <= a < ndim:
            raise ValueError(
                f"{caller}: feature axis {a} is out of range for an input of rank {ndim}; "
                f"give one of {-ndim} to {ndim - 1}"
            )
    return tuple(sorted({a % ndim for a in given}))


def expand(statistic: jax.Array, features: tuple[int, ...], ndim: int) -> jax.Array:
    """Reshapes a statistic of shape (*features) to rank `ndim`, so that nothing relies on rank promotion."""
    return jnp.expand_dims(statistic, tuple(i for i in range(ndim) if i not in features))


def check_mask(mask: jax.Array, shape: tuple[int, ...], *, caller: str) -> jax.Array:
    """The mask as booleans, of the rank of the input, each axis either 1 or the input's."""
    mask = jnp.asarray(mask)
    if mask.ndim <= len(shape):
        full = (1,) * (len(shape) - mask.ndim) + mask.shape
        if all(m in (1, s) for m, s in zip(full, shape, strict=True)):
            return mask.reshape(full).astype(bool)
    raise ValueError(
        f"{caller}: the mask has shape {mask.shape}, which does not broadcast to the input's {shape}. For one flag an "
        f"example give it shape {(shape[0],) + (1,) * (len(shape) - 1)}"
    )


def positions(shape: tuple[int, ...], features: tuple[int, ...]) -> int:
    """The number of positions that one device's input has for each feature."""
    return math.prod(s for i, s in enumerate(shape) if i not in features)


def count_mask(mask: jax.Array, shape: tuple[int, ...], features: tuple[int, ...], dtype) -> jax.Array:
    """The number of positions that count: shape (), or (*features) if the mask differs per feature."""
    reduced = tuple(i for i in range(len(shape)) if i not in features)
    # A mask axis of size 1 stands for the whole axis of the input.
    repeats = math.prod(shape[i] for i in reduced if mask.shape[i] == 1)
    count = repeats * jnp.sum(mask, axis=reduced, dtype=dtype)
    return count.reshape(()) if count.size == 1 else jnp.broadcast_to(count, tuple(shape[i] for i in features))


def statistics_dtype(dtype) -> jnp.dtype:
    """The dtype of sums and moments: that of the input, but at least float32."""
    return jnp.promote_types(dtype, jnp.float32)
