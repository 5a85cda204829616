"""Gradient accumulation: an update of a large batch in the memory of one micro-batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh

from batchnorm_jax import Moments, pool

from ..machine.devices import AXIS
from ..recipe.averaging import Momentum, average
from ..state import Descent, Indexed, Recipe, Source, TrainState
from .single import (
    REPLICATED,
    SHARDED,
    device_varying,
    examples_in,
    losses_of,
    pick,
    specs,
    step_key,
    update,
)


class Total(NamedTuple):
    """Running totals over the micro-batches of one update.

    Attributes:
      grads: gradients of the summed loss, one per device along a leading axis, so that a single collective per
        update reduces them.
      losses: per device, the sums of the losses and of the shares of correct predictions, shape (devices, 2).
      moments: moments of the micro-batches so far, in the structure of `batch_stats`.
      count: the number of examples so far.
    """

    grads: Any
    losses: Any
    moments: Any
    count: Any


def accumulated_step(
    model: nn.Module,
    descent: Descent,
    mesh: Mesh,
    recipe: Recipe,
    *,
    micro_batches: int,
    momentum: Momentum,
    averaged: bool,
) -> tuple[Callable, Callable, Callable]:
    """Returns the three programs that make up an update with gradient accumulation.

    Calling `add` once per micro-batch takes the memory of one micro-batch, however many there are. A loop inside a
    single program would need no more memory, but on a CPU XLA runs convolutions inside a loop several times slower
    (jax issue 12868).

    Args:
      model: the model to train.
      descent: the optimizer and schedule, which turn the mean gradient into an update.
      mesh: the devices.
      recipe: settings of the forward pass.
      micro_batches: the number of micro-batches per update.
      momentum: momentum of the running statistics, which change once per update, by the moments of all micro-batches.
      averaged: True: average the moments of the micro-batches, as the moments of spans and of devices with local
        statistics are averaged. False: pool them.

    Returns:
      `zero(state) -> total`; `add(state, total, source, i) -> total`, which reads micro-batch i of the update;
      and `finish(state, total, peak learning rate) -> (state, metrics)`.
    """

    def zero(state: TrainState) -> Total:
        grads = jax.tree.map(lambda p: jnp.zeros((mesh.size, *p.shape), p.dtype), state.params)
        return Total(grads, jnp.zeros((mesh.size, 2)), jax.tree.map(jnp.zeros_like, state.batch_stats), jnp.zeros(()))

    layout = Total(SHARDED, SHARDED, REPLICATED, REPLICATED)

    def local_add(state: TrainState, total: Total, source: Source, i) -> Total:
        row = (state.step - source.first) * micro_batches + i if isinstance(source, Indexed) else 0
        batch = pick(source, row)

        def sum_of_losses(params):
            losses, correct, moments = losses_of(
                model, recipe, params, state.batch_stats, batch, step_key(recipe, state.step, i)
            )
            return jnp.sum(losses), (jnp.sum(correct), moments)

        (loss, (correct, moments)), grads = jax.value_and_grad(sum_of_losses, has_aux=True)(
            device_varying(state.params)
        )
        examples = examples_in(batch)
        return Total(
            jax.tree.map(lambda sum_, g: sum_ + g[None], total.grads, grads),
            total.losses + jnp.stack([loss, correct])[None],
            merge(total.moments, total.count, moments, examples, averaged=averaged),
            total.count + examples,
        )

    def local_finish(state: TrainState, total: Total, peak: jax.Array):
        grads, sums = lax.psum((jax.tree.map(lambda g: g[0], total.grads), total.losses[0]), AXIS)
        grads = jax.tree.map(lambda g: g / total.count, grads)
        batch_stats = running_average(state.batch_stats, total.moments, momentum.after(state.step))
        return update(descent, peak, state, grads, batch_stats, sums[0] / total.count, sums[1] / total.count)

    def add(state, total, source, i):
        in_specs = (REPLICATED, layout, specs(source), REPLICATED)
        return jax.shard_map(local_add, mesh=mesh, in_specs=in_specs, out_specs=layout)(state, total, source, i)

    finish = jax.shard_map(local_finish, mesh=mesh, in_specs=(REPLICATED, layout, REPLICATED), out_specs=REPLICATED)
    shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), layout)
    return jax.jit(zero, out_shardings=shardings), jax.jit(add, donate_argnums=1), jax.jit(finish, donate_argnums=0)


def _is_norm(node: Any) -> bool:
    return isinstance(node, Mapping) and set(node) == {"mean", "var"}


def merge(before: Any, count: jax.Array, new: Any, examples: jax.Array, *, averaged: bool) -> Any:
    """Returns the moments of all examples so far: those already counted and those of a new micro-batch.

    Args:
      before: moments of the examples already counted, in the structure of `batch_stats`.
      count: the number of those examples.
      new: moments of the new examples.
      examples: the number of new examples.
      averaged: True: average the moments, weighted by examples. False: pool them.
    """

    def merge_norm(a, b):
        if not _is_norm(a):
            return b  # Only moments can be merged; any other variable takes its latest value.
        if averaged:
            share = examples / jnp.maximum(count + examples, 1)
            return jax.tree.map(lambda old, latest: old + share * (latest - old), a, b)
        together = pool(
            Moments(jnp.stack([a["mean"], b["mean"]]), jnp.stack([a["var"], b["var"]]), jnp.stack([count, examples]))
        )
        return {"mean": together.mean, "var": together.var}

    return jax.tree.map(merge_norm, before, new, is_leaf=_is_norm)


def running_average(running: Any, moments: Any, momentum: jax.Array) -> Any:
    """Returns the running statistics after an update, from the previous ones and the moments of the batch."""

    def average_norm(old, new):
        if not _is_norm(old):
            return new
        return average(old, new, momentum)

    return jax.tree.map(average_norm, running, moments, is_leaf=_is_norm)
