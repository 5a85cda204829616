"""A language model: a small transformer of `flax.nnx`, trained with AdamW on the manual of Python.

The text comes with Python (`pydoc_data.topics`, about half a megabyte of English), so nothing is downloaded.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from .problem import Problem, stream

# One character in so many is held out, at the end of the text.
HELD_OUT = 12
EVALUATED_WINDOWS = 256
WEIGHT_DECAY = 0.1


class Size(NamedTuple):
    """The size of a transformer.

    Attributes:
      width: the number of features.
      layers: the number of blocks.
      heads: the number of heads of each attention.
      length: the number of characters of an example.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 64


class Block(nnx.Module):
    """Attention over the characters before, then a layer for each character, each added to its input."""

    def __init__(self, size: Size, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(size.width, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(size.heads, size.width, decode=False, rngs=rngs)
        self.up = nnx.Linear(size.width, 4 * size.width, rngs=rngs)
        self.down = nnx.Linear(4 * size.width, size.width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns features of the shape of x, (N, length, width)."""
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """A decoder with learned positions, and norms before each layer."""

    def __init__(self, size: Size, characters: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(characters, size.width, rngs=rngs)
        self.positions = nnx.Embed(size.length, size.width, rngs=rngs)
        self.blocks = nnx.List([Block(size, rngs) for _ in range(size.layers)])
        self.norm = nnx.LayerNorm(size.width, rngs=rngs)
        self.out = nnx.Linear(size.width, characters, rngs=rngs)

    def __call__(self, characters: jax.Array) -> jax.Array:
        """Returns the logits of the next character at each place, shape (N, length, characters)."""
        mask = nnx.make_causal_mask(characters)
        x = self.embed(characters) + self.positions(jnp.arange(characters.shape[1]))[None]
        for block in self.blocks:
            x = block(x, mask)
        return self.out(self.norm(x))


@lru_cache(maxsize=1)
def text() -> tuple[np.ndarray, int]:
    """Returns the text as the numbers of its characters, shape (length,), and the number of different characters."""
    from pydoc_data.topics import topics

    letters = np.frombuffer("\n".join(topics.values()).encode("latin-1", "replace"), np.uint8)
    known, numbers = np.unique(letters, return_inverse=True)
    return numbers.astype(np.int32), len(known)


def model(size: Size) -> tuple[Callable[[jax.Array], Any], Callable[[Any, Any], jax.Array]]:
    """Returns the functions that initialise a transformer and compute its loss.

    Args:
      size: the size of the transformer.

    Returns:
      A function from a random key to parameters, and one from parameters and windows of characters, shape
      (N, length + 1), to the mean cross-entropy of each next character.
    """
    made = partial(Transformer, size, text()[1])
    graph, _ = nnx.split(nnx.eval_shape(lambda: made(nnx.Rngs(0))), nnx.Param)
    init = jax.jit(lambda key: nnx.state(made(nnx.Rngs(key)), nnx.Param))

    def loss_fn(params: Any, windows: Any) -> jax.Array:
        logits = nnx.merge(graph, params)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    return init, loss_fn


def problem(size: Size | None = None) -> Problem:
    """Returns the problem: to predict the next character.

    Args:
      size: the size of the transformer; None: one that trains in a minute on two cores.

    Example:
      >>> language = problem(Size(width=8, layers=1, heads=2, length=16))
      >>> state, loss = language.update(language.init(0), language.batch(0, 0, 4), 1e-3)
      >>> language.batch(0, 0, 4).shape, bool(language.evaluate(state) < 6)
      ((4, 17), True)
    """
    size = size or Size()
    letters, _ = text()
    window = size.length + 1
    train, held_out = np.split(letters, [len(letters) - len(letters) // HELD_OUT])
    examples = len(train) // window
    places = np.arange(window)
    evaluated = held_out[: len(held_out) // window * window].reshape(-1, window)[:EVALUATED_WINDOWS]
    init_params, loss_fn = model(size)
    optimizer = optax.chain(optax.scale_by_adam(b2=0.99), optax.add_decayed_weights(WEIGHT_DECAY))

    def init(seed: int) -> Any:
        params = init_params(jax.random.key(seed))
        return params, optimizer.init(params)

    @jax.jit
    def update(state: Any, windows: jax.Array, learning_rate: Any) -> tuple[Any, jax.Array]:
        params, opt_state = state
        loss, gradient = jax.value_and_grad(loss_fn)(params, windows)
        direction, opt_state = optimizer.update(gradient, opt_state, params)
        return (jax.tree.map(lambda p, d: p - learning_rate * d, params, direction), opt_state), loss

    def batch(seed: int, step: int, size: int) -> np.ndarray:
        return train[window * stream(seed, step * size, size, examples)[:, None] + places]

    @jax.jit
    def evaluate(state: Any) -> jax.Array:
        return loss_fn(state[0], evaluated)

    gradient_fn = jax.jit(jax.grad(loss_fn))
    return Problem(
        examples, init, update, batch, evaluate, gradient=lambda state, windows: gradient_fn(state[0], windows)
    )


def small() -> Problem:
    """Returns the problem at a size that trains in seconds, to try things out."""
    return problem(Size(width=16, layers=1, heads=2, length=16))
