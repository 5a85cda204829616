"""A classifier in plain JAX: two layers on the handwritten digits of scikit-learn, trained with momentum."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .digits import CLASSES, load
from .problem import Problem, stream

PIXELS, MOMENTUM = 64, 0.9


def problem(width: int = 32) -> Problem:
    """Returns the problem: to tell the ten digits, in 8 by 8 pixels, apart.

    Args:
      width: the number of features of the hidden layer.

    Example:
      >>> digits = problem()
      >>> state, loss = digits.update(digits.init(0), digits.batch(0, 0, 16), 0.1)
      >>> digits.examples, 0 <= float(digits.evaluate(state)) <= 1
      (1347, True)
    """
    train, held_out = load()
    examples = len(train.labels)

    def init(seed: int) -> Any:
        r = np.random.default_rng(seed)
        params = {
            "w1": r.normal(0, (2 / PIXELS) ** 0.5, (PIXELS, width)),
            "b1": np.zeros(width),
            "w2": r.normal(0, (1 / width) ** 0.5, (width, CLASSES)),
            "b2": np.zeros(CLASSES),
        }
        params = {name: jnp.asarray(array, jnp.float32) for name, array in params.items()}
        return params, jax.tree.map(jnp.zeros_like, params)

    def logits(params: Any, images: Any) -> jax.Array:
        hidden = jax.nn.relu(images.reshape(-1, PIXELS) @ params["w1"] + params["b1"][None])
        return hidden @ params["w2"] + params["b2"][None]

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1]).mean()

    @jax.jit
    def update(state: Any, batch: Any, learning_rate: Any) -> tuple[Any, jax.Array]:
        params, velocity = state
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
        return (jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity), velocity), loss

    def batch(seed: int, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = stream(seed, step * size, size, examples)
        return train.images[chosen], train.labels[chosen]

    @jax.jit
    def evaluate(state: Any) -> jax.Array:
        return jnp.mean(jnp.argmax(logits(state[0], held_out.images), axis=-1) == held_out.labels)

    gradient_fn = jax.jit(jax.grad(loss_fn))
    return Problem(
        examples,
        init,
        update,
        batch,
        evaluate,
        goal="accuracy",
        rule="linear",
        batch_size=16,
        learning_rate=0.05,
        gradient=lambda state, batch: gradient_fn(state[0], batch),
    )
