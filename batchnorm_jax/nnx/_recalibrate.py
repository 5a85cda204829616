"""Exact population statistics of a flax.nnx model."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
from flax import nnx

from batchnorm_jax import _recalibrate
from batchnorm_jax._checks import feature_axes
from batchnorm_jax._inference import Running
from batchnorm_jax._layer import pool_calls, pooled_moments, pooled_over
from batchnorm_jax._warnings import warn_of_unchanged
from batchnorm_jax.nnx._module import BatchNorm
from batchnorm_jax.nnx._renorm import BatchRenorm
from batchnorm_jax.nnx._synchronize import become_ours, lookalikes, name_lookalikes, no_norms, norms
from batchnorm_jax.typing import RecalibrationMode


def recalibrate(
    model: nnx.Module, batches: Iterable[Any], *args: Any, mode: RecalibrationMode = "pooled", **kwargs: Any
) -> None:
    """Replaces a model's running statistics by the exact moments of a data set, in place.

    It covers every `batchnorm_jax.nnx.BatchNorm`, `BatchRenorm` and `flax.nnx.BatchNorm` of the model, and runs under
    `jit`; batches that are sharded over devices are pooled over all of them. `batchnorm_jax.recalibrate` explains the
    modes and their cost. Only these statistics of the model change. To return to the old ones, keep them with
    `nnx.state(model, nnx.BatchStat)` and restore them with `nnx.update`.

    Args:
      model: the model, which is called with a batch. Call `model.eval()` first if it has dropout; the norms follow
        only `mode`.
      batches: each is the first argument of the model's call. For "layerwise" they are read once per layer: give
        a list, or an object whose `__iter__` starts anew.
      *args: further arguments of the call; no modules, and no `nnx.Rngs`.
      mode: the statistics that the norms normalise by, as in `batchnorm_jax.recalibrate`.
      **kwargs: further arguments of the call.

    Raises:
      ValueError: the model has no batch normalization, or one of a subclass with a call of its own; and every error of
        `batchnorm_jax.recalibrate`.
      UnchangedNormWarning: a module looks like a norm but is of an unknown class: its statistics stay as they are.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from batchnorm_jax.nnx import recalibrate
      >>> model = nnx.Sequential(nnx.BatchNorm(1, rngs=nnx.Rngs(0)))
      >>> recalibrate(model, [jnp.array([[1.0], [2.0]]), jnp.array([[6.0]])])
      >>> model.layers[0].mean[...]
      Array([3.], dtype=float32)

    Source: see `batchnorm_jax.recalibrate`.
    """
    own = dict(norms(model))
    for path, norm in own.items():
        base = BatchNorm if isinstance(norm, BatchNorm) else nnx.BatchNorm
        if type(norm).__call__ is not base.__call__:
            raise ValueError(
                f"recalibrate: {path} is of the class {type(norm).__name__}, which has a call of its own: what it "
                "normalises is not known"
            )
    if not own:
        raise no_norms(model, caller="recalibrate")
    if left := lookalikes(model):
        warn_of_unchanged(f"recalibrate: {name_lookalikes(left)}", stacklevel=2)
    by_running = _recalibrate.mode_named(mode).by_running
    graph, state = nnx.split(model)

    @jax.jit
    def moments_fn(variables, batch):
        copy = nnx.merge(graph, variables["state"])
        found = dict(norms(copy))
        for path, norm in found.items():
            _start_recording(norm, variables["batch_stats"][path], by_running=by_running)
        copy(batch, *args, **kwargs)
        return {path: norm.recorded.get_value() for path, norm in found.items() if norm.recorded is not None}

    stats = {path: {"mean": norm.mean[...], "var": norm.var[...]} for path, norm in own.items()}
    variables = _recalibrate.recalibrate(
        _recalibrate.of_batches(moments_fn), {"batch_stats": stats, "state": state}, batches, mode=mode
    )
    for path, norm in own.items():
        norm.mean.set_value(variables["batch_stats"][path]["mean"])
        norm.var.set_value(variables["batch_stats"][path]["var"])


def _start_recording(norm: Any, stats: dict[str, jax.Array], *, by_running: bool) -> None:
    """Makes a norm of a copied model ours, and one that records its input's moments.

    Args:
      norm: the norm, Flax's or ours.
      stats: its running mean and variance in this pass.
      by_running: normalise by these, not by the batch's.
    """
    if not isinstance(norm, BatchNorm):
        become_ours(norm)
    recording: Any = norm
    recording.__class__ = _recording(type(norm))
    recording.by_running = by_running
    if isinstance(norm, BatchRenorm):
        # The statistics that are to be replaced must have no part in the new ones.
        recording.r_max, recording.d_max = 1.0, 0.0
    recording.recorded = nnx.data(None)
    recording.mean.set_value(stats["mean"])
    recording.var.set_value(stats["var"])


@functools.cache
def _recording(kind: Any) -> type:
    """Returns a class of norms that record the moments of their input over all calls."""

    class Recording(kind):
        def __call__(self, x, use_running_average=None, *, mask=None, residual=None, update_stats=None):
            del use_running_average, update_stats
            features = feature_axes(self.axis, x.ndim, caller="recalibrate")
            stats = Running(self.mean[...], self.var[...])
            over = pooled_over(self, None)
            self.axis_name, self.axis_index_groups = over.axis_name, over.groups
            found = pooled_moments(self, x, stats, features, mask)
            before = None if self.recorded is None else self.recorded.get_value()
            self.recorded = nnx.Intermediate(pool_calls(before, found))
            return kind.__call__(self, x, self.by_running, mask=mask, residual=residual, update_stats=False)

    return Recording
