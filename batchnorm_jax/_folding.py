"""Folds a norm with fixed moments into the weights of the layer before it."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from batchnorm_jax._arrays import expand, promoted, statistics_dtype
from batchnorm_jax._checks import as_array, check_epsilon, check_real, check_residual
from batchnorm_jax._inference import finish, gain_of
from batchnorm_jax._options import NormOptions


def fold(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array]:
    """Folds a norm into the convolution or dense layer before it.

    `normalize(layer(x), mean, var, scale, beta)` is the same layer with

        kernel' = kernel g,   bias' = (bias - mean) g + beta,   g = scale / sqrt(var + epsilon)

    if nothing is between the two, and the features are the last axis of the layer's output.

    Args:
      kernel: floating point or complex numbers, output features last, as in Flax: (*window, in / groups, out) for a
        convolution, (in, out) for a dense layer.
      bias: the layer's bias, shape (out,), or (..., out) where it differs between positions; None for 0.
      mean: shape (out,).
      var: shape (out,).
      scale: the norm's scale, shape (out,), or None for 1.
      beta: the norm's bias, shape (out,), or None for 0.
      epsilon: added to the variance; at least 0.

    Returns:
      The new kernel and bias, computed in at least float32, returned in the dtype of the kernel; the bias is complex
      where mean, bias or beta are. Rounded to bfloat16, each weight, and the bias, is off by up to 1 / 512 of itself.
      Where |mean| is many times the deviation, kernel and bias cancel and the error stays: keep float32 weights there,
      and let the layer round only the kernel.

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
    gain = gain_of(var, scale, epsilon, wide)
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
    residual: ArrayLike | None,
    options: NormOptions,
    *,
    use_running_average: bool,
    update_stats: bool | None,
) -> jax.Array:
    """Computes the rest of a folded norm: `activation(y + bias + residual)`, with `bias` along the last axis.

    Args:
      y: the output of the layer that the norm was folded into.
      bias: a bias that the layer has no place for, or None.
      residual: an array of the shape of `y`, or None.
      options: its activation and dtype are used, and its caller is named in errors.
      use_running_average: the call's; False is an error.
      update_stats: the call's; True is an error.

    Raises:
      ValueError: statistics of the batch are asked for, or the residual has another shape.
    """
    caller = options.caller
    if not use_running_average or update_stats:
        option = "use_running_average=False" if not use_running_average else "update_stats=True"
        raise ValueError(
            f"{caller}: {option}, but this norm was folded into the layer before it and has no statistics; evaluate, "
            "or train the model that was folded, which is as it was"
        )
    if residual is not None:
        residual = as_array(residual, "residual", caller=caller)
        check_residual(residual, y, caller=caller)
    wide = statistics_dtype(y.dtype)
    if bias is not None:
        bias = expand(bias.astype(promoted(wide, bias.dtype)), (y.ndim - 1,), y.ndim)
    return finish(y.astype(wide), bias, residual, options)
