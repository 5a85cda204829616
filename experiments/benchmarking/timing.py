"""Times several ways of doing the same work in turn, so that a noisy machine is noisy for all of them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from experiments.records.benchmarks.result import PositiveSpread, Spread, Spreads

AnySpread = TypeVar("AnySpread", bound=Spread)

# A pause between two timings: idle threads of the one before spin for a while, and would slow the next.
PAUSE_SECONDS = 0.02


def spread(values: Iterable[float], kind: type[AnySpread] = PositiveSpread) -> AnySpread:
    """Returns the spread of some measurements.

    Args:
      values: one or more measurements.
      kind: the type of the spread; by default that of times and ratios of times.

    Example:
      >>> print(spread([3.0, 1.0, 2.0]))
      2.00 (1.00 to 3.00)
    """
    numbers = list(values)
    return kind(median=float(np.median(numbers)), low=float(np.min(numbers)), high=float(np.max(numbers)))


def ratios(measured: Mapping[str, Sequence[float]], over: str, under: str) -> PositiveSpread:
    """Returns the spread of the ratio of one variant's times to another's, taken round by round.

    Args:
      measured: the times of `in_turn`.
      over: the variant whose times are divided.
      under: the variant by whose times they are divided.
    """
    return spread(a / b for a, b in zip(measured[over], measured[under], strict=True))


def milliseconds(measured: Mapping[str, Sequence[float]]) -> Spreads:
    """Returns the spread of each variant's times in milliseconds."""
    return {name: spread(1e3 * seconds for seconds in values) for name, values in measured.items()}


def in_turn(variants: Mapping[str, Callable[[int], None]], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Times every variant once per round, in an order that rotates from round to round.

    Args:
      variants: by name, functions that do a given number of steps and return when these are done.
      rounds: the number of timings of each.
      seconds: about how long one timing takes; it decides the number of steps.

    Returns:
      For each variant the seconds per step, one number per round. Two steps of warm-up are left out.
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
