"""L-BFGS on the whole training set, with a line search that sets the length of each step."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh

from ..machine.devices import AXIS
from ..recipe.averaging import Momentum
from ..recipe.optimizers import kernels
from ..state import Recipe, Source, TrainState
from .accumulation import merge, running_average
from .single import REPLICATED, examples_in, losses_of, pick, specs


def full_batch_step(
    model: nn.Module,
    optimizer,
    mesh: Mesh,
    recipe: Recipe,
    *,
    micro_batches: int,
    weight_decay: float,
    decay_all: bool,
    momentum: Momentum,
    averaged: bool,
):
    """Returns a step on the whole training set: (state, source, peak learning rate) -> (state, metrics).

    The objective is the mean loss plus an L2 penalty on the kernels. A line search needs a function of the parameters
    alone, so every step sees the same examples in the same order, each normalised within its micro-batch. Running
    statistics are updated from the forward pass at the start of each step. The peak learning rate has no effect; the
    metrics report the step length that the line search found.

    Args:
      model: the model to train.
      optimizer: a transformation with a line search, from `recipe.optimizers`.
      mesh: the devices.
      recipe: settings of the forward pass, without augmentation.
      micro_batches: the number of parts in which the training set is processed, one after the other.
      weight_decay: weight of the penalty, which is weight_decay / 2 times the sum of squares of the kernels.
      decay_all: penalise all parameters rather than the kernels alone.
      momentum: momentum of the running statistics.
      averaged: True: average the moments of the micro-batches. False: pool them.
    """

    def local_objective(params, batch_stats, number, source: Source):
        def add(total, row):
            sums, moments, count = total
            batch = pick(source, row)
            losses, correct, new = losses_of(model, recipe, params, batch_stats, batch, jax.random.key(recipe.seed))
            examples = examples_in(batch)
            sums = sums + lax.psum(jnp.stack([jnp.sum(losses), jnp.sum(correct)]), AXIS)
            return (sums, merge(moments, count, new, examples, averaged=averaged), count + examples), None

        total = jnp.zeros(2), jax.tree.map(jnp.zeros_like, batch_stats), jnp.zeros(())
        if micro_batches == 1:
            total, _ = add(total, 0)
        else:
            # Recomputing each micro-batch in the backward pass keeps the memory at that of one micro-batch.
            total, _ = lax.scan(jax.checkpoint(add), total, jnp.arange(micro_batches))
        sums, moments, count = total
        return sums / count, running_average(batch_stats, moments, momentum.after(number))

    def step(state: TrainState, source: Source, peak: jax.Array):
        del peak
        mapped = jax.shard_map(
            local_objective,
            mesh=mesh,
            in_specs=(REPLICATED, REPLICATED, REPLICATED, specs(source)),
            out_specs=(REPLICATED, REPLICATED),
        )

        def objective(params):
            means, batch_stats = mapped(params, state.batch_stats, state.step, source)
            decays = jax.tree.map(lambda _: True, params) if decay_all else kernels(params)
            squares = jax.tree.map(lambda p, decays: jnp.sum(p**2) if decays else 0.0, params, decays)
            penalty = 0.5 * weight_decay * sum(jax.tree.leaves(squares))
            return means[0] + penalty, (means, batch_stats)

        (value, (means, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, value=value, grad=grads, value_fn=lambda p: objective(p)[0]
        )
        params = optax.apply_updates(state.params, updates)
        rate = optax.tree_utils.tree_get(opt_state, "learning_rate")
        metrics = {"loss": means[0], "accuracy": means[1], "learning_rate": jnp.asarray(rate, jnp.float32)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return jax.jit(step, donate_argnums=0)
