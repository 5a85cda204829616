"""Several backward passes and updates for one forward pass."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh

from experiments.training.machine.devices import AXIS
from experiments.training.recipe.averaging import Momentum
from experiments.training.state import Descent, Indexed, Recipe, Source, TrainState
from experiments.training.step.single import WHOLE, losses_of, own, pick, specs, step_key, update


def split_step(model: nn.Module, descent: Descent, mesh: Mesh, recipe: Recipe, backwards: int, momentum: Momentum):
    """Makes a training step of one forward pass and `backwards` updates.

    It is called as (state, source, peak learning rate) -> (state, metrics).

    The losses of the examples are split into groups, the first of which holds the first examples of the global batch.
    One after the other, the gradient of the mean loss of each group makes an update. All gradients are taken at the
    parameters of the forward pass and through its statistics, which are those of the whole batch; with plain SGD,
    the k updates together are therefore one update with k times the rate, and momentum and decay make the difference.

    The step counter counts updates. `metrics` are of the forward pass, the rate that of its last update; `momentum` is
    of the running statistics, which are updated once a forward pass.
    """

    def local_step(state: TrainState, source: Source, peak: jax.Array):
        row = (state.step - source.first) // backwards if isinstance(source, Indexed) else 0
        batch = pick(source, row)
        n = batch.labels.shape[0]
        total = n * lax.axis_size(AXIS)
        group = (lax.axis_index(AXIS) * n + jnp.arange(n)) // (total // backwards)

        def forward(params):
            key, passes = step_key(recipe, state.step), state.step // backwards
            losses, correct, batch_stats = losses_of(
                model, recipe, params, state.batch_stats, batch, key, momentum.after(passes)
            )
            return losses, (correct, batch_stats)

        losses, pullback, (correct, batch_stats) = jax.vjp(forward, own(state.params), has_aux=True)
        loss, accuracy = lax.psum((jnp.sum(losses) / total, jnp.sum(correct) / total), AXIS)

        def one(state, i):
            (grads,) = pullback(jnp.where(group == i, backwards / total, 0.0).astype(losses.dtype))
            return update(descent, peak, state, lax.psum(grads, AXIS), batch_stats, loss, accuracy)

        state, metrics = lax.scan(one, state._replace(batch_stats=batch_stats), jnp.arange(backwards))
        return state, jax.tree.map(lambda values: values[-1], metrics)

    def step(state: TrainState, source: Source, peak: jax.Array):
        mapped = jax.shard_map(local_step, mesh=mesh, in_specs=(WHOLE, specs(source), WHOLE), out_specs=WHOLE)
        return mapped(state, source, peak)

    return jax.jit(step, donate_argnums=0)
