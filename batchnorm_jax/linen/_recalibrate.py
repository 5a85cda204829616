"""Exact population statistics of a flax.linen model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import linen as nn

from batchnorm_jax import _recalibrate
from batchnorm_jax._checks import feature_axes
from batchnorm_jax._inference import Running
from batchnorm_jax._layer import pool_calls, pooled_moments, pooled_over
from batchnorm_jax._moments import Moments
from batchnorm_jax._warnings import warn_of_unchanged
from batchnorm_jax.linen._adapt import (
    Replace,
    check_model,
    check_replace,
    is_to_replace,
    looks_like_a_norm,
    name_lookalikes,
    plain_class,
    run_as_ours,
)
from batchnorm_jax.linen._module import BatchNorm, BatchRenorm
from batchnorm_jax.linen._synchronize import as_ours, is_flax_call, is_our_call
from batchnorm_jax.typing import AxisName, RecalibrationMode, VariableDict, Variables

# The name under which a norm keeps its moments among its statistics.
_KEY = "moments of recalibrate"


def recalibrate(
    model: nn.Module,
    variables: Variables,
    batches: Iterable[Any],
    *args: Any,
    mode: RecalibrationMode = "pooled",
    replace: Replace | None = None,
    **kwargs: Any,
) -> VariableDict:
    """Replaces a model's running statistics by the exact moments of a data set.

    It covers every `batchnorm_jax.linen.BatchNorm`, `BatchRenorm` and `flax.linen.BatchNorm` of the model, and runs
    under `jit`; batches that are sharded over devices are pooled over all of them. `batchnorm_jax.recalibrate` explains
    the modes and their cost. With a span, "pooled" normalises by spans, as training does, and the statistics are those
    of all examples.

    Args:
      model: the model. Its norms may be anywhere in it, also under `nn.scan`, `nn.vmap` and `nn.remat`, but not in a
        branch of `nn.cond` or `nn.switch`. Moments are pooled over an axis that is bound within the model, too.
      variables: with "batch_stats". They are not changed.
      batches: each is the first argument of the model's call. For "layerwise" they are read once per layer: give
        a list, or an object whose `__iter__` starts anew.
      *args: further arguments of the call.
      mode: the statistics that the norms normalise by, as in `batchnorm_jax.recalibrate`.
      replace: the way that norms of other classes are run, as in `synchronize`; None for a class: its statistics stay.
      **kwargs: further arguments of the call, such as `train=False`, to leave dropout out. The norms ignore an argument
        that chooses between running and batch statistics. `rngs` goes to `model.apply`.

    Returns:
      The variables with other statistics.

    Raises:
      ValueError: as `batchnorm_jax.recalibrate`; or the model has no norm, or none of a known class.
      UnchangedNormWarning: a module looks like a norm but is of an unknown class: its statistics stay as they are.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from batchnorm_jax.linen import recalibrate
      >>> model = nn.BatchNorm(use_running_average=True)
      >>> batches = [jnp.array([[1.0], [2.0]]), jnp.array([[6.0]])]
      >>> variables = recalibrate(model, model.init(jax.random.key(0), batches[0]), batches)
      >>> variables["batch_stats"]["mean"]
      Array([3.], dtype=float32)

    Source: see `batchnorm_jax.recalibrate`.
    """
    function = jax.jit(moments_fn(model, *args, mode=mode, replace=replace, **kwargs))
    _recalibrate.check_variables(variables, caller="recalibrate", collections=True)
    return _recalibrate.recalibrate(_recalibrate.of_batches(function), variables, batches, mode=mode)


def moments_fn(
    model: nn.Module,
    *args: Any,
    mode: RecalibrationMode = "pooled",
    axis_name: AxisName | None = None,
    replace: Replace | None = None,
    **kwargs: Any,
) -> Callable[[Variables, Any], _recalibrate.MomentsTree]:
    """Makes the function that `batchnorm_jax.recalibrate` takes, for a model.

    Run the function in your own `jax.shard_map`, or `jax.pmap` with `out_axes=None`, with `axis_name`.

    Args:
      model: as in `recalibrate`.
      *args: further arguments of the model's call.
      mode: as in `recalibrate`: the statistics that the norms normalise by.
      axis_name: the axes to reduce over, besides those of a norm's own that are bound; None under `jit`.
      replace: as in `recalibrate`.
      **kwargs: further arguments of the model's call.

    Returns:
      A function of the variables and a batch that gives the `Moments` of every norm, in the structure of `batch_stats`.
      A norm that is called several times has those of all calls.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from batchnorm_jax.linen import moments_fn
      >>> model = nn.Sequential([nn.BatchNorm(use_running_average=True)])
      >>> x = jnp.array([[[1.0]], [[3.0]]])  # two devices with an example each
      >>> variables = model.init(jax.random.key(0), x[0])
      >>> function = moments_fn(model, axis_name="batch")
      >>> jax.vmap(lambda x: function(variables, x), axis_name="batch")(x)["layers_0"].mean[0]
      Array([2.], dtype=float32)
    """
    check_model(model, caller="recalibrate")
    rules = check_replace(replace, caller="recalibrate")
    by_running = _recalibrate.mode_named(mode).by_running

    def interceptor(next_function, call_args, call_kwargs, context: nn.module.InterceptorContext):
        norm: Any = context.module
        if is_to_replace(context, rules):
            # Our call on the norm's variables, which this interceptor sees again.
            known.add(norm.path)
            return run_as_ours(norm, rules[plain_class(norm)], call_args, call_kwargs, caller="recalibrate")
        if is_flax_call(context):
            norm = as_ours(norm)
        elif not is_our_call(context) or any(norm is own for own in running):
            result = next_function(*call_args, **call_kwargs)
            kind = plain_class(norm)
            if norm.scope is not None and kind not in (*rules, BatchNorm, BatchRenorm) and looks_like_a_norm(norm):
                lookalikes[norm.path] = kind
            return result
        known.add(norm.path)
        over = pooled_over(norm, axis_name)
        # The statistics that are to be replaced must have no part in the new ones.
        limits: dict[str, Any] = {"r_max": 1.0, "d_max": 0.0} if isinstance(norm, BatchRenorm) else {}
        norm = norm.clone(
            use_running_average=None,  # The constructor's own would conflict with the call's.
            axis_name=over.axis_name,
            axis_index_groups=over.groups,
            **limits,
            parent=norm.scope,
        )
        running.append(norm)
        try:
            return _record(norm, by_running, *call_args, **call_kwargs)
        finally:
            running.pop()

    # The norms that are being run, whose own calls must be left alone.
    running: list[BatchNorm] = []
    # The norms and lookalikes of the last trace.
    known: set[tuple[str, ...]] = set()
    lookalikes: dict[tuple[str, ...], type] = {}

    def function(variables: Variables, batch: Any) -> _recalibrate.MomentsTree:
        known.clear()
        lookalikes.clear()
        with nn.intercept_methods(interceptor):
            _, updates = model.apply(variables, batch, *args, mutable=nn.DenyList("params"), **kwargs)
        left = {"/".join(path): kind for path, kind in lookalikes.items() if path not in known}
        if left and not known:
            raise ValueError(f"recalibrate: no norm was found: {name_lookalikes(left)}")
        if left:
            warn_of_unchanged(f"recalibrate: {name_lookalikes(left)}", stacklevel=2)
        return _collect(updates["batch_stats"])

    return function


def _record(
    norm: BatchNorm, by_running: bool, x, use_running_average=None, *, mask=None, residual=None, update_stats=None
):
    """Runs the norm, and leaves its input's moments in its scope."""
    del use_running_average, update_stats
    scope: Any = norm.scope
    stats = Running(scope.get_variable("batch_stats", "mean"), scope.get_variable("batch_stats", "var"))
    features = feature_axes(norm.axis, x.ndim, caller="recalibrate")
    found = pooled_moments(norm, x, stats, features, mask)
    # In batch_stats, because that is the collection that nn.scan is told to return.
    scope.put_variable("batch_stats", _KEY, pool_calls(scope.get_variable("batch_stats", _KEY), found))
    # Not norm(...): the call of a subclass is running already.
    return BatchNorm.__call__(norm, x, by_running, mask=mask, residual=residual, update_stats=False)


def _collect(stats: Mapping[str, Any]) -> _recalibrate.MomentsTree:
    """Takes the moments out of the statistics, nested as these are."""
    if _KEY in stats:
        return Moments(*stats[_KEY])
    inner = {name: _collect(value) for name, value in stats.items() if isinstance(value, Mapping)}
    return {name: value for name, value in inner.items() if value}
