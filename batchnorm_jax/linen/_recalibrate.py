"""Population statistics of a flax.linen model."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import linen as nn

from batchnorm_jax import _recalibrate
from batchnorm_jax._collectives import AxisName
from batchnorm_jax._layer import Running, pool_calls, pooled_moments, pooled_over
from batchnorm_jax._moments import Moments, feature_axes
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

_KEY = "moments of recalibrate"


def recalibrate(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *args: Any,
    mode: str = "pooled",
    replace: Replace | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Replaces a model's running statistics by the exact moments of a data set.

    It covers every `batchnorm_jax.linen.BatchNorm`, `BatchRenorm` and `flax.linen.BatchNorm` of the model, and runs
    under `jit`; batches that are sharded over devices are pooled over all of them. The modes, and what they cost, are
    said at `batchnorm_jax.recalibrate`. With a span, "pooled" normalises by spans, as training does, and the statistics
    are those of all examples.

    Args:
      model: with norms anywhere in it, under `nn.scan`, `nn.vmap` and `nn.remat` too, but not in a branch of `nn.cond`
        or `nn.switch`. An axis that is bound within the model is pooled over as well.
      variables: with "batch_stats". They are not changed.
      batches: each is the first argument of the model's call. For "layerwise" they are gone over once a layer: give
        a list, or an object whose `__iter__` starts anew.
      *args: further arguments of the call.
      mode: "pooled" or "layerwise".
      replace: how norms of other classes are run, as in `synchronize`; None for a class: its statistics stay.
      **kwargs: further arguments of the call, such as `train=False`, to leave dropout out. What they say of running
        averages does not matter to the norms. `rngs` goes to `model.apply`.

    Returns:
      The variables with other statistics.

    Raises:
      ValueError: as `batchnorm_jax.recalibrate`; or the model has no norm, or none of a class that is known.
      UserWarning: a module looks like a norm, and is of a class that is not known: its statistics stay as they are.

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
    mode: str = "pooled",
    axis_name: AxisName | None = None,
    replace: Replace | None = None,
    **kwargs: Any,
) -> Callable[[Mapping[str, Any], Any], Any]:
    """The function that `batchnorm_jax.recalibrate` takes, for a model.

    To be run by the caller's own `jax.shard_map`, or `jax.pmap` with `out_axes=None`, with `axis_name`.

    Args:
      model: as in `recalibrate`.
      *args: further arguments of the model's call.
      mode: of `recalibrate`: what the norms normalise by.
      axis_name: the axes over which to pool, besides those of a norm's own that are bound; None under `jit`.
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

    def interceptor(next_function, call_args, call_kwargs, context: nn.module.InterceptorContext):
        norm: Any = context.module
        if is_to_replace(context, rules):
            # Our call on its variables, which is met here again.
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
        # The constructor's own would conflict with what is given in the call.
        over = pooled_over(norm.axis_name, norm.axis_index_groups, axis_name)
        # Nothing of the statistics that are to be replaced has a part in the new ones.
        limits: dict[str, Any] = {"r_max": 1.0, "d_max": 0.0} if isinstance(norm, BatchRenorm) else {}
        norm = norm.clone(use_running_average=None, **over, **limits, parent=norm.scope)
        running.append(norm)
        try:
            return _record(norm, mode == "layerwise", *call_args, **call_kwargs)
        finally:
            running.pop()

    # The norms that are being run, so that these calls of ours are left alone.
    running: list[Any] = []
    # Of the last trace.
    known: set[tuple[str, ...]] = set()
    lookalikes: dict[tuple[str, ...], type] = {}

    def function(variables: Mapping[str, Any], batch: Any) -> Any:
        known.clear()
        lookalikes.clear()
        with nn.intercept_methods(interceptor):
            _, updates = model.apply(variables, batch, *args, mutable=nn.DenyList("params"), **kwargs)
        left = {"/".join(path): kind for path, kind in lookalikes.items() if path not in known}
        if left and not known:
            raise ValueError(f"recalibrate: no norm was found: {name_lookalikes(left)}")
        if left:
            warnings.warn(f"recalibrate: {name_lookalikes(left)}", UserWarning, stacklevel=2)
        return _collect(updates["batch_stats"])

    return function


def _record(
    norm: BatchNorm, by_running: bool, x, use_running_average=None, *, mask=None, residual=None, update_stats=None
):
    """What the norm gives; its input's moments stay in its scope."""
    del use_running_average, update_stats
    scope: Any = norm.scope
    stats = Running(scope.get_variable("batch_stats", "mean"), scope.get_variable("batch_stats", "var"))
    features = feature_axes(norm.axis, x.ndim, caller="recalibrate")
    found = pooled_moments(norm, x, stats, features=features, mask=mask)
    # In batch_stats, since it is what nn.scan is told to hand out.
    scope.put_variable("batch_stats", _KEY, pool_calls(scope.get_variable("batch_stats", _KEY), found))
    # Not norm(...): that of a subclass has been called already.
    return BatchNorm.__call__(norm, x, by_running, mask=mask, residual=residual, update_stats=False)


def _collect(stats: Mapping[str, Any]) -> Any:
    if _KEY in stats:
        return Moments(*stats[_KEY])
    inner = {name: _collect(value) for name, value in stats.items() if isinstance(value, Mapping)}
    return {name: value for name, value in inner.items() if value}
