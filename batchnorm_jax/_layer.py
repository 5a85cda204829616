"""The forward pass that the linen and nnx modules share."""

import dataclasses
from typing import Any, NamedTuple, Protocol, get_type_hints

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from batchnorm_jax._arrays import widened
from batchnorm_jax._batch_norm import pooled_norm
from batchnorm_jax._checks import as_flag, check_dtype
from batchnorm_jax._collectives import Pool, as_groups, check_axis_name, is_bound
from batchnorm_jax._inference import Running, normalize_by
from batchnorm_jax._moments import Moments, conditioning, nearer_shift, pool
from batchnorm_jax._operands import Operands, as_operands
from batchnorm_jax._options import NormOptions
from batchnorm_jax._renorm import Limits, corrected_norm
from batchnorm_jax._running import check_momentum, update_running
from batchnorm_jax._saving import effective_scale
from batchnorm_jax._statistics import EXACT, POOLINGS
from batchnorm_jax._warnings import warn_of_conditioning
from batchnorm_jax.typing import Axes, AxisName, Collective, Groups


class Norm(Protocol):
    """The options that a module has beside those of `NormOptions`, and of these the ones that are read here.

    An option that is `bool` or `bool | None` here is checked to be so.
    """

    axis_name: AxisName | None
    axis_index_groups: Groups | None
    collective: Collective
    param_dtype: DTypeLike
    momentum: float
    use_bias: bool
    use_scale: bool
    use_fast_variance: bool
    unbiased_running_var: bool
    skip_nonfinite: bool
    check_conditioning: bool
    use_running_average: bool | None
    update_stats: bool | None


_FLAGS = tuple(name for name, kind in get_type_hints(Norm).items() if kind is bool)
_OPTIONAL_FLAGS = tuple(name for name, kind in get_type_hints(Norm).items() if kind == bool | None)
# The options of a call that are fields of the modules.
_OF_MODULES = tuple(field.name for field in dataclasses.fields(NormOptions) if field.name != "caller")


class Request(NamedTuple):
    """The statistics that one call of a module asks for.

    Attributes:
      use_running_average: normalise by the running statistics.
      update_stats: average the batch's statistics into the running ones; None: as the module's options say.
      initializing: no axis is bound yet, and nothing is averaged.
    """

    use_running_average: bool
    update_stats: bool | None
    initializing: bool = False


class Called(NamedTuple):
    """The result of a call.

    Attributes:
      y: the normalised input.
      running: the new running statistics; None where they stay as they are.
      conditioning: the distance of the running mean and 0 from the mean; None where it was not asked for.
    """

    y: jax.Array
    running: Running | None
    conditioning: jax.Array | None


def check_layer(norm: Norm, *, caller: str) -> None:
    """Checks every option of a module that is the same in both interfaces.

    Raises:
      ValueError: an option has a value that it cannot have, or two options conflict.
    """
    check_momentum(norm.momentum, caller=caller)
    check_dtype(norm.param_dtype, "param_dtype", caller=caller)
    check_axis_name(norm.axis_name, caller=caller)
    as_groups(norm.axis_index_groups, caller=caller)
    for name in _FLAGS:
        as_flag(getattr(norm, name), name, caller=caller)
    for name in _OPTIONAL_FLAGS:
        if getattr(norm, name) is not None:
            as_flag(getattr(norm, name), name, caller=caller)
    _own_options(norm).replace(caller=caller).check(has_residual=False)


def _own_options(norm: Norm) -> NormOptions:
    """Returns the options of a call as the module has them."""
    return NormOptions(**{name: getattr(norm, name) for name in _OF_MODULES})


def options_of(norm: Norm, axis: Axes, dtype: DTypeLike | None = None, *, alone: bool = False) -> NormOptions:
    """Returns the options of a call of the module.

    Args:
      norm: the module, which supplies the options.
      axis: the feature axis or axes of the input.
      dtype: the dtype of the result.
      alone: no axis is bound yet: normalise the input by itself.
    """
    collective = norm.collective if norm.use_fast_variance else EXACT
    options = _own_options(norm).replace(axis=axis, dtype=dtype, collective=collective)
    return options.replace(axis_name=None, axis_index_groups=None, span=None) if alone else options


def call(
    norm: Norm,
    operands: Operands,
    running: Running,
    options: NormOptions,
    request: Request,
    limits: Limits | None = None,
) -> Called:
    """Normalises the input by the batch or by the running statistics, and updates the running statistics.

    Args:
      norm: the module, which supplies the rule of the running statistics.
      operands: the arrays of the call.
      running: the running statistics.
      options: the options of the call, as `options_of`.
      request: the statistics that the call asks for.
      limits: the limits of batch renormalization; None: plain batch normalization.
    """
    use_running_average, update_stats, initializing = request
    use_running_average = as_flag(use_running_average, "use_running_average", caller="BatchNorm")
    if update_stats is not None:
        update_stats = as_flag(update_stats, "update_stats", caller="BatchNorm")
    if update_stats is None:
        update_stats = (not use_running_average) if norm.update_stats is None else norm.update_stats
    update_stats = update_stats and not initializing
    dtype = operands.result_dtype() if options.dtype is None else options.dtype
    operands = operands._replace(x=widened(operands.x, dtype))
    y, moments, figure = operands.x, None, None
    if not use_running_average or update_stats:
        shifted = operands._replace(shift=running.mean)
        if limits is None:
            y, moments = pooled_norm(shifted, options)
        else:
            y, moments = corrected_norm(shifted, running, limits, options)
        if norm.check_conditioning and not initializing:
            figure = conditioning(moments, nearer_shift(moments, running.mean))
    if use_running_average:
        scale = effective_scale(operands.scale, options.save_for_backward)
        y = normalize_by(running, operands._replace(scale=scale), options.replace(caller="normalize"))
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


def diagnose(norm: Norm, figure: jax.Array | None, name: str) -> None:
    """Warns if the figure of conditioning is too large for the way in which the layer pools."""
    is_exact = POOLINGS[norm.collective].is_exact or not norm.use_fast_variance
    if figure is not None and not is_exact:
        warn_of_conditioning(figure, name)


def pooled_moments(norm: Norm, x: ArrayLike, running: Running, axis: Axes, mask: ArrayLike | None) -> Moments:
    """Returns the moments of all positions that the layer pools, whatever its span.

    They are pooled by the exact collective, because the statistics that come of them are to stay.

    Args:
      norm: the module.
      x: its input.
      running: its running statistics.
      axis: the feature axis or axes.
      mask: the mask of the call.
    """
    options = NormOptions(
        axis=axis, axis_name=norm.axis_name, axis_index_groups=norm.axis_index_groups, collective=EXACT
    )
    operands = as_operands(x, caller=options.caller, shift=running.mean, mask=mask)
    _, found = pooled_norm(operands, options)
    if not norm.skip_nonfinite:
        return found
    finite = jnp.isfinite(found.mean) & jnp.isfinite(found.var)
    count = jnp.where(finite, jnp.broadcast_to(found.count, finite.shape), 0)
    return Moments(jnp.where(finite, found.mean, 0), jnp.where(finite, found.var, 1), count)


def pooled_over(norm: Norm, given: AxisName | None) -> Pool:
    """Returns the axes and groups to reduce over while recalibrating.

    Args:
      norm: a layer of the model, which may reduce over an axis that is bound within the model.
      given: the axes that the devices are on, or None.
    """
    own, groups = norm.axis_name, norm.axis_index_groups
    if not is_bound(own):
        return Pool(given)
    if given is None:
        return Pool(own, groups)
    names: list[tuple[Any, ...]] = [tuple(name) if isinstance(name, tuple | list) else (name,) for name in (given, own)]
    return Pool(tuple(dict.fromkeys(names[0] + names[1])))


def pool_calls(before: Moments | None, found: Moments) -> Moments:
    """Returns the moments of all calls of a layer so far."""
    if before is None:
        return found
    return pool(jax.tree.map(lambda *both: jnp.stack(both), Moments(*before), found))
