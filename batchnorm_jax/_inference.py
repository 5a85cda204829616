"""Normalises by fixed moments, as a trained model does."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from batchnorm_jax._activations import activated
from batchnorm_jax._arrays import expand, statistics_dtype
from batchnorm_jax._checks import (
    as_array,
    check_activation,
    check_dtype,
    check_epsilon,
    check_input,
    check_real,
)
from batchnorm_jax._operands import Operands, as_operands
from batchnorm_jax._options import NormOptions
from batchnorm_jax.typing import Activation, Axes


class Running(NamedTuple):
    """Running statistics.

    Attributes:
      mean: shape (*features).
      var: shape (*features).
    """

    mean: jax.Array
    var: jax.Array


def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    activation: Activation | None = None,
    residual: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalises `x` by a given mean and variance.

        y = activation(scale (x - mean) / sqrt(var + epsilon) + bias + residual)

    Args:
      x: an array of floating point or complex numbers, of any rank. A batch without examples gives one without.
      mean: shape (*features), the axes of `x` named by `axis`, in ascending order.
      var: shape (*features).
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      axis: the feature axis or axes.
      epsilon: added to the variance; at least 0.
      activation: an elementwise function, or None.
      residual: an array of the shape of `x`, added before the activation.
      dtype: the dtype of y; None: the dtype that `x`, `scale`, `bias` and `residual` promote to.

    Returns:
      y, of the shape of `x`, computed in at least float32.

    Raises:
      ValueError: integer input, no features, a feature axis out of range, a negative epsilon, or mean, var, scale,
        bias or residual of the wrong shape.

    Example:
      >>> import jax.numpy as jnp
      >>> normalize(jnp.array([[1.0], [3.0]]), jnp.array([1.0]), jnp.array([4.0]), epsilon=0.0)
      Array([[0.],
             [1.]], dtype=float32)

    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, 2015, algorithm 2.
    """
    options = NormOptions(axis=axis, epsilon=epsilon, activation=activation, dtype=dtype, caller="normalize")
    mean, var = (as_array(a, name, caller=options.caller) for name, a in (("mean", mean), ("var", var)))
    operands = as_operands(x, scale=scale, bias=bias, residual=residual, caller=options.caller)
    return normalize_by(Running(mean, var), operands, options)


def normalize_by(known: Running, operands: Operands, options: NormOptions) -> jax.Array:
    """Computes `normalize`; of the options it uses axis, epsilon, activation and dtype.

    Args:
      known: the mean and variance.
      operands: x, scale, bias and residual.
      options: the options, as given.
    """
    x, scale, bias, _, _, residual, _ = operands
    check_activation(options.activation, caller=options.caller)
    check_dtype(options.dtype, caller=options.caller)
    features = check_input(x, options.axis, caller=options.caller, may_be_empty=True)
    check_real(scale, bias, x, caller=options.caller)
    check_epsilon(options.epsilon, caller=options.caller)
    shape = tuple(x.shape[i] for i in features)
    for name, value, wanted in (
        ("mean", known.mean, shape),
        ("var", known.var, shape),
        ("scale", scale, shape),
        ("bias", bias, shape),
        ("residual", residual, x.shape),
    ):
        if value is not None and jnp.shape(value) != wanted:
            raise ValueError(
                f"{options.caller}: {name} has shape {jnp.shape(value)}; for the input of shape {x.shape} with "
                f"axis={options.axis} it must have shape {wanted}"
            )
    if options.dtype is None:
        options = options.replace(dtype=operands.result_dtype())
    wide = statistics_dtype(x.dtype)
    gain = expand(gain_of(known.var, scale, options.epsilon, wide), features, x.ndim)
    y = (x.astype(wide) - expand(known.mean.astype(wide), features, x.ndim)) * gain
    if bias is not None:
        bias = expand(bias.astype(wide), features, x.ndim)
    return finish(y, bias, residual, options)


def gain_of(var: jax.Array, scale: jax.Array | None, epsilon: float, wide: DTypeLike) -> jax.Array:
    """Returns scale / sqrt(var + epsilon), real."""
    gain = lax.rsqrt(var.astype(jnp.finfo(wide).dtype) + epsilon)
    return gain if scale is None else gain * scale.astype(gain.dtype)


def finish(y: jax.Array, bias: jax.Array | None, residual: jax.Array | None, options: NormOptions) -> jax.Array:
    """Returns `activation(y + bias + residual)` in the dtype of the options; the bias has the rank of y."""
    if bias is not None:
        y = y + bias
    if residual is not None:
        y = y + residual.astype(y.dtype)
    if options.activation is not None:
        y = activated(options.activation, y)
    return y.astype(options.dtype)
