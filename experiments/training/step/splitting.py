"""Several backward passes and updates for one forward pass."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh

from ..machine.devices import AXIS
from ..recipe.averaging import Momentum
from ..state import Descent, Indexed, Recipe, Source, TrainState
from .single import REPLICATED, device_varying, losses_of, pick, specs, step_key, update


def split_step(model: nn.Module, descent: Descent, mesh: Mesh, recipe: Recipe, backwards: int, momentum: Momentum):
    """Returns a step of one forward pass and k updates: (state, source, peak learning rate) -> (state, metrics).

    The losses of the examples are split into k groups, in the order of the global batch. The gradient of each group's
    mean loss makes one update, one group after the other. All gradients are taken at the parameters of the forward pass
    and through its statistics, which are those of the whole batch. With plain SGD the k updates together therefore
    equal one update with k times the learning rate; momentum and weight decay make the difference.

    The step counter counts updates. The metrics describe the forward pass; their learning rate is that of its last
    update.

    Args:
      model: the model to train.
      descent: the optimizer and schedule.
      mesh: the devices.
      recipe: settings of the forward pass.
      backwards: k, the number of groups; it divides the global batch size.
      momentum: momentum of the running statistics, which change once per forward pass.
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

        losses, pullback, (correct, batch_stats) = jax.vjp(forward, device_varying(state.params), has_aux=True)
        loss, accuracy = lax.psum((jnp.sum(losses) / total, jnp.sum(correct) / total), AXIS)

        def one(state, i):
            (grads,) = pullback(jnp.where(group == i, backwards / total, 0.0).astype(losses.dtype))
            return update(descent, peak, state, lax.psum(grads, AXIS), batch_stats, loss, accuracy)

        state, metrics = lax.scan(one, state._replace(batch_stats=batch_stats), jnp.arange(backwards))
        return state, jax.tree.map(lambda values: values[-1], metrics)

    def step(state: TrainState, source: Source, peak: jax.Array):
        mapped = jax.shard_map(
            local_step, mesh=mesh, in_specs=(REPLICATED, specs(source), REPLICATED), out_specs=REPLICATED
        )
        return mapped(state, source, peak)

    return jax.jit(step, donate_argnums=0)
