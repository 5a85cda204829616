"""Squared norms of a gradient, plain and as an optimizer weighs them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def widened(a: Any) -> jax.Array:
    """Returns an array in at least float32."""
    return jnp.asarray(a, jnp.promote_types(jnp.result_type(a), jnp.float32))


def squared_norm(tree: Any, weights: Any = None) -> jax.Array:
    """Returns the sum of squares over all arrays of a tree, in at least float32.

    Args:
      tree: a tree of arrays.
      weights: a tree of the same structure and shapes, or of shapes that broadcast to them, with which each square is
        multiplied, such as `adam_weights` gives; None: 1.

    Example:
      >>> squared_norm({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([10.0, 1.0])}).item()
      14.0
    """
    tree = jax.tree.map(widened, tree)
    if weights is None:
        return optax.tree.norm(tree, squared=True)
    return jnp.asarray(optax.tree.sum(jax.tree.map(lambda a, w: w * jnp.square(a), tree, weights)))


def adam_weights(opt_state: Any, b2: float, epsilon: float = 1e-8) -> Any:
    """Returns the weights with which Adam sees the gradient: 1 / (sqrt(v) + epsilon), v corrected for its start.

    An update of Adam is that of SGD after a change of coordinates that stretches each parameter by the square root of
    its weight. In these coordinates |G|^2 and tr Sigma are sums of weight times square, and their ratio is the noise
    scale that matters to the optimizer. The weights count as constants, as they nearly are from one update to the next.

    Args:
      opt_state: the state of an Optax optimizer that holds the state of one `optax.scale_by_adam`, as `optax.adam` and
        `optax.adamw` do, also within `optax.chain`.
      b2: the decay of the second moment, as it was given to the optimizer.
      epsilon: the `eps` of the optimizer.

    Returns:
      A tree like the parameters, for `weights` of `value_and_grad_with_noise`. Before the first update all weights are
      1, so that a training step needs no special case.

    Raises:
      ValueError: the state holds no second moment, or more than one.

    Example:
      >>> params = {"w": jnp.array([1.0, 1.0])}
      >>> optimizer = optax.adamw(1e-3, b2=0.99)
      >>> _, opt_state = optimizer.update({"w": jnp.array([4.0, 0.5])}, optimizer.init(params), params)
      >>> [round(weight, 3) for weight in adam_weights(opt_state, b2=0.99)["w"].tolist()]
      [0.25, 2.0]

    Source: the change of coordinates, Zhang et al., "Which Algorithmic Choices Matter at Which Batch Sizes?", arXiv
    1907.04164, 2019, section 2; Adam, Kingma and Ba, arXiv 1412.6980, 2014.
    """
    states = [
        state
        for state in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
        if isinstance(state, optax.ScaleByAdamState)
    ]
    if len(states) != 1:
        raise ValueError(
            f"adam_weights: the optimizer's state must hold one state of scale_by_adam, and it holds {len(states)}; "
            "give the state of optax.adam or optax.adamw, or weights of your own"
        )
    count = jnp.asarray(states[0].count)
    # 0 before the first update, where `nu` is 0 too.
    correction = jnp.where(count > 0, 1 - b2 ** jnp.maximum(count, 1).astype(jnp.float32), 1.0)
    return jax.tree.map(lambda nu: jnp.where(count > 0, 1 / (jnp.sqrt(nu / correction) + epsilon), 1.0), states[0].nu)
