"""Wall time by what it is spent on."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Clock:
    """Adds up wall time by name. Time in a `with` inside another is taken from the outer one.

    Example:
      >>> clock = Clock()
      >>> with clock("compute"):
      ...     with clock("checkpoint"):
      ...         pass
      >>> sorted(clock.seconds)
      ['checkpoint', 'compute']
    """

    def __init__(self):
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._before = 0.0
        self._started = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts the time of a `with` as `name`."""
        start = time.perf_counter()
        self._open.append(name)
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            self._open.pop()
            self.seconds[name] += passed
            if self._open:
                self.seconds[self._open[-1]] -= passed

    @contextmanager
    def beside(self, name: str, computing: str, result: Any) -> Iterator[None]:
        """Counts the time of a `with` during which the device works.

        Args:
          name: what the time is counted as, if the result was there before the end: the device had to wait.
          computing: what it is counted as otherwise.
          result: an array that the device makes meanwhile, or None.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            hidden = result is not None and not result.is_ready()
            self.seconds[computing if hidden else name] += time.perf_counter() - start

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what earlier starts of the same run spent."""
        for name, value in seconds.items():
            self.seconds[name] += value
        self._before += sum(seconds.values())

    def total(self) -> float:
        """Seconds since the clock was made, and those of earlier starts."""
        return self._before + time.perf_counter() - self._started
