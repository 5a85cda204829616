"""Gradients added up over micro-batches: a batch in the memory of a part of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh

from batchnorm_jax import Moments, pool
from experiments.training.machine.devices import AXIS
from experiments.training.recipe.averaging import Momentum, average
from experiments.training.state import Descent, Indexed, Recipe, Source, TrainState
from experiments.training.step.single import CUT, WHOLE, examples_in, losses_of, own, pick, specs, step_key, update


class Total(NamedTuple):
    """What is added up over the micro-batches of an update.

    Attributes:
      grads: of the sum of the losses, each device's own: a leading axis runs over the devices, so that one
        collective an update adds them up.
      losses: the sum of each device's losses and that of its right answers, shape (devices, 2).
      moments: of the micro-batches so far, in the structure of `batch_stats`.
      count: the examples so far.
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
    """Makes the three programs of an update with accumulation.

    Two programs called in turn take the memory of one micro-batch, whatever their number; a loop inside one
    program would do so too, but XLA runs convolutions inside a loop several times slower on a CPU (jax issue 12868).

    Args:
      model: to train.
      descent: makes one update of the mean gradient.
      mesh: the devices.
      recipe: of the forward pass.
      micro_batches: how many make an update.
      momentum: of the running statistics, which are updated once an update from the pooled moments.
      averaged: average the moments of micro-batches, as those of spans and of devices' own statistics are, not pool
        them.

    Returns:
      `zero(state) -> total`; `add(state, total, source, i) -> total`, which reads micro-batch i of the update;
      and `finish(state, total, peak learning rate) -> (state, metrics)`.
    """

    def zero(state: TrainState) -> Total:
        grads = jax.tree.map(lambda p: jnp.zeros((mesh.size, *p.shape), p.dtype), state.params)
        return Total(grads, jnp.zeros((mesh.size, 2)), jax.tree.map(jnp.zeros_like, state.batch_stats), jnp.zeros(()))

    layout = Total(CUT, CUT, WHOLE, WHOLE)

    def local_add(state: TrainState, total: Total, source: Source, i) -> Total:
        row = (state.step - source.first) * micro_batches + i if isinstance(source, Indexed) else 0
        batch = pick(source, row)

        def sum_of_losses(params):
            losses, correct, moments = losses_of(
                model, recipe, params, state.batch_stats, batch, step_key(recipe, state.step, i)
            )
            return jnp.sum(losses), (jnp.sum(correct), moments)

        (loss, (correct, moments)), grads = jax.value_and_grad(sum_of_losses, has_aux=True)(own(state.params))
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
        in_specs = (WHOLE, layout, specs(source), WHOLE)
        return jax.shard_map(local_add, mesh=mesh, in_specs=in_specs, out_specs=layout)(state, total, source, i)

    finish = jax.shard_map(local_finish, mesh=mesh, in_specs=(WHOLE, layout, WHOLE), out_specs=WHOLE)
    shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), layout)
    return jax.jit(zero, out_shardings=shardings), jax.jit(add, donate_argnums=1), jax.jit(finish, donate_argnums=0)


def _is_norm(node: Any) -> bool:
    return isinstance(node, Mapping) and set(node) == {"mean", "var"}


def merge(before: Any, count: jax.Array, new: Any, examples: jax.Array, *, averaged: bool) -> Any:
    """The moments of the examples before and the new ones together, for every norm."""

    def of(a, b):
        if not _is_norm(a):
            return b  # A variable that is no moment keeps its last value.
        if averaged:
            share = examples / jnp.maximum(count + examples, 1)
            return jax.tree.map(lambda old, latest: old + share * (latest - old), a, b)
        together = pool(
            Moments(jnp.stack([a["mean"], b["mean"]]), jnp.stack([a["var"], b["var"]]), jnp.stack([count, examples]))
        )
        return {"mean": together.mean, "var": together.var}

    return jax.tree.map(of, before, new, is_leaf=_is_norm)


def running_average(running: Any, moments: Any, momentum: jax.Array) -> Any:
    """The running statistics after an update."""

    def of(old, new):
        if not _is_norm(old):
            return new
        return average(old, new, momentum)

    return jax.tree.map(of, running, moments, is_leaf=_is_norm)
