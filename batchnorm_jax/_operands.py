"""The arrays that one call of a norm is given, and their checks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from batchnorm_jax._checks import as_array, check_mask, check_real, check_residual
from batchnorm_jax.typing import Axes


class Correction(NamedTuple):
    """Known statistics towards which those of the batch are corrected: x_hat becomes r x_hat + d.

    Attributes:
      mean: shape (*features), the known mean.
      var: shape (*features), the known variance.
      r_max: the ratio of the deviations, s / s_known, is clipped to between 1 / r_max and r_max.
      d_max: the distance of the means, in s_known, is clipped to between -d_max and d_max.
    """

    mean: jax.Array
    var: jax.Array
    r_max: jax.Array
    d_max: jax.Array


class Operands(NamedTuple):
    """The arrays of one call; each but x may be None.

    Attributes:
      x: the input.
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      mask: True where a position counts towards the statistics.
      shift: shape (*features), a guess of the mean.
      residual: an array of the shape of x, added before the activation.
      correction: the known statistics of batch renormalization.
    """

    x: jax.Array
    scale: jax.Array | None = None
    bias: jax.Array | None = None
    mask: jax.Array | None = None
    shift: jax.Array | None = None
    residual: jax.Array | None = None
    correction: Correction | None = None

    def result_dtype(self) -> jnp.dtype:
        """Returns the dtype of y where none is asked for: that of x, scale, bias and residual together."""
        return jnp.result_type(*(a for a in (self.x, self.scale, self.bias, self.residual) if a is not None))


def as_operands(x: ArrayLike, *, caller: str, **others: ArrayLike | None) -> Operands:
    """Returns `Operands` of arrays.

    Args:
      x: the input.
      caller: the public call, for messages.
      **others: the other arrays, by their names in `Operands`.

    Raises:
      ValueError: an argument is not an array of numbers.
    """
    arrays: dict[str, Any] = {
        name: None if a is None else as_array(a, name, caller=caller) for name, a in others.items()
    }
    return Operands(as_array(x, "the input", caller=caller), **arrays)


def check_operands(operands: Operands, features: tuple[int, ...], axis: Axes, *, caller: str) -> Operands:
    """Checks the shapes of the arrays and returns them, the mask in its usual form.

    Args:
      operands: the arrays.
      features: the feature axes.
      axis: the feature axis or axes as given, for messages.
      caller: the public call, for messages.

    Raises:
      ValueError: an array has the wrong shape, or is complex where it must be real.
    """
    x, shape = operands.x, tuple(operands.x.shape[i] for i in features)
    known = None if operands.correction is None else operands.correction.mean
    for name, value in (("scale", operands.scale), ("bias", operands.bias), ("mean", known), ("shift", operands.shift)):
        if value is not None and jnp.shape(value) != shape:
            raise ValueError(
                f"{caller}: {name} has shape {jnp.shape(value)}, but the input of shape {x.shape} "
                f"has features of shape {shape} (axis={axis}); give it that shape"
            )
    check_residual(operands.residual, x, caller=caller)
    check_real(operands.scale, operands.bias, x, caller=caller)
    if operands.mask is None:
        return operands
    return operands._replace(mask=check_mask(operands.mask, x.shape, caller=caller))
