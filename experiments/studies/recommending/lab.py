"""The source of the measurements: training runs in another process, within a budget of time."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.records.questions.recommending import Evaluation, ShortRow
from experiments.records.questions.smoothness import NoiseRow
from experiments.records.studies import StudyRow
from experiments.studies import convergence, smoothness
from experiments.studies.convergence import Data
from experiments.studies.jobs import Job, Runner
from experiments.training.noise.probe import SHARD_SIZE, SHARDS

# Starting with a compiled program that is cached takes this share of the time that starting with a new one takes.
CACHED_START_SHARE = 0.3
# Spans of a run that come once, by their names in a summary.
START_SPANS = ("start", "compile", "checkpoint")


class Problem(NamedTuple):
    """The training for which a batch size is sought.

    Attributes:
      data: the data set, the model and their sizes.
      target: the accuracy to reach; None: there is none, and no run goes on to one.
      devices: devices that share a batch.
      kind: the kind of the devices, such as "cpu".
      optimizer: the optimizer of all runs.
    """

    data: Data
    target: float | None
    devices: int
    kind: str
    optimizer: str = "nesterov"

    @property
    def unit(self) -> int:
        """The number whose multiples by powers of two are batch sizes: the devices, or the examples of their spans."""
        span = self.data.options.get("span")
        if span is None:
            return self.devices
        shared = span % self.devices == 0 and self.devices & (self.devices - 1) == 0
        return span if shared else span * self.devices

    @property
    def shard_size(self) -> int:
        """Examples per shard, where the noise is measured."""
        return self.data.options.get("span") or SHARD_SIZE

    @property
    def can_measure_noise(self) -> bool:
        """Whether there are enough examples for two shards."""
        return self.data.examples >= 2 * self.shard_size


class Costs(NamedTuple):
    """Seconds of the parts of a run.

    Attributes:
      update: seconds of computing per update, by batch size.
      evaluation: seconds per evaluation of all splits.
      start: seconds of the spans that come once, with compilation.
      is_compiled: whether a batch size has been run, so that its program is cached.
      devices: devices that share an update; the noise is measured on one of them.
    """

    update: Callable[[float], float]
    evaluation: float
    start: float
    is_compiled: Callable[[float], bool]
    devices: int

    def of(
        self,
        batch_size: float,
        updates: float,
        evaluations: float = 1,
        measurements: float = 0,
        shard_size: int = SHARD_SIZE,
    ) -> float:
        """Returns the seconds of a run: its start, updates, evaluations and measurements of the noise."""
        noise = measurements * self.measurement(shard_size)
        start = self.start * (CACHED_START_SHARE if self.is_compiled(batch_size) else 1)
        return start + updates * self.update(batch_size) + evaluations * self.evaluation + noise

    def measurement(self, shard_size: int) -> float:
        """Returns the seconds per measurement of the noise: one device takes the gradients of all shards in turn."""
        return SHARDS * self.update(self.devices * shard_size)


def costs_of(
    rows: Sequence[StudyRow],
    problem: Problem,
    update: Callable[[float], float],
    is_compiled: Callable[[float], bool],
) -> Costs:
    """Returns the costs of future runs, by those of runs that have been made.

    Args:
      rows: runs that ended, each of which began with a program of its own.
      problem: the training of these runs.
      update: seconds of computing per update, by batch size.
      is_compiled: whether a batch size has been run.
    """
    evaluations, starts = [], []
    for row in rows:
        seconds = row.ended.seconds
        ends = max(1, math.ceil(row.ended.updates * row.batch_size / problem.data.examples))
        evaluations.append(seconds.get("evaluate", 0.0) / ends)
        starts.append(sum(seconds.get(name, 0.0) for name in START_SPANS))
    return Costs(update, statistics.median(evaluations), statistics.median(starts), is_compiled, problem.devices)


class Lab:
    """Runs jobs and reads their measurements, until the budget is spent. A row that is there costs nothing."""

    def __init__(self, runner: Runner, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._runner, self._clock = runner, clock
        self.seconds = seconds
        self._started = clock()
        self._compiled: set[float] = set()

    def spent(self) -> float:
        """Returns the seconds since the lab was opened."""
        return self._clock() - self._started

    def affords(self, seconds: float) -> bool:
        """Returns whether so many seconds are left."""
        return self.spent() + seconds <= self.seconds

    def is_compiled(self, batch_size: float) -> bool:
        """Returns whether a run has been asked for at a batch size, so that its program is cached."""
        return batch_size in self._compiled

    def run(self, job: Job) -> StudyRow:
        """Returns the row of a job, as `Runner.run` does."""
        self._compiled.add(job.options["batch_size"])
        return self._runner.run(job)

    def evaluations(self, job: Job) -> list[Evaluation]:
        """Returns the evaluations on the way of a short run that has been made; none if it failed."""
        self._runner.note(job, "evaluations", convergence.evaluations)
        row = self._runner.run(job)
        return (row.evaluations or []) if isinstance(row, ShortRow) else []

    def noise(self, job: Job) -> list[tuple[float, float, float, float]]:
        """Returns the measurements of the gradient noise along a run, as `NoiseRow` has them; none if it failed."""
        self._runner.note(job, "noise", smoothness.noise)
        row = self._runner.run(job)
        return (row.noise or []) if isinstance(row, NoiseRow) else []


def count_devices(folder: Path) -> dict[str, int | str]:
    """Returns the devices of the process that trains, the only one that may take hold of them: `count` and `kind`.

    Args:
      folder: of the study; it is not looked at.
    """
    del folder
    devices = jax.local_devices()
    return {"count": len(devices), "kind": devices[0].device_kind}
