"""Normalising by fixed moments: what a trained model does."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm_jax._activations import Activation
from batchnorm_jax._moments import expand, statistics_dtype
from batchnorm_jax._options import check_input, check_real


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    activation: Activation | None = None,
    residual: jax.Array | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalises `x` by a given mean and variance.

        y = activation(scale (x - mean) / sqrt(var + epsilon) + bias + residual)

    Args:
      x: an array of floating point or complex numbers, of any rank.
      mean: shape (*features), the axes of `x` named by `axis`, in ascending order.
      var: shape (*features).
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      axis: the feature axis or axes.
      epsilon: added to the variance.
      activation: an elementwise function, or None.
      residual: of the shape of `x`, added before the activation.
      dtype: of y; None: what `x`, `scale`, `bias` and `residual` promote to.

    Returns:
      y, of the shape of `x`, computed in at least float32.

    Raises:
      ValueError: integer input, no positions, a feature axis is out of range, or mean, var, scale, bias or residual
        have another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> normalize(jnp.array([[1.0], [3.0]]), jnp.array([1.0]), jnp.array([4.0]), epsilon=0.0)
      Array([[0.],
             [1.]], dtype=float32)

    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, 2015, algorithm 2.
    """
    x = jnp.asarray(x)
    mean, var = jnp.asarray(mean), jnp.asarray(var)
    scale, bias, residual = (None if a is None else jnp.asarray(a) for a in (scale, bias, residual))
    features = check_input(x, axis, caller="normalize")
    check_real(scale, bias, x, caller="normalize")
    shape = tuple(x.shape[i] for i in features)
    for name, value, wanted in (
        ("mean", mean, shape),
        ("var", var, shape),
        ("scale", scale, shape),
        ("bias", bias, shape),
        ("residual", residual, x.shape),
    ):
        if value is not None and jnp.shape(value) != wanted:
            raise ValueError(
                f"normalize: {name} has shape {jnp.shape(value)}; for the input of shape {x.shape} with {axis=} it "
                f"must have shape {wanted}"
            )
    if dtype is None:
        dtype = jnp.result_type(*(a for a in (x, scale, bias, residual) if a is not None))
    wide = statistics_dtype(x.dtype)
    gain = lax.rsqrt(var.astype(jnp.finfo(wide).dtype) + epsilon)
    if scale is not None:
        gain = gain * scale.astype(gain.dtype)
    y = (x.astype(wide) - expand(mean.astype(wide), features, x.ndim)) * expand(gain, features, x.ndim)
    if bias is not None:
        y = y + expand(bias.astype(wide), features, x.ndim)
    if residual is not None:
        y = y + residual.astype(wide)
    if activation is not None:
        y = activation(y)
    return y.astype(dtype)
