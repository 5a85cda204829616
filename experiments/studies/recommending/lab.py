"""Where measurements come from: training runs in another process, within a budget of time."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.studies import convergence, smoothness
from experiments.studies.convergence import Data
from experiments.studies.jobs import Job, Runner
from experiments.training.noise.probe import MAX_SHARDS, SHARD_EXAMPLES

# Of the time that a run takes to start with a new program, that with one which is kept.
REPEATED = 0.3


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

    @property
    def unit(self) -> int:
        """Of which batch sizes are a power of two: the devices, or what whole spans are made of on them."""
        span = self.data.options.get("span")
        if span is None:
            return self.devices
        shared = span % self.devices == 0 and self.devices & (self.devices - 1) == 0
        return span if shared else span * self.devices

    @property
    def shard_size(self) -> int:
        """Examples of a shard, where the noise is measured."""
        return self.data.options.get("span") or SHARD_EXAMPLES

    @property
    def can_measure_noise(self) -> bool:
        """Whether there are examples enough for two shards."""
        return self.data.examples >= 2 * self.shard_size


class Costs(NamedTuple):
    """Seconds of the parts of a run.

    Attributes:
      update: of computing, by batch size.
      evaluation: of the evaluated splits.
      start: of what comes once, with compilation.
      is_compiled: whether a batch size has been run, so that its program is there.
      devices: that share an update; the noise is measured on one of them.
    """

    update: Callable[[float], float]
    evaluation: float
    start: float
    is_compiled: Callable[[float], bool]
    devices: int

    def of(self, batch_size: float, updates: float, evaluations: float = 1, measurements: float = 0, shard=0) -> float:
        """Of a run: its updates, evaluations and measurements of the noise, in shards of so many examples."""
        noise = measurements * self.measurement(shard or SHARD_EXAMPLES)
        start = self.start * (REPEATED if self.is_compiled(batch_size) else 1)
        return start + updates * self.update(batch_size) + evaluations * self.evaluation + noise

    def measurement(self, shard_size: int) -> float:
        """Of the noise: one device takes the gradient of a shard after the other."""
        return MAX_SHARDS * self.update(self.devices * shard_size)


def costs_of(
    rows: Sequence[dict[str, Any]],
    problem: Problem,
    update: Callable[[float], float],
    is_compiled: Callable[[float], bool],
) -> Costs:
    """The costs of runs to come, by those of runs that are there.

    Args:
      rows: of runs that ended, each of which began with a program of its own.
      problem: what they trained.
      update: seconds of computing of an update, by batch size.
      is_compiled: whether a batch size has been run.
    """
    evaluations, starts = [], []
    for row in rows:
        seconds, updates = row["summary"]["seconds"], row["summary"]["updates"]
        ends = max(1, math.ceil(updates * row["options"]["batch_size"] / problem.data.examples))
        evaluations.append(seconds.get("evaluate", 0.0) / ends)
        starts.append(sum(seconds.get(name, 0.0) for name in ("start", "compile", "checkpoint")))
    return Costs(update, statistics.median(evaluations), statistics.median(starts), is_compiled, problem.devices)


class Lab:
    """Runs jobs and reads what they measured, until the budget is spent. A row that is there costs nothing."""

    def __init__(self, runner: Runner, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._runner, self._clock = runner, clock
        self.seconds = seconds
        self._started = clock()
        self._compiled: set[float] = set()

    def spent(self) -> float:
        """Seconds since the lab was opened."""
        return self._clock() - self._started

    def affords(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        return self.spent() + seconds <= self.seconds

    def is_compiled(self, batch_size: float) -> bool:
        """Whether a run has been asked for at a batch size, so that its program is kept."""
        return batch_size in self._compiled

    def run(self, job: Job) -> dict[str, Any]:
        """The row of a job, as `Runner.run` gives it."""
        self._compiled.add(job.options["batch_size"])
        return self._runner.run(job)

    def evaluations(self, job: Job) -> list[list[float]]:
        """The evaluations on the way of a job that has been run, as `convergence.evaluations` gives them."""
        return self._noted(job, "evaluations", convergence.evaluations)

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
