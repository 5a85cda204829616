"""Times several variants of the same work in turn, so that the noise of a machine affects all of them alike."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ..records.benchmarks.result import PositiveSpread, Spread, Spreads

AnySpread = TypeVar("AnySpread", bound=Spread)

# The pause between two timings. Idle threads spin for a while after a timing, and would slow down the next one.
PAUSE_SECONDS = 0.02


def spread(values: Iterable[float], kind: type[AnySpread] = PositiveSpread) -> AnySpread:
    """Returns the median, the least and the greatest of some measurements.

    Args:
      values: one or more measurements.
      kind: the type of the spread; the default is for times and ratios of times.

    Example:
      >>> print(spread([3.0, 1.0, 2.0]))
      2.00 (1.00 to 3.00)
    """
    numbers = list(values)
    return kind(median=float(np.median(numbers)), low=float(np.min(numbers)), high=float(np.max(numbers)))


def ratios(measured: Mapping[str, Sequence[float]], over: str, under: str) -> PositiveSpread:
    """Returns the spread over the rounds of the ratio of two variants' times.

    Args:
      measured: the times, from `in_turn`.
      over: the variant in the numerator.
      under: the variant in the denominator.
    """
    return spread(a / b for a, b in zip(measured[over], measured[under], strict=True))


def milliseconds(measured: Mapping[str, Sequence[float]]) -> Spreads:
    """Returns the spread of each variant's times in milliseconds."""
    return {name: spread(1e3 * seconds for seconds in values) for name, values in measured.items()}


def in_turn(variants: Mapping[str, Callable[[int], None]], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Times every variant once per round, in an order that rotates from round to round.

    Args:
      variants: functions by name, each of which makes a given number of steps and returns when they are done.
      rounds: the number of timings of each variant.
      seconds: the approximate duration of one timing, which decides its number of steps.

    Returns:
      The seconds per step by variant, one number per round. Two warm-up steps are left out.
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
