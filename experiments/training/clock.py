"""Wall-clock time of a run, by what it was spent on."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Clock:
    """A stopwatch that adds up wall-clock time by name.

    `with` blocks can be nested; the time of an inner block is not counted for the outer one.

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
        """Counts the time of a `with` block under `name`."""
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
        """Counts the time of a `with` block that the host spends while the device computes.

        Args:
          name: the name to count the time under if the device finished first and had to wait for the host.
          computing: the name to count the time under if the device was still computing at the end of the block.
          result: an array that the device is computing; None: the device is idle.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            hidden = result is not None and not result.is_ready()
            self.seconds[computing if hidden else name] += time.perf_counter() - start

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds the seconds, by name, that earlier starts of the same run spent."""
        for name, value in seconds.items():
            self.seconds[name] += value
        self._before += sum(seconds.values())

    def total(self) -> float:
        """Returns the seconds since the clock was created, plus those of earlier starts."""
        return self._before + time.perf_counter() - self._started
