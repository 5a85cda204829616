"""Branches of a training run: copies of it that go on with larger batches."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax.batch_size._rules import scale_learning_rate


class Branch(NamedTuple):
    """A copy of a training run that went on with another batch size.

    Attributes:
      batch_size: in examples.
      learning_rate: the constant rate.
      seed: the seed of the batches.
      examples: the examples since the branching point at each evaluation, the first of them 0, shape (evaluations,).
      losses: the held-out losses, same shape; infinite from where one was not finite.
    """

    batch_size: int
    learning_rate: float
    seed: int
    examples: np.ndarray
    losses: np.ndarray


def train_branches(
    state: Any,
    update: Callable[[Any, Any, float], tuple[Any, Any]],
    batch: Callable[[int, int, int], Any],
    evaluate: Callable[[Any], Any],
    *,
    batch_size: int,
    learning_rate: float,
    examples: int,
    rule: Literal["linear", "sqrt"],
    multiples: Sequence[int] = (2, 4, 8, 16),
    factors: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    evaluations: int = 16,
    start: int = 0,
) -> Iterator[Branch]:
    """Trains copies of a run with larger batches over the same number of examples.

    The original, which goes on with its own batch size, comes first for each seed. Every branch with the same seed asks
    for the same stretch of examples, if `batch` cuts its batches from one stream.

    Args:
      state: the state of the run, a tree; its arrays are copied before each branch, so `update` may donate them.
      update: (state, batch, learning_rate) -> (state, loss).
      batch: (seed, step, size) -> the batch of an update.
      evaluate: (state) -> the loss on held-out examples.
      batch_size: the batch size of the original, in examples.
      learning_rate: its rate.
      examples: how many examples each branch trains on. So many that the loss of the original clearly falls.
      rule: how the rate grows with the batch size, see `scale_learning_rate`: "sqrt" for Adam, "linear" for SGD.
      multiples: the batch sizes, as multiples of `batch_size`.
      factors: rates to try at each batch size, as multiples of the rule's. More than one, such as (1.0, 0.5), costs as
        many times as much, and finds the critical batch size itself and not only that of the rule.
      seeds: seeds of the batches. With two or more there is an interval.
      evaluations: how often each branch is evaluated, at most once per update.
      start: the examples that the run has seen, where its batches go on.

    Yields:
      Each branch when it is done.

    Raises:
      ValueError: a number is out of range, or the largest batch leaves no update.

    Example:
      >>> def update(w, noise, rate):
      ...     return w - rate * (w + noise), w**2 / 2
      >>> def batch(seed, step, size):
      ...     return np.random.default_rng((seed, step)).normal() / np.sqrt(size)
      >>> branches = train_branches(np.float32(9.0), update, batch, lambda w: w**2 / 2, batch_size=1,
      ...     learning_rate=0.1, examples=16, rule="linear", multiples=(4,), evaluations=2)
      >>> [(one.batch_size, one.learning_rate, one.examples.tolist()) for one in branches]
      [(1, 0.1, [0, 8, 16]), (4, 0.4, [0, 8, 16])]

    Source: Merrill et al., "Critical Batch Size Revisited", arXiv 2505.23971, 2025.
    """
    caller = "train_branches"
    for name, number in {"batch_size": batch_size, "examples": examples, "evaluations": evaluations}.items():
        if number < 1:
            raise ValueError(f"{caller}: {name} must be at least 1, not {number!r}")
    if not multiples or min(multiples) < 1 or not factors or min(factors) <= 0 or not seeds:
        raise ValueError(
            f"{caller}: multiples must be at least 1, factors positive, and there must be a seed; got multiples="
            f"{multiples!r}, factors={factors!r}, seeds={seeds!r}"
        )
    largest = batch_size * max(multiples)
    if examples < largest:
        raise ValueError(
            f"{caller}: examples={examples} is less than one batch of {largest}; give more of them or smaller multiples"
        )
    first = float(evaluate(_copied(state)))
    sizes = [batch_size, *(batch_size * multiple for multiple in sorted(set(multiples)) if multiple != 1)]
    for seed in seeds:
        for size in sizes:
            scaled = scale_learning_rate(learning_rate, batch_size, size, rule=rule)
            for factor in (1.0,) if size == batch_size else factors:
                rate = scaled * factor
                counts, losses = _train(
                    _copied(state), update, batch, evaluate, seed, size, rate, -(-start // size), examples // size,
                    evaluations,
                )  # fmt: skip
                yield Branch(size, rate, seed, size * np.array([0, *counts]), np.array([first, *losses]))


def _copied(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, state)


def _train(
    state: Any,
    update: Callable[[Any, Any, float], tuple[Any, Any]],
    batch: Callable[[int, int, int], Any],
    evaluate: Callable[[Any], Any],
    seed: int,
    size: int,
    rate: float,
    first: int,
    updates: int,
    evaluations: int,
) -> tuple[list[int], list[float]]:
    """Returns the updates and the losses of each evaluation; after a loss that is not finite, infinite ones."""
    counts = sorted({math.ceil(updates * i / evaluations) for i in range(1, evaluations + 1)})
    losses: list[float] = []
    done = 0
    for count in counts:
        for step in range(done, count):
            state, _ = update(state, batch(seed, first + step, size), rate)
        done = count
        loss = float(evaluate(state))
        if not math.isfinite(loss):
            return counts, losses + [math.inf] * (len(counts) - len(losses))
        losses.append(loss)
    return counts, losses
