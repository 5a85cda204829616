"""What a layer computes in a call, whichever of Flax's interfaces keeps its variables."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from batchnorm_jax._activations import Activation
from batchnorm_jax._batch_norm import batch_norm
from batchnorm_jax._collectives import AxisName, as_groups, check_axis_name, is_bound
from batchnorm_jax._conditioning import warn_of_conditioning
from batchnorm_jax._core import effective_scale
from batchnorm_jax._inference import normalize
from batchnorm_jax._moments import (
    Moments,
    check_momentum,
    conditioning,
    is_number,
    nearer_shift,
    pool,
    update_running,
    widened,
)
from batchnorm_jax._options import as_flag, check_dtype, check_epsilon, check_options
from batchnorm_jax._renorm import batch_renorm


class Norm(Protocol):
    """The options that the modules of both interfaces have under the same names."""

    momentum: float
    epsilon: float
    axis_name: AxisName | None
    axis_index_groups: Any
    use_fast_variance: bool
    span: int | None
    collective: str
    activation: Activation | None
    save_for_backward: str
    unbiased_running_var: bool
    skip_nonfinite: bool
    update_stats: bool | None
    check_conditioning: bool


class Running(NamedTuple):
    """Running statistics."""

    mean: jax.Array
    var: jax.Array


class Limits(NamedTuple):
    """How far a renormalization corrects: see `batchnorm_jax.batch_renorm`."""

    r_max: Any
    d_max: Any


Limit = float | Callable[[jax.Array], Any]


def limits_at(r_max: Limit, d_max: Limit, steps: jax.Array) -> Limits:
    """The limits after `steps` updates, of numbers or of schedules."""
    found = []
    for name, limit in (("r_max", r_max), ("d_max", d_max)):
        value = limit(steps) if callable(limit) else limit
        if not is_number(value):
            raise ValueError(
                f"BatchRenorm: the function {name} must give a number for a number of updates, not {value!r}"
            )
        found.append(value)
    return Limits(*found)


class Called(NamedTuple):
    """What comes out of a call.

    Attributes:
      y: the result.
      running: the new running statistics; None where they stay as they are.
      conditioning: how far the running mean and 0 were off; None where it was not asked for.
    """

    y: jax.Array
    running: Running | None
    conditioning: jax.Array | None


# The options of both interfaces that are true or false.
FLAGS = ("use_bias", "use_scale", "use_fast_variance", "unbiased_running_var", "skip_nonfinite", "check_conditioning")


def check_layer(norm: Any, *, caller: str) -> None:
    """Raises a ValueError where an option of a layer is none that it can have."""
    check_momentum(norm.momentum, caller=caller)
    check_epsilon(norm.epsilon, caller=caller)
    check_dtype(norm.dtype, caller=caller)
    check_dtype(norm.param_dtype, "param_dtype", caller=caller)
    check_axis_name(norm.axis_name, caller=caller)
    as_groups(norm.axis_index_groups, caller=caller)
    for name in FLAGS:
        as_flag(getattr(norm, name), name, caller=caller)
    for name in ("use_running_average", "update_stats"):
        if getattr(norm, name) is not None:
            as_flag(getattr(norm, name), name, caller=caller)
    check_options(
        collective=norm.collective,
        activation=norm.activation,
        save_for_backward=norm.save_for_backward,
        has_residual=False,
        caller=caller,
    )


def call(
    norm: Norm,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    running: Running,
    *,
    features: tuple[int, ...],
    dtype: Any,
    use_running_average: bool,
    update_stats: bool | None,
    mask: jax.Array | None,
    residual: jax.Array | None,
    limits: Limits | None = None,
    initializing: bool = False,
) -> Called:
    """Normalises `x` by the batch or by the running statistics, and averages these.

    Args:
      norm: its options.
      x: the input.
      scale: of the layer.
      bias: of the layer.
      running: the running statistics.
      features: the feature axes.
      dtype: of the result.
      use_running_average: normalise by the running statistics.
      update_stats: average the batch's into them; None: as the options say.
      mask: of the call.
      residual: of the call.
      limits: of a renormalization; None: none.
      initializing: no axis is bound yet, and nothing is averaged.
    """
    use_running_average = as_flag(use_running_average, "use_running_average", caller="BatchNorm")
    if update_stats is not None:
        update_stats = as_flag(update_stats, "update_stats", caller="BatchNorm")
    if update_stats is None:
        update_stats = (not use_running_average) if norm.update_stats is None else norm.update_stats
    update_stats = update_stats and not initializing
    x = widened(x, dtype)
    common = {
        "axis": features,
        "epsilon": norm.epsilon,
        "activation": norm.activation,
        "residual": residual,
        "dtype": dtype,
    }
    y, moments, figure = x, None, None
    if not use_running_average or update_stats:
        pooling = statistics_options(norm, alone=initializing) | {
            "mask": mask,
            "span": None if initializing else norm.span,
            "save_for_backward": norm.save_for_backward,
        }
        if limits is None:
            y, moments = batch_norm(x, scale, bias, shift=running.mean, **pooling, **common)
        else:
            y, moments = batch_renorm(x, *running, scale, bias, **limits._asdict(), **pooling, **common)
        if norm.check_conditioning and not initializing:
            figure = conditioning(moments, nearer_shift(moments, running.mean))
    if use_running_average:
        y = normalize(x, *running, effective_scale(scale, norm.save_for_backward), bias, **common)
    if moments is None or not update_stats:
        return Called(y, None, figure)
    averaged = update_running(
        *running,
        moments,
        momentum=norm.momentum,
        unbiased=norm.unbiased_running_var,
        skip_nonfinite=norm.skip_nonfinite,
    )
    return Called(y, Running(*averaged), figure)


def pooled_moments(norm: Norm, x, running: Running, *, features, mask) -> Moments:
    """The moments of all positions that the layer pools, whatever its span: the accurate ones, as they are to stay."""
    options: dict[str, Any] = {**statistics_options(norm, alone=False), "collective": "all_gather"}
    _, found = batch_norm(x, shift=running.mean, axis=features, mask=mask, **options)
    if not norm.skip_nonfinite:
        return found
    finite = jnp.isfinite(found.mean) & jnp.isfinite(found.var)
    count = jnp.where(finite, jnp.broadcast_to(found.count, finite.shape), 0)
    return Moments(jnp.where(finite, found.mean, 0), jnp.where(finite, found.var, 1), count)


def pooled_over(own: AxisName | None, groups: Any, given: AxisName | None) -> dict[str, Any]:
    """Over whom a layer of a model that is recalibrated pools: the devices, and an axis bound within the model."""
    if not is_bound(own):
        return {"axis_name": given, "axis_index_groups": None}
    if given is None:
        return {"axis_name": own, "axis_index_groups": groups}
    names = [tuple(name) if isinstance(name, tuple | list) else (name,) for name in (given, own)]
    return {"axis_name": tuple(dict.fromkeys(names[0] + names[1])), "axis_index_groups": None}


def pool_calls(before: Moments | None, found: Moments) -> Moments:
    """The moments of all calls of a layer so far."""
    if before is None:
        return found
    return pool(jax.tree.map(lambda *both: jnp.stack(both), Moments(*before), found))


def statistics_options(norm: Norm, *, alone: bool) -> dict[str, Any]:
    """Over whom a layer pools, and how; `alone`: over nobody."""
    return {
        "axis_name": None if alone else norm.axis_name,
        "axis_index_groups": None if alone else norm.axis_index_groups,
        "collective": norm.collective if norm.use_fast_variance else "all_gather",
    }


def diagnose(norm: Norm, figure: jax.Array | None, name: str) -> None:
    """Warns of a figure of conditioning where the way the layer pools suffers from it."""
    if figure is not None and norm.collective == "psum" and norm.use_fast_variance:
        warn_of_conditioning(figure, name)
