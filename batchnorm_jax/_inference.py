"""Normalising by fixed moments: what a trained model does."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm_jax._moments import expand, feature_axes, statistics_dtype


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
) -> jax.Array:
    """Normalises `x` by a given mean and variance.

        y = scale (x - mean) / sqrt(var + epsilon) + bias

    Args:
      x: an array of floating point numbers, of any rank.
      mean: shape (*features), the axes of `x` named by `axis`, in ascending order.
      var: shape (*features).
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      axis: the feature axis or axes.
      epsilon: added to the variance.

    Returns:
      y, of the shape of `x`, in the dtype that `x`, `scale` and `bias` promote to; computed in at least float32.

    Raises:
      ValueError: a feature axis is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> normalize(jnp.array([[1.0], [3.0]]), jnp.array([1.0]), jnp.array([4.0]), epsilon=0.0)
      Array([[0.],
             [1.]], dtype=float32)

    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, 2015, algorithm 2.
    """
    features = feature_axes(axis, x.ndim, caller="normalize")
    dtype = statistics_dtype(x.dtype)
    gain = lax.rsqrt(var.astype(dtype) + epsilon)
    if scale is not None:
        gain = gain * scale.astype(dtype)
    y = (x.astype(dtype) - expand(mean.astype(dtype), features, x.ndim)) * expand(gain, features, x.ndim)
    if bias is not None:
        y = y + expand(bias.astype(dtype), features, x.ndim)
    return y.astype(jnp.result_type(*(a for a in (x, scale, bias) if a is not None)))
