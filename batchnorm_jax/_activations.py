"""Activations that are fused into the norm: which are ReLU, and which can be undone from their result."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

Activation = Callable[..., jax.Array]


def static(activation: Activation | None) -> Activation | None:
    """Returns the activation, in a function of its own where it has no hash, which a static argument needs."""
    if activation is None:
        return None
    try:
        hash(activation)
    except TypeError:
        return lambda x: activation(x)
    return activation


def is_relu(activation: Activation | None) -> bool:
    """Whether the sign of the result says what the derivative is."""
    return activation is jax.nn.relu


def inverse(activation: Activation | None) -> Activation | None:
    """The inverse of the identity (None), `jax.nn.leaky_relu` or `jax.nn.elu`, or a `functools.partial` of these.

    None where there is none that is known.

    Example:
      >>> from functools import partial
      >>> import jax, jax.numpy as jnp
      >>> undo = inverse(partial(jax.nn.leaky_relu, negative_slope=0.5))
      >>> undo(jnp.array([2.0, -1.0]))
      Array([ 2., -2.], dtype=float32)
    """
    if activation is None:
        return lambda y: y
    function, options = activation, {}
    if isinstance(activation, partial) and not activation.args:
        function, options = activation.func, activation.keywords
    if function is jax.nn.leaky_relu:
        slope = options.get("negative_slope", 1e-2)
        return (lambda y: jnp.where(y >= 0, y, y / slope)) if _positive(slope) else None
    if function is jax.nn.elu:
        alpha = options.get("alpha", 1.0)
        # Where rounding took the result to -alpha itself, what went in is no longer known: a finite stand-in.
        return (
            (lambda y: jnp.where(y >= 0, y, jnp.log1p(jnp.maximum(y / alpha, -1 + 1e-6)))) if _positive(alpha) else None
        )
    return None


def _positive(value) -> bool:
    return isinstance(value, int | float) and value > 0


def undo(activation: Activation | None, y: jax.Array) -> jax.Array:
    """What went into an activation that gave `y`."""
    function = inverse(activation)
    if function is None:
        raise ValueError(f"no inverse of {activation} is known")
    return function(y)
