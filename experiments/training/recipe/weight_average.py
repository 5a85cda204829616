"""Averages of weights along a run, which are evaluated in place of the last ones."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from .averaging import Momentum


class AveragedState(NamedTuple):
    """The state of an optimizer whose weights are averaged.

    Attributes:
      average: the averaged parameters.
      updates: the number of updates so far.
      inner: the state of the optimizer.
    """

    average: Any
    updates: jax.Array
    inner: Any


def averaging(optimizer: optax.GradientTransformation, keeps: Momentum) -> optax.GradientTransformation:
    """Returns an optimizer that makes the same updates, and keeps an average of the parameters after each.

    The average is that of running statistics: the first parameters have no weight, and it is over the last tenth of the
    updates until the momentum averages over fewer.

    Args:
      optimizer: makes the updates.
      keeps: the momentum of the average.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = averaging(optax.sgd(1.0), Momentum(0.5, 0.5))
      >>> state = optimizer.init(jnp.float32(8))
      >>> _, state = optimizer.update(jnp.float32(2), state, jnp.float32(8))
      >>> float(averaged_params(state, jnp.float32(6)))
      6.0

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; its half-life in
    examples, Busbridge et al., "How to Scale Your EMA", arXiv 2307.13813, 2023.
    """

    def init(params: Any) -> AveragedState:
        # A copy: a step donates its state, where no array may be twice.
        return AveragedState(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AveragedState]:
        updates, inner = optimizer.update(updates, state.inner, params)
        share = 1 - keeps.after(state.updates)
        average = optax.incremental_update(optax.apply_updates(params, updates), state.average, share)
        return updates, AveragedState(average, state.updates + 1, inner)

    return optax.GradientTransformation(init, update)


def averaged_params(opt_state: Any, params: Any) -> Any:
    """Returns the parameters to evaluate: the average, of a run that keeps one, else the parameters as they are.

    Args:
      opt_state: the state of the optimizer.
      params: the parameters after the last update.
    """
    if isinstance(opt_state, AveragedState):
        return opt_state.average
    if isinstance(opt_state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(opt_state, params)
    return params
