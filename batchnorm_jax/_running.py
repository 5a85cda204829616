"""The one rule by which running statistics follow the batches."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from batchnorm_jax._arrays import promoted
from batchnorm_jax._checks import as_array, is_number
from batchnorm_jax._moments import Moments, as_moments


def update_running(
    mean: ArrayLike,
    var: ArrayLike,
    moments: Moments,
    *,
    momentum: ArrayLike,
    unbiased: bool = False,
    skip_nonfinite: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Averages a batch into the running statistics: running = momentum running + (1 - momentum) batch.

    They stay as they are, to the bit, where the batch has no position.

    Args:
      mean: the running mean. It becomes complex with the first complex batch, as in Flax.
      var: the running variance.
      moments: the moments of the batch.
      momentum: the share of the running statistics that is kept. (PyTorch's momentum is 1 minus this one.)
      unbiased: average the variance that is divided by max(count - 1, 1), as PyTorch does; over spans, with their mean
        count.
      skip_nonfinite: leave a feature as it is where the batch's mean or variance is not finite.

    Returns:
      The new mean and variance, in the dtypes of the old, computed in that of the batch's.

    Raises:
      ValueError: the momentum is None, below 0 or above 1, or the shapes of the running statistics and of the moments
        differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from batchnorm_jax import Moments, update_running
      >>> batch = Moments(mean=jnp.array([2.0]), var=jnp.array([3.0]), count=jnp.array(8))
      >>> update_running(jnp.array([0.0]), jnp.array([1.0]), batch, momentum=0.5)
      (Array([1.], dtype=float32), Array([2.], dtype=float32))

    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, 2015, section 3.1.
    """
    check_momentum(momentum, caller="update_running")
    moments = as_moments(moments, caller="update_running")
    mean, var = (as_array(a, name, caller="update_running") for name, a in (("mean", mean), ("var", var)))
    if mean.shape != moments.mean.shape or var.shape != moments.var.shape:
        raise ValueError(
            f"update_running: mean has shape {mean.shape} and var {var.shape}, and those of the batch have "
            f"{moments.mean.shape} and {moments.var.shape}; they must be the same"
        )
    new_var = moments.var
    if unbiased:
        new_var = new_var * (moments.count / jnp.maximum(moments.count - 1, 1))
    keep = jnp.broadcast_to(moments.count > 0, new_var.shape)
    if skip_nonfinite:
        keep = keep & jnp.isfinite(moments.mean) & jnp.isfinite(new_var)

    def averaged(running: jax.Array, batch: jax.Array) -> jax.Array:
        dtype = promoted(running, batch) if jnp.iscomplexobj(batch) else running.dtype
        # In half precision the product alone would round away the batch's share.
        running = running.astype(batch.dtype)
        return jnp.where(keep, momentum * running + (1 - momentum) * batch, running).astype(dtype)

    return averaged(mean, moments.mean), averaged(var, new_var)


def check_momentum(momentum: Any, *, caller: str) -> None:
    """Checks that a momentum is a number of 0 to 1; the value of a traced one is not known yet."""
    if momentum is None:
        raise ValueError(
            f"{caller}: momentum=None, PyTorch's plain average over all batches, is not kept here; give a number of 0 "
            "to 1, and take the exact statistics at the end with recalibrate"
        )
    if not is_number(momentum) or not (isinstance(momentum, Tracer) or 0 <= momentum <= 1):
        raise ValueError(
            f"{caller}: momentum={momentum!r} must be a number of 0 to 1, the share of the running statistics that is "
            "kept (PyTorch's momentum is 1 minus this one)"
        )
