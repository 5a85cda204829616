"""Training programs such as a user would write, which the tests give by name, as in `tests.own_problems:quadratic`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.problems import Problem

SIZE = 8


class State(NamedTuple):
    """Everything that a state may hold: weights, a key of random numbers, half precision, a count, and nothing."""

    weights: Any
    key: Any
    average: Any
    count: Any
    nothing: None = None


def quadratic(gradient=True):
    """Returns a problem whose loss is that of a quadratic with noise; its dropout follows from a key in the state."""

    def init(seed):
        return State(jnp.full(SIZE, 3.0), jax.random.key(seed), jnp.zeros(SIZE, jnp.bfloat16), 0)

    @jax.jit
    def update(state, batch, learning_rate):
        key, now = jax.random.split(state.key)
        error = state.weights - batch["x"].mean(axis=0)
        error = error * jax.random.bernoulli(now, 0.9, error.shape)
        weights = state.weights - learning_rate * error
        average = (0.9 * state.average + 0.1 * weights).astype(jnp.bfloat16)
        return State(weights, key, average, state.count + 1), (error**2).mean() / 2

    def batch(seed, step, size):
        return {"x": np.random.default_rng((seed, step)).normal(size=(size, SIZE)).astype(np.float32)}

    def evaluate(state):
        return (state.weights**2).mean() / 2

    of_batch = (lambda state, batch: state.weights - batch["x"].mean(axis=0)) if gradient else None
    return Problem(
        256, init, update, batch, jax.jit(evaluate), rule="linear", batch_size=8, learning_rate=0.05, gradient=of_batch
    )


def without_gradient():
    """Returns the same problem, whose noise cannot be measured."""
    return quadratic(gradient=False)


class Plain:
    """A problem in NumPy alone, with the five attributes and a goal, and nothing that JAX compiles."""

    examples, goal = 64, "accuracy"

    def init(self, seed):
        """Returns one number, that of the updates."""
        del seed
        return np.zeros(())

    def update(self, state, batch, learning_rate):
        """Counts."""
        del batch, learning_rate
        return state + 1, 1.0 / float(state + 1)

    def batch(self, seed, step, size):
        """Returns the number of the examples, which is not used."""
        return seed, step, size

    def evaluate(self, state):
        """Returns an accuracy that rises, but for luck at every tenth update."""
        return min(1.0, 0.01 * float(state) + 0.2 * (float(state) % 10 == 0))


def plain():
    """Returns the problem in NumPy."""
    return Plain()


def diverging():
    """Returns a problem whose loss is not finite after some updates."""
    whole = quadratic()

    def update(state, batch, learning_rate):
        state, loss = whole.update(state, batch, learning_rate)
        return state, jnp.where(jnp.asarray(state.count) > 5, jnp.nan, loss)

    return Problem(whole.examples, whole.init, update, whole.batch, whole.evaluate)
