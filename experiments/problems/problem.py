"""A training program as five functions, which every instrument of this project can train."""

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .._errors import UsageError

# The training state of a problem, such as parameters and the state of the optimizer: a tree of arrays.
State = Any
Batch = Any


@dataclass(frozen=True)
class Problem:
    """A training program, in whatever library.

    Attributes:
      examples: the number of training examples.
      init: (seed) -> state, a tree of arrays.
      update: (state, batch, learning_rate) -> (state, loss): one update with a batch, at a learning rate that the
        caller gives. Called with batches of several sizes.
      batch: (seed, step, size) -> the batch of an update, `size` examples. The same arguments give the same batch.
      evaluate: (state) -> the loss, or the accuracy, on examples that `batch` never gives.
      goal: the quantity that `evaluate` returns: "loss", of which less is better, or "accuracy", of which more is.
      rule: how the rate grows with the batch: "sqrt" for Adam and its kin, "linear" for SGD.
      batch_size: the batch size at which `learning_rate` is good, in examples.
      learning_rate: a rate to start from.
      gradient: (state, batch) -> the gradient of the batch's mean loss, a tree, from which the gradient noise scale is
        measured; None: it is not.

    Raises:
      UsageError: a number, the goal or the rule is out of range, or a function is none.
    """

    examples: int
    init: Callable[[int], State]
    update: Callable[[State, Batch, Any], tuple[State, Any]]
    batch: Callable[[int, int, int], Batch]
    evaluate: Callable[[State], Any]
    goal: Literal["loss", "accuracy"] = "loss"
    rule: Literal["linear", "sqrt"] = "sqrt"
    batch_size: int = 32
    learning_rate: float = 1e-3
    gradient: Callable[[State, Batch], Any] | None = None

    def __post_init__(self):
        """Checks what is not a function."""
        for name, given, known in (("goal", self.goal, ("loss", "accuracy")), ("rule", self.rule, ("linear", "sqrt"))):
            if given not in known:
                raise UsageError(f"the {name} of a problem is '{known[0]}' or '{known[1]}', not {given!r}")
        for name, kind in (("examples", "whole number"), ("batch_size", "whole number"), ("learning_rate", "number")):
            given = getattr(self, name)
            try:
                # Numbers of NumPy and JAX too, as Python's own, which files can hold.
                value = operator.index(given) if kind == "whole number" else float(given)
            except (TypeError, ValueError) as error:
                raise UsageError(f"the {name} of a problem must be a {kind}, not {given!r}") from error
            if not 0 < value < math.inf:
                raise UsageError(
                    f"the {name} of a problem must be positive{' and finite' * (value > 0)}, not {given!r}"
                )
            object.__setattr__(self, name, value)
        for name in ("init", "update", "batch", "evaluate"):
            if not callable(getattr(self, name)):
                raise UsageError(f"the {name} of a problem must be a function, not {getattr(self, name)!r}")

    def loss(self, state: State) -> float:
        """Returns the held-out loss of a state, or the share of wrong answers if the goal is an accuracy."""
        value = float(self.evaluate(state))
        return 1.0 - value if self.goal == "accuracy" else value


def stream(seed: int, start: int, count: int, examples: int) -> np.ndarray:
    """Returns a part of an endless stream of examples, in which every epoch has a random order of its own.

    Batches cut from it in turn see the same examples in the same order at every batch size, which makes runs with
    different batch sizes easier to compare.

    Args:
      seed: the seed of the orders.
      start: the place in the stream of the first example.
      count: the number of examples.
      examples: the number of training examples.

    Returns:
      The numbers of the examples, shape (count,).

    Example:
      >>> sorted(stream(0, 0, 4, 4).tolist()), stream(0, 2, 2, 4).tolist() == stream(0, 0, 4, 4)[2:].tolist()
      ([0, 1, 2, 3], True)
    """
    parts = []
    while count > 0:
        epoch, place = divmod(start, examples)
        part = _order(seed, epoch, examples)[place : place + count]
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(examples)
