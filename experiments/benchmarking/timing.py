"""Timing several ways of doing the same work, in turn, so that a noisy machine is noisy for all of them."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

# Between two timings: idle threads of the one before spin for a while, and would slow the next.
PAUSE_SECONDS = 0.02


class Spread(NamedTuple):
    """The median of several measurements, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values) -> Spread:
    """The spread of some measurements.

    Example:
      >>> print(spread([3.0, 1.0, 2.0]))
      2.00 (1.00 to 3.00)
    """
    return Spread(float(np.median(values)), float(np.min(values)), float(np.max(values)))


def in_turn(variants: Mapping[str, Callable[[int], None]], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Times every variant once a round, in an order that rotates from round to round.

    Args:
      variants: by name, functions that do a given number of steps and return when these are done.
      rounds: how often each is timed.
      seconds: about how long one timing takes; it decides the number of steps.

    Returns:
      For each variant the seconds a step took, one number a round. Two steps of warm-up are left out.
    """
    counts = {}
    for name, steps in variants.items():
        steps(2)
        counts[name] = max(3, round(seconds / max(_time(steps, 3), 1e-9)))
    names = list(variants)
    measured: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            time.sleep(PAUSE_SECONDS)
            measured[name].append(_time(variants[name], counts[name]))
    return measured


def _time(steps: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    steps(count)
    return (time.perf_counter() - start) / count
