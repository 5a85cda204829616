"""Batch renormalization: batch statistics that are corrected towards the running ones."""

import dataclasses
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from batchnorm_jax._batch_norm import pooled_norm
from batchnorm_jax._checks import as_array, is_number
from batchnorm_jax._inference import Running
from batchnorm_jax._moments import Moments
from batchnorm_jax._operands import Correction, Operands, as_operands
from batchnorm_jax._options import NormKeywords, NormOptions
from batchnorm_jax.typing import Limit


class Limits(NamedTuple):
    """The limits of the correction.

    Attributes:
      r_max: the ratio of the deviations is clipped to between 1 / r_max and r_max.
      d_max: the distance of the means is clipped to between -d_max and d_max.
    """

    r_max: ArrayLike
    d_max: ArrayLike


def batch_renorm(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    r_max: ArrayLike = 3.0,
    d_max: ArrayLike = 5.0,
    **options: Unpack[NormKeywords],
) -> tuple[jax.Array, Moments]:
    """Normalises `x` by the moments of the batch, corrected towards the running ones.

    With mu, s^2 the moments of the batch, and s_run^2 = var + epsilon:

        r = clip(s / s_run, 1 / r_max, r_max),   d = clip((mu - mean) / s_run, -d_max, d_max)
        y = activation(scale (r (x - mu) / s + d) + bias + residual)

    r and d are constants for derivatives. Within the limits y is what the running statistics give, so that training
    and evaluation see the same function although batches are small, while gradients still flow through mu and s. With
    `r_max=1, d_max=0`, and for a feature whose running mean or variance is not finite, it is `batch_norm`. It takes the
    collectives of `batch_norm`: one psum forward, one backward.

    Args:
      x: floating point numbers, of any rank.
      mean: shape (*features), the running mean.
      var: shape (*features), the running variance.
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      r_max: a number of at least 1, or an array of shape (), such as the value of a schedule.
      d_max: a number of at least 0, or an array of shape ().
      **options: the keyword arguments of `batch_norm`. `shift` is the running mean if it is not given.

    Returns:
      y, of the shape of `x`, and the `Moments` of the batch.

    Raises:
      ValueError: `mean` or `var` has the wrong shape, a limit is out of range, or the input is complex; and every
        error of `batch_norm`.
      TypeError: there is no such option.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0], [3.0]])
      >>> y, _ = batch_renorm(x, jnp.array([0.0]), jnp.array([1.0]), r_max=3.0, d_max=5.0, epsilon=0.0)
      >>> y.ravel()  # (x - 0) / 1: the limits are wide enough
      Array([1., 3.], dtype=float32)

    Source: Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017, algorithm 1.
    """
    known = NormKeywords.__annotations__
    if unknown := set(options) - set(known):
        raise TypeError(
            f"batch_renorm: unknown option {', '.join(sorted(unknown))}; those of batch_norm are {', '.join(known)}"
        )
    mean, var = (as_array(a, name, caller="batch_renorm") for name, a in (("mean", mean), ("var", var)))
    of_record = {field.name for field in dataclasses.fields(NormOptions)}
    arrays: dict[str, Any] = {"shift": mean, **{name: a for name, a in options.items() if name not in of_record}}
    static: dict[str, Any] = {name: value for name, value in options.items() if name in of_record}
    operands = as_operands(x, caller="batch_renorm", scale=scale, bias=bias, **arrays)
    return corrected_norm(operands, Running(mean, var), Limits(r_max, d_max), NormOptions(**static))


def corrected_norm(
    operands: Operands, running: Running, limits: Limits, options: NormOptions
) -> tuple[jax.Array, Moments]:
    """Computes `batch_renorm`.

    Args:
      operands: the arrays of the call.
      running: the statistics that those of the batch are corrected towards.
      limits: the limits of the correction.
      options: the options, as given.

    Returns:
      y and the `Moments` of the batch.
    """
    options = options.replace(caller="batch_renorm")
    mean, var = running
    if jnp.iscomplexobj(operands.x) or jnp.iscomplexobj(mean):
        raise ValueError(
            "batch_renorm: the input and the running mean must be real, since a distance is clipped; normalise the "
            "real and the imaginary part as features of their own"
        )
    check_limits(*limits, caller="batch_renorm")
    for name, limit in limits._asdict().items():
        if callable(limit):
            raise ValueError(f"batch_renorm: {name} is a function; give its value, as in {name}={name}(step)")
        if jnp.shape(limit) != ():
            raise ValueError(f"batch_renorm: {name} must be one number, and has the shape {jnp.shape(limit)}")
    if var.shape != mean.shape:
        raise ValueError(f"batch_renorm: mean has shape {mean.shape} and var {var.shape}; they must be the same")
    correction = Correction(mean, var, *(jnp.asarray(limit, jnp.float32) for limit in limits))
    return pooled_norm(operands._replace(correction=correction), options)


def limits_at(r_max: Limit, d_max: Limit, steps: jax.Array) -> Limits:
    """Returns the limits after `steps` updates, whether they are numbers or schedules.

    Raises:
      ValueError: a schedule gives something other than a number.
    """
    found = []
    for name, limit in (("r_max", r_max), ("d_max", d_max)):
        value = limit(steps) if callable(limit) else limit
        if not is_number(value):
            raise ValueError(
                f"BatchRenorm: the function {name} must give a number for a number of updates, not {value!r}"
            )
        found.append(value)
    return Limits(*found)


def check_limits(r_max: Any, d_max: Any, *, caller: str) -> None:
    """Checks that the limits are in range; the value of a schedule is known only when the program runs."""
    for name, limit, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        array = isinstance(limit, jax.Array) and jnp.issubdtype(limit.dtype, jnp.number)
        if not callable(limit) and not (is_number(limit) or array):
            raise ValueError(f"{caller}: {name}={limit!r} must be a number of at least {least}")
        if isinstance(limit, int | float) and not limit >= least:
            raise ValueError(f"{caller}: {name}={limit} must be at least {least}")


def relaxed_r_max(step: ArrayLike) -> jax.Array:
    """Returns the paper's limit on r: 1 in the first 5,000 steps, then rising to 3 at 40,000.

    Args:
      step: the number of updates so far.

    Example:
      >>> [float(relaxed_r_max(step)) for step in (0, 5_000, 22_500, 100_000)]
      [1.0, 1.0, 2.0, 3.0]

    Source: Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017, section 4.2.
    """
    return jnp.interp(jnp.asarray(step, jnp.float32), jnp.array([5e3, 4e4]), jnp.array([1.0, 3.0]))


def relaxed_d_max(step: ArrayLike) -> jax.Array:
    """Returns the paper's limit on d: 0 in the first 5,000 steps, then rising to 5 at 25,000.

    Args:
      step: the number of updates so far.

    Example:
      >>> [float(relaxed_d_max(step)) for step in (0, 5_000, 15_000, 100_000)]
      [0.0, 0.0, 2.5, 5.0]

    Source: Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017, section 4.2.
    """
    return jnp.interp(jnp.asarray(step, jnp.float32), jnp.array([5e3, 2.5e4]), jnp.array([0.0, 5.0]))
