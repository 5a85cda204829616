"""Batch renormalization: batch statistics that are corrected towards the running ones."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from batchnorm_jax._batch_norm import batch_norm, pooled_norm
from batchnorm_jax._core import Correction
from batchnorm_jax._moments import Moments, as_array, is_number

# The options of `batch_norm`, with its defaults.
_DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(batch_norm).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}


def batch_renorm(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    r_max: Any = 3.0,
    d_max: Any = 5.0,
    **options: Any,
) -> tuple[jax.Array, Moments]:
    """Normalises `x` by the moments of the batch, corrected towards the running ones.

    With mu, s^2 the moments of the batch, and s_run^2 = var + epsilon:

        r = clip(s / s_run, 1 / r_max, r_max),   d = clip((mu - mean) / s_run, -d_max, d_max)
        y = activation(scale (r (x - mu) / s + d) + bias + residual)

    r and d are constants for derivatives. Within the limits y is what the running statistics give, so that training
    and evaluation see the same function although batches are small, while gradients still flow through mu and s. With
    `r_max=1, d_max=0` it is `batch_norm`, and so it is for a feature whose running mean or variance is not finite. It
    takes the collectives of `batch_norm`: one psum forward, one backward.

    Args:
      x: floating point numbers, of any rank.
      mean: shape (*features), the running mean.
      var: shape (*features), the running variance.
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      r_max: a number of at least 1, or an array of shape (), such as that of a schedule.
      d_max: a number of at least 0, or an array of shape ().
      **options: those of `batch_norm`. `shift` is the running mean if it is not given.

    Returns:
      y, of the shape of `x`, and the `Moments` of the batch.

    Raises:
      ValueError: `mean` or `var` has the wrong shape, a limit is out of range, the input is complex; and what
        `batch_norm` raises.
      TypeError: there is no such option.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0], [3.0]])
      >>> y, _ = batch_renorm(x, jnp.array([0.0]), jnp.array([1.0]), r_max=3.0, d_max=5.0, epsilon=0.0)
      >>> y.ravel()  # (x - 0) / 1: the limits are wide enough
      Array([1., 3.], dtype=float32)

    Source: Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017, algorithm 1.
    """
    unknown = set(options) - set(_DEFAULTS)
    if unknown:
        raise TypeError(
            f"batch_renorm: unknown option {', '.join(sorted(unknown))}; those of batch_norm are {', '.join(_DEFAULTS)}"
        )
    x, mean, var = (
        as_array(a, name, caller="batch_renorm") for name, a in (("the input", x), ("mean", mean), ("var", var))
    )
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(mean):
        raise ValueError(
            "batch_renorm: the input and the running mean must be real, since a distance is clipped; normalise the "
            "real and the imaginary part as features of their own"
        )
    check_limits(r_max, d_max, caller="batch_renorm")
    for name, limit in (("r_max", r_max), ("d_max", d_max)):
        if callable(limit):
            raise ValueError(f"batch_renorm: {name} is a function; give its value, as in {name}={name}(step)")
        if jnp.shape(limit) != ():
            raise ValueError(f"batch_renorm: {name} must be one number, and has the shape {jnp.shape(limit)}")
    if var.shape != mean.shape:
        raise ValueError(f"batch_renorm: mean has shape {mean.shape} and var {var.shape}; they must be the same")
    given = _DEFAULTS | {"shift": mean} | options
    correction = Correction(mean, var, jnp.asarray(r_max, jnp.float32), jnp.asarray(d_max, jnp.float32))
    return pooled_norm(x, scale, bias, **given, caller="batch_renorm", correction=correction)


def check_limits(r_max: Any, d_max: Any, *, caller: str) -> None:
    """Raises a ValueError for numbers out of range; a schedule's value is known only when the program runs."""
    for name, limit, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        array = isinstance(limit, jax.Array) and jnp.issubdtype(limit.dtype, jnp.number)
        if not callable(limit) and not (is_number(limit) or array):
            raise ValueError(f"{caller}: {name}={limit!r} must be a number of at least {least}")
        if isinstance(limit, int | float) and not limit >= least:
            raise ValueError(f"{caller}: {name}={limit} must be at least {least}")


def relaxed_r_max(step: jax.Array) -> jax.Array:
    """The paper's limit on r: 1 in the first 5,000 steps, then rising to 3 at 40,000.

    Example:
      >>> [float(relaxed_r_max(step)) for step in (0, 5_000, 22_500, 100_000)]
      [1.0, 1.0, 2.0, 3.0]

    Source: Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017, section 4.2.
    """
    return jnp.interp(jnp.asarray(step, jnp.float32), jnp.array([5e3, 4e4]), jnp.array([1.0, 3.0]))


def relaxed_d_max(step: jax.Array) -> jax.Array:
    """The paper's limit on d: 0 in the first 5,000 steps, then rising to 5 at 25,000.

    Example:
      >>> [float(relaxed_d_max(step)) for step in (0, 5_000, 15_000, 100_000)]
      [0.0, 0.0, 2.5, 5.0]

    Source: Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017, section 4.2.
    """
    return jnp.interp(jnp.asarray(step, jnp.float32), jnp.array([5e3, 2.5e4]), jnp.array([0.0, 5.0]))
