"""Normalising by fixed moments: what a trained model does, and how the layer before can do it as well."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm_jax._activations import Activation, activated
from batchnorm_jax._moments import as_array, expand, promoted, statistics_dtype
from batchnorm_jax._options import check_activation, check_dtype, check_epsilon, check_input, check_real


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
      x: an array of floating point or complex numbers, of any rank. A batch of no examples gives one of none.
      mean: shape (*features), the axes of `x` named by `axis`, in ascending order.
      var: shape (*features).
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      axis: the feature axis or axes.
      epsilon: added to the variance; at least 0.
      activation: an elementwise function, or None.
      residual: of the shape of `x`, added before the activation.
      dtype: of y; None: what `x`, `scale`, `bias` and `residual` promote to.

    Returns:
      y, of the shape of `x`, computed in at least float32.

    Raises:
      ValueError: integer input, no features, a feature axis is out of range, a negative epsilon, or mean, var, scale,
        bias or residual have another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> normalize(jnp.array([[1.0], [3.0]]), jnp.array([1.0]), jnp.array([4.0]), epsilon=0.0)
      Array([[0.],
             [1.]], dtype=float32)

    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, 2015, algorithm 2.
    """
    x, mean, var = (
        as_array(a, name, caller="normalize") for name, a in (("the input", x), ("mean", mean), ("var", var))
    )
    scale, bias, residual = (
        None if a is None else as_array(a, name, caller="normalize")
        for name, a in (("scale", scale), ("bias", bias), ("residual", residual))
    )
    check_activation(activation, caller="normalize")
    check_dtype(dtype, caller="normalize")
    features = check_input(x, axis, caller="normalize", may_be_empty=True)
    check_real(scale, bias, x, caller="normalize")
    check_epsilon(epsilon, caller="normalize")
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
    gain = expand(_gain(var, scale, epsilon, wide), features, x.ndim)
    y = (x.astype(wide) - expand(mean.astype(wide), features, x.ndim)) * gain
    if bias is not None:
        bias = expand(bias.astype(wide), features, x.ndim)
    return _finish(y, bias, residual, activation, dtype)


def fold(
    kernel: jax.Array,
    bias: jax.Array | None,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None = None,
    beta: jax.Array | None = None,
    *,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array]:
    """Folds a norm into the convolution or dense layer before it.

    `normalize(layer(x), mean, var, scale, beta)` is the same layer with

        kernel' = kernel g,   bias' = (bias - mean) g + beta,   g = scale / sqrt(var + epsilon)

    It is so where nothing is between the two, and the features are the last axis of what the layer gives.

    Args:
      kernel: floating point or complex numbers, output features last, as Flax has it: (*window, in / groups, out) of a
        convolution, (in, out) of a dense layer.
      bias: of the layer, shape (out,), or (..., out) where it differs between positions; None for 0.
      mean: shape (out,).
      var: shape (out,).
      scale: of the norm, shape (out,), or None for 1.
      beta: the bias of the norm, shape (out,), or None for 0.
      epsilon: added to the variance; at least 0.

    Returns:
      The new kernel and bias, computed in at least float32, returned in the dtype of the kernel; the bias is complex
      where mean, bias or beta are. Rounded to bfloat16 each weight, and the bias, is off by up to 1 / 512 of itself;
      where |mean| is many times the deviation, the two cancel and the error stays. Keep float32 weights, then, and let
      the layer round the kernel alone.

    Raises:
      ValueError: integer weights, a complex scale, a negative epsilon, or mean, var, scale, beta or bias have another
        number of features.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel, bias = fold(jnp.ones((2, 1)), None, jnp.array([3.0]), jnp.array([4.0]), epsilon=0.0)
      >>> kernel.ravel(), bias
      (Array([0.5, 0.5], dtype=float32), Array([-1.5], dtype=float32))

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", arXiv 1712.05877, 2017, section 3.2.
    """
    kernel, mean, var = (
        as_array(a, name, caller="fold") for name, a in (("the kernel", kernel), ("mean", mean), ("var", var))
    )
    bias, scale, beta = (
        None if a is None else as_array(a, name, caller="fold")
        for name, a in (("bias", bias), ("scale", scale), ("beta", beta))
    )
    if not jnp.issubdtype(kernel.dtype, jnp.inexact) or kernel.ndim == 0:
        raise ValueError(
            f"fold: the kernel is {kernel.dtype} of shape {kernel.shape}; it must have a floating point or complex "
            "dtype and its output features on the last axis. Fold before quantizing"
        )
    check_real(scale, None, kernel, caller="fold")
    check_epsilon(epsilon, caller="fold")
    features = kernel.shape[-1:]
    for name, value in (("mean", mean), ("var", var), ("scale", scale), ("beta", beta), ("bias", bias)):
        if value is not None and (value.shape if name != "bias" else value.shape[-1:]) != features:
            raise ValueError(
                f"fold: {name} has shape {value.shape}, but the kernel of shape {kernel.shape} has {features[0]} "
                f"output features, on its last axis; give {name} the shape {features}, or move the kernel's axes"
            )
    wide = statistics_dtype(promoted(kernel, mean, *(a for a in (bias, beta) if a is not None)))
    gain = _gain(var, scale, epsilon, wide)
    new = (jnp.zeros_like(mean) if bias is None else bias).astype(wide)
    new = (new - expand(mean.astype(wide), (new.ndim - 1,), new.ndim)) * expand(gain, (new.ndim - 1,), new.ndim)
    if beta is not None:
        new = new + expand(beta.astype(wide), (new.ndim - 1,), new.ndim)
    complex_bias = jnp.iscomplexobj(new) and not jnp.iscomplexobj(kernel)
    bias_dtype = promoted(kernel.dtype, jnp.complex64) if complex_bias else kernel.dtype
    folded = kernel.astype(statistics_dtype(kernel.dtype)) * expand(gain, (kernel.ndim - 1,), kernel.ndim)
    return folded.astype(kernel.dtype), new.astype(bias_dtype)


def apply_folded(
    y: jax.Array,
    bias: jax.Array | None,
    *,
    use_running_average: bool,
    update_stats: bool | None,
    activation: Activation | None,
    residual: jax.Array | None,
    dtype: Any,
    caller: str,
) -> jax.Array:
    """What is left of a folded norm: `activation(y + bias + residual)`, with `bias` along the last axis.

    Raises:
      ValueError: statistics of the batch are asked for, or the residual has another shape.
    """
    if not use_running_average or update_stats:
        option = "use_running_average=False" if not use_running_average else "update_stats=True"
        raise ValueError(
            f"{caller}: {option}, but this norm was folded into the layer before it and has no statistics; evaluate, "
            "or train the model that was folded, which is as it was"
        )
    if residual is not None and jnp.shape(residual) != y.shape:
        raise ValueError(
            f"{caller}: residual has shape {jnp.shape(residual)} and the input {y.shape}; they must be the same"
        )
    wide = statistics_dtype(y.dtype)
    if bias is not None:
        bias = expand(bias.astype(promoted(wide, bias.dtype)), (y.ndim - 1,), y.ndim)
    return _finish(y.astype(wide), bias, residual, activation, dtype)


def _gain(var: jax.Array, scale: jax.Array | None, epsilon: float, wide: Any) -> jax.Array:
    gain = lax.rsqrt(var.astype(jnp.finfo(wide).dtype) + epsilon)
    return gain if scale is None else gain * scale.astype(gain.dtype)


def _finish(
    y: jax.Array, bias: jax.Array | None, residual: jax.Array | None, activation: Activation | None, dtype: Any
) -> jax.Array:
    """`activation(y + bias + residual)`, the bias of the rank of y."""
    if bias is not None:
        y = y + bias
    if residual is not None:
        y = y + residual.astype(y.dtype)
    if activation is not None:
        y = activated(activation, y)
    return y.astype(dtype)
