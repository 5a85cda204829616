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


def swapped():
    """Returns a problem whose update names the parts of its state otherwise than its init."""
    return _changed(lambda state, new: {"z": new, "b": state["b"]})


def widened():
    """Returns a problem whose update returns another type than its init."""
    return _changed(lambda state, new: {"a": new, "b": state["b"].astype(jnp.float32)})


def grown():
    """Returns a problem whose state grows."""
    return _changed(lambda state, new: {"a": new, "b": jnp.zeros(9)})


def _changed(change, loss=None):
    whole = quadratic()

    def init(seed):
        del seed
        return {"a": jnp.full(SIZE, 3.0), "b": jnp.zeros(SIZE, jnp.bfloat16)}

    @jax.jit
    def update(state, batch, learning_rate):
        error = state["a"] - batch["x"].mean(axis=0)
        value = (error**2).mean() if loss is None else loss(error)
        return change(state, state["a"] - learning_rate * error), value

    return Problem(256, init, update, whole.batch, lambda state: float(jnp.mean(state["a"] ** 2)), learning_rate=0.05)


def of_many_losses():
    """Returns a problem whose loss is not one number."""
    return _changed(lambda state, new: {**state, "a": new}, lambda error: error**2)


def deaf():
    """Returns a problem whose update does not use its learning rate."""
    return _changed(lambda state, new: {**state, "a": 0.9 * state["a"]})


def in_percent():
    """Returns a problem whose accuracy is in percent."""
    return Problem(64, lambda seed: np.zeros(2), lambda s, b, r: (s - r, 1.0), lambda *a: a, lambda s: 93.5, "accuracy")


@jax.tree_util.register_pytree_node_class
class Held:
    """A state that holds a function beside its array, as a Flax train state does."""

    def __init__(self, array, function):
        self.array, self.function = array, function

    def tree_flatten(self):
        """Returns the array, and the function as what is no array."""
        return (self.array,), self.function

    @classmethod
    def tree_unflatten(cls, function, arrays):
        """Returns the state."""
        return cls(*arrays, function)


def with_function():
    """Returns a problem whose state holds a function, another one in each process."""
    function = eval("lambda x: 2 * x")

    def update(state, batch, learning_rate):
        error = state.array - batch["x"].mean(axis=0)
        return Held(state.array - learning_rate * error, state.function), jnp.mean(error**2)

    whole = quadratic()
    init, evaluate = lambda seed: Held(jnp.full(SIZE, 3.0), function), lambda state: jnp.mean(state.array**2)
    return Problem(np.int64(256), init, jax.jit(update), whole.batch, evaluate, learning_rate=jnp.float32(0.05))


def of_python_numbers():
    """Returns a problem whose state holds a number of Python's, which decides how sums are rounded."""

    @jax.jit
    def update(state, batch, learning_rate):
        w = state["w"] * state["scale"] - learning_rate * batch["x"].mean(axis=0)
        return {"w": w.astype(state["w"].dtype), "scale": state["scale"], "n": state["n"] + 1}, jnp.mean(w**2)

    def init(seed):
        del seed
        return {"w": jnp.full(SIZE, 3.0, jnp.bfloat16), "scale": 0.9993, "n": 0}

    def evaluate(state):
        return jnp.mean(state["w"].astype(jnp.float32) ** 2)

    return Problem(256, init, update, quadratic().batch, evaluate, learning_rate=0.05)
