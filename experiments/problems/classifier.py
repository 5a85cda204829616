"""A classifier in `flax.linen` with this library's batch norm, on the handwritten digits of scikit-learn.

The running statistics are part of the state, as the parameters are. The problem's target is a loss.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from batchnorm_jax.linen import BatchNorm

from .digits import CLASSES, load
from .problem import Problem, stream


class Network(nn.Module):
    """Two convolutions, each followed by a norm, and a dense layer."""

    width: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits of shape (N, classes) for images of shape (N, H, W, channels)."""
        x = images
        for factor in (1, 2):
            x = nn.Conv(factor * self.width, (3, 3), strides=(2, 2), use_bias=False)(x)
            x = BatchNorm(use_running_average=not train, momentum=0.9, activation=nn.relu)(x)
        return nn.Dense(CLASSES)(x.mean(axis=(1, 2)))


def problem(width: int = 8) -> Problem:
    """Returns the problem: to tell the ten digits apart, with SGD and batch norm.

    Args:
      width: the number of features of the first layer.

    Example:
      >>> digits = problem()
      >>> state, loss = digits.update(digits.init(0), digits.batch(0, 0, 16), 0.1)
      >>> sorted(state), bool(loss > 0)
      (['batch_stats', 'opt_state', 'params'], True)
    """
    train, held_out = load()
    examples = len(train.labels)
    network, optimizer = Network(width), optax.trace(decay=0.9, nesterov=True)

    @jax.jit
    def init(seed: Any) -> dict[str, Any]:
        variables = network.init(jax.random.key(seed), jnp.asarray(held_out.images[:1]), train=False)
        return {**variables, "opt_state": optimizer.init(variables["params"])}

    def loss_fn(params: Any, batch_stats: Any, batch: Any) -> tuple[jax.Array, Any]:
        logits, updates = network.apply(
            {"params": params, "batch_stats": batch_stats}, batch[0], train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
        return loss, updates["batch_stats"]

    @jax.jit
    def update(state: dict[str, Any], batch: Any, learning_rate: Any) -> tuple[dict[str, Any], jax.Array]:
        (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state["params"], state["batch_stats"], batch
        )
        direction, opt_state = optimizer.update(gradient, state["opt_state"])
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state["params"], direction)
        return {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}, loss

    def batch(seed: int, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = stream(seed, step * size, size, examples)
        return train.images[chosen], train.labels[chosen]

    @jax.jit
    def evaluate(state: dict[str, Any]) -> jax.Array:
        variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
        logits: Any = network.apply(variables, held_out.images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(held_out.labels)).mean()

    @jax.jit
    def gradient(state: dict[str, Any], batch: Any) -> Any:
        # The statistics are those of the batch, here a shard, since shared ones would couple the shards.
        return jax.grad(loss_fn, has_aux=True)(state["params"], state["batch_stats"], batch)[0]

    return Problem(
        examples, init, update, batch, evaluate, rule="linear", batch_size=32, learning_rate=0.05, gradient=gradient
    )
