"""The source of the measurements: training runs in another process, within a time budget."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from batchnorm_jax.batch_size import scale_learning_rate

from ...records.questions.recommending import Evaluation, ShortRow, TargetRow
from ...records.questions.smoothness import NoiseRow
from ...records.studies import StudyRow
from ...training.config.options import REFERENCE_BATCH_SIZE, TrainConfig
from ...training.noise.probe import MAX_SHARDS, SHARD_EXAMPLES
from ...training.of_problem import NOISE_SHARD_EXAMPLES
from ...training.recipe.optimizers import OPTIMIZERS
from ...training.terminal import countdown, duration
from .. import convergence, smoothness
from ..convergence import Data
from ..driver import Runner
from ..jobs import Job

# The start time of a run whose compiled program is cached, as a share of the start time with compilation.
CACHED_START_SHARE = 0.3
# The noise measurements of a run that times them.
TIMED_MEASUREMENTS = 1
# The spans of time that occur once per run, by their names in a summary.
START_SPANS = ("start", "compile", "checkpoint")


class Problem(NamedTuple):
    """The training for which a batch size is sought.

    Attributes:
      data: the data set and the model, or the problem, and their sizes.
      target: the accuracy or the loss to reach; None: no target was given, and no run trains to one.
      devices: the number of devices that share a batch.
      kind: the kind of the devices, such as "cpu".
      optimizer: the optimizer of all runs; None: that of the problem.
    """

    data: Data
    target: float | None
    devices: int
    kind: str
    optimizer: str | None = "nesterov"

    @property
    def rule(self) -> Literal["linear", "sqrt"]:
        """How the rate grows with the batch well below the critical batch size."""
        # Optimizers that are not told by a problem are SGD with momentum.
        return "linear" if self.data.problem is None else self.data.problem.rule

    def usual_rate(self, batch_size: int) -> float:
        """Returns the rate at a batch size that is usual for the optimizer, or the problem's own."""
        if self.data.problem is not None:
            own = self.data.problem
            return scale_learning_rate(own.learning_rate, own.batch_size, batch_size, rule=own.rule)
        return OPTIMIZERS[self.optimizer or TrainConfig.optimizer].base_rate * batch_size / REFERENCE_BATCH_SIZE

    def length(self, batch_size: int) -> int | None:
        """Returns the updates over which a run's rate decays, all that a run has; None: the rate stays as it is."""
        epochs = self.data.options.get("epochs")
        return None if epochs is None else int(epochs) * (self.data.examples // batch_size)

    @property
    def unit(self) -> int:
        """The smallest batch size: one example per device, or whole spans; batch sizes are powers of two times it."""
        span = self.data.options.get("span")
        if span is None:
            return self.devices
        shared = span % self.devices == 0 and self.devices & (self.devices - 1) == 0
        return span if shared else span * self.devices

    @property
    def shard_size(self) -> int:
        """The number of examples per shard of a noise measurement."""
        if self.data.is_problem:
            return NOISE_SHARD_EXAMPLES
        return self.data.options.get("span") or SHARD_EXAMPLES

    @property
    def can_measure_noise(self) -> bool:
        """True if there are enough examples for two shards, and a problem has a gradient."""
        if self.data.problem is not None:
            return self.data.problem.has_gradient
        return self.data.examples >= 2 * self.shard_size


class Costs(NamedTuple):
    """The seconds that the parts of a run take.

    Attributes:
      update: a function from a batch size to the compute time per update.
      evaluation: the time per evaluation of all splits.
      start: the time of the spans that occur once per run, including compilation.
      is_compiled: a function that returns whether a batch size has been run, so that its program is cached.
      devices: the number of devices that share an update; the noise is measured on one of them.
      timed_measurement: the seconds of a noise measurement, where one was timed; None: none was.
    """

    update: Callable[[float], float]
    evaluation: float
    start: float
    is_compiled: Callable[[float], bool]
    devices: int
    timed_measurement: float | None = None

    def of(
        self,
        batch_size: float,
        updates: float,
        evaluations: float = 1,
        measurements: float = 0,
        shard_size: int = SHARD_EXAMPLES,
    ) -> float:
        """Returns the seconds of a run: its start, updates, evaluations and noise measurements."""
        noise = measurements * self.measurement(shard_size)
        start = self.start * (CACHED_START_SHARE if self.is_compiled(batch_size) else 1)
        return start + updates * self.update(batch_size) + evaluations * self.evaluation + noise

    def measurement(self, shard_size: int) -> float:
        """Returns the seconds per noise measurement: one device computes the gradients of all shards in turn."""
        if self.timed_measurement is not None:
            return self.timed_measurement
        return MAX_SHARDS * self.update(self.devices * shard_size)


def costs_of(
    rows: Sequence[StudyRow],
    problem: Problem,
    update: Callable[[float], float],
    is_compiled: Callable[[float], bool],
) -> Costs:
    """Estimates the costs of future runs from the costs of finished runs.

    Args:
      rows: runs that ended, each with a batch size of its own, so that each compiled its program.
      problem: the training of these runs.
      update: a function from a batch size to the compute time per update, in seconds.
      is_compiled: a function that returns whether a batch size has been run.
    """
    evaluations, starts = [], []
    for row in rows:
        seconds = row.ended.seconds
        ends = max(1, math.ceil(row.ended.updates * row.batch_size / problem.data.examples))
        evaluations.append(seconds.get("evaluate", 0.0) / ends)
        starts.append(sum(seconds.get(name, 0.0) for name in START_SPANS))
    measured = [row.ended.seconds["noise"] / TIMED_MEASUREMENTS for row in rows if row.ended.seconds.get("noise")]
    return Costs(
        update,
        statistics.median(evaluations),
        statistics.median(starts),
        is_compiled,
        problem.devices,
        timed_measurement=max(measured, default=None),
    )


class Lab:
    """A runner of jobs with a time budget, which also reads their measurements; stored rows are reused at no cost."""

    def __init__(self, runner: Runner, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._runner, self._clock = runner, clock
        self.seconds = seconds
        self._started = clock()
        self._compiled: set[float] = set()
        # The longest budget that a refused measurement would have needed.
        self.seconds_needed: float | None = None

    def spent(self) -> float:
        """Returns the seconds that have passed since the lab was made."""
        return self._clock() - self._started

    def affords(self, seconds: float, *, notes: bool = True) -> bool:
        """Returns whether the budget has at least this many seconds left.

        Args:
          seconds: the seconds of a measurement.
          notes: note the budget that the measurement needs if there is less, since it is left out then.
        """
        needed = self.spent() + seconds
        if notes and needed > self.seconds:
            self.seconds_needed = max(needed, self.seconds_needed or 0.0)
        return needed <= self.seconds

    def is_compiled(self, batch_size: float) -> bool:
        """Returns whether a run was requested at this batch size, so that its program is cached."""
        return batch_size in self._compiled

    def run(self, job: Job) -> StudyRow:
        """Runs a job with `Runner.run`, under a countdown, and returns its row."""
        self._compiled.add(job.options["batch_size"])
        with countdown(lambda: self.seconds - self.spent(), job.key):
            return self._runner.run(job, f"{duration(max(0.0, self.seconds - self.spent()))} left")

    def evaluations(self, job: Job) -> list[Evaluation]:
        """Returns the evaluations during a run that has ended; an empty list if it failed."""
        self._runner.note(job, "evaluations", convergence.evaluations)
        row = self._runner.run(job)
        return (row.evaluations or []) if isinstance(row, ShortRow | TargetRow) else []

    def noise(self, job: Job) -> list[tuple[float, float, float, float]]:
        """Returns the noise measurements of a run, as in `NoiseRow.noise`; an empty list if it failed."""
        self._runner.note(job, "noise", smoothness.noise)
        row = self._runner.run(job)
        return (row.noise or []) if isinstance(row, NoiseRow) else []


def count_devices(folder: Path) -> dict[str, int | str]:
    """Returns the `count` and the `kind` of the devices; runs in the training process, which alone may use them.

    Args:
      folder: the folder of the study, which is not used.
    """
    del folder
    devices = jax.local_devices()
    return {"count": len(devices), "kind": devices[0].device_kind}
