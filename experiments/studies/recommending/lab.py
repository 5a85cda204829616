"""Where measurements come from: training runs in another process, within a budget of time."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.studies import smoothness
from experiments.studies.convergence import Data
from experiments.studies.jobs import Job, Runner

# What a run takes beside its updates: to start, compile, evaluate and keep its state.
START = 4.0


class Problem(NamedTuple):
    """What a batch size is looked for.

    Attributes:
      data: what is trained, and on how much.
      target: accuracy to reach; None: there is none, and no run goes on to one.
      devices: that a batch is divided by.
      optimizer: of all runs.
    """

    data: Data
    target: float | None
    devices: int
    optimizer: str = "nesterov"


class Lab:
    """Runs jobs and reads what they measured, until the budget is spent. A row that is there costs nothing."""

    def __init__(self, runner: Runner, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._runner, self._clock = runner, clock
        self.seconds = seconds
        self._started = clock()

    def spent(self) -> float:
        """Seconds since the lab was opened."""
        return self._clock() - self._started

    def affords(self, seconds: float, reserve: float = 0.0) -> bool:
        """Whether so many seconds are left, and a reserve beside them."""
        return self.spent() + seconds + reserve <= self.seconds

    def run(self, job: Job) -> dict[str, Any]:
        """The row of a job, as `Runner.run` gives it."""
        return self._runner.run(job)

    def losses(self, job: Job) -> list[float]:
        """The loss of every update of a job that has been run; none if it failed."""
        return self._noted(job, "losses", smoothness.losses)

    def noise(self, job: Job) -> list[list[float]]:
        """Its measurements of the gradient noise, as `smoothness.noise` gives them; none if it failed."""
        return self._noted(job, "noise", smoothness.noise)

    def _noted(self, job: Job, name: str, function: Callable[[Path], Any]) -> list:
        self._runner.note(job, name, function)
        return self._runner.run(job).get(name, [])


def count_devices(folder: Path) -> dict[str, Any]:
    """The devices of the process that trains, which alone may take hold of them. `folder` is not looked at."""
    del folder
    there = jax.local_devices()
    return {"count": len(there), "kind": there[0].device_kind}
