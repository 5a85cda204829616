"""The norm study: a comparison of the statistics to normalise by, over per-device batch sizes.

The study makes two sets of training runs, all on the same number of devices:

- the grid: every norm at every per-device batch size, for classification (`simple_cnn`) and for segmentation (`fcn`);
  runs of one task and batch size make the same number of updates;
- the rates: batch statistics, and statistics that are frozen before the first update, at peak rates a factor of about
  three apart.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .._limits import option, option_as_in
from ..records.fields import Options
from ..records.norm_study import (
    CLASSIFICATION,
    FIXED_OR_NOT,
    LOCAL,
    NORMS,
    SEGMENTATION,
    SYNCHRONISED,
    TASKS,
    Norm,
    Task,
)
from ..training.config.options import TrainConfig
from . import activation_shift, driver, jobs
from .executing.choice import Where
from .executing.local import Local
from .executing.task import Executor
from .jobs import Job

# The per-device batch size of the runs at several rates.
RATES_BATCH_SIZE_PER_DEVICE = 8


class Budget(NamedTuple):
    """The budget of a run: the updates that a number of examples needs, within limits.

    Attributes:
      examples: the number of examples to train on.
      least: the smallest number of updates.
      most: the largest number of updates.
    """

    examples: int
    least: int
    most: int

    def updates(self, batch_size: int) -> int:
        """Returns the number of updates of a run. Only runs with the same batch size are compared."""
        return min(self.most, max(self.least, self.examples // batch_size))


class Size(NamedTuple):
    """The extent of a study.

    Attributes:
      budgets: the budget of a run, by the name of the task.
      seeds: the seeds of every run, by the name of the task.
      per_device_batch_sizes: the per-device batch sizes of the grid.
      rates: the peak rates of the runs at several rates.
      norms: the names of the norms of the grid.
    """

    budgets: dict[str, Budget]
    seeds: dict[str, tuple[int, ...]]
    per_device_batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 32)
    rates: tuple[float, ...] = (0.005, 0.015, 0.05, 0.15, 0.5)
    norms: tuple[str, ...] = tuple(NORMS)


PRESETS = {
    # Segmenting 48x48 pixels takes as long as thirty classifications, so segmentation has fewer seeds.
    "full": Size(
        {CLASSIFICATION.name: Budget(76_800, 300, 300), SEGMENTATION.name: Budget(5_760, 30, 200)},
        seeds={CLASSIFICATION.name: (0, 1, 2), SEGMENTATION.name: (0, 1)},
    ),
    "quick": Size(
        {CLASSIFICATION.name: Budget(25_600, 100, 100), SEGMENTATION.name: Budget(1_280, 10, 40)},
        seeds={CLASSIFICATION.name: (0,), SEGMENTATION.name: (0,)},
        per_device_batch_sizes=(1, 4),
        rates=(0.015, 0.15),
        # A short run spends most of its time compiling, and three norms suffice to show the effect.
        norms=("local", "synchronised", "frozen"),
    ),
}


@dataclass(frozen=True)
class Request(Where):
    """The options of a study; the entry point makes one flag per field, documented by `FIELD.metadata["help"]`."""

    preset: str = option(
        "full", "'full', an hour on two cores, or 'quick', three minutes and three norms.", among=tuple(PRESETS)
    )
    norms: tuple[str, ...] | None = option(
        None,
        f"What to compare, of {', '.join(NORMS)}. Default: those of the preset.",
        among=tuple(NORMS),
        kind="norm",
    )
    tasks: tuple[str, ...] = option(tuple(TASKS), "What to train.", among=tuple(TASKS), kind="task")
    per_device_batch_sizes: tuple[int, ...] | None = option(
        None,
        "Examples per device. Default: those of the preset.",
        example="1,2,32",
        what="whole numbers",
        least=1,
    )
    num_devices: int = option_as_in(TrainConfig, "num_devices", 8, "Devices of a run.")
    workdir: str | None = option_as_in(
        TrainConfig, "workdir", None, "Folder for the results. Default: runs/norm_study-PRESET."
    )
    dry_run: bool = option(False, "Print the commands of the runs that are not done, and run none.")
    status: bool = option(False, "Print how far the study is, which another process may be running, and run none.")

    @property
    def folder(self) -> Path:
        """The folder for the results."""
        return Path(self.workdir or f"runs/norm_study-{self.preset}")

    @property
    def size(self) -> Size:
        """The size of the preset, changed by the options that were given."""
        size = PRESETS[self.preset]
        if self.norms is not None:
            size = size._replace(norms=self.norms)
        if self.per_device_batch_sizes is not None:
            size = size._replace(per_device_batch_sizes=self.per_device_batch_sizes)
        return size


class Plan(NamedTuple):
    """The jobs of a study.

    Attributes:
      rates: the runs at several rates; empty unless the study includes all norms that these runs compare.
      grid: the runs of the grid.
    """

    rates: list[Job]
    grid: list[Job]

    @property
    def jobs(self) -> list[Job]:
        """All jobs, in the order in which they are run."""
        return [*self.rates, *self.grid]


def plan(request: Request) -> Plan:
    """Plans the jobs of a study.

    Raises:
      UsageError: none of the runs can begin.
    """
    size, devices = request.size, request.num_devices
    has_rates = {norm.name for norm in FIXED_OR_NOT} <= set(size.norms)
    made = Plan(
        rates=rate_jobs(size, devices) if has_rates else [],
        grid=grid_jobs(size, [TASKS[name] for name in request.tasks], devices),
    )
    jobs.refuse_hopeless(made.jobs)
    return made


def waiting_commands(planned: Plan, folder: Path) -> list[list[str]]:
    """Returns the commands of the runs that are not done, after trying whether one of them can begin; runs nothing."""
    runner = driver.Runner(folder)
    waiting = [job for job in planned.jobs if not runner.is_done(job)]
    driver.try_out(waiting)
    return [jobs.command(job, folder) for job in waiting]


def run(planned: Plan, folder: Path, executor: Callable[[Path], Executor] = Local) -> list[str]:
    """Makes the runs that are not done, and returns the keys of the runs that failed.

    Args:
      planned: the jobs.
      folder: the folder of the study.
      executor: returns what runs the jobs, given the folder.

    Raises:
      UsageError: none of the runs can begin.
    """
    with driver.Runner(folder, executor) as runner:
        waiting = [job for job in planned.jobs if not runner.is_done(job)]
        runner.try_out(waiting)
        runner.run_all(waiting)
        runner.note_all(planned.rates, "shift", activation_shift.shift_of)
        return runner.failed()


def same_as(norm: Norm, per_device: int, num_devices: int) -> Norm | None:
    """Returns the norm that computes the same result at this size and is run instead; None: there is no such norm.

    Example:
      >>> same_as(NORMS["span 32"], 4, 8).name, same_as(NORMS["span 16"], 4, 8)
      ('synchronised', None)
    """
    return {per_device * num_devices: SYNCHRONISED, per_device: LOCAL}.get(norm.span or 0)


def is_run(norm: Norm, per_device: int, num_devices: int) -> bool:
    """Returns whether a norm is run at this size: its span fits the batch, and no other norm computes the same result.

    Example:
      >>> is_run(NORMS["span 16"], 4, 8), is_run(NORMS["span 16"], 1, 8), is_run(NORMS["span 32"], 4, 8)
      (True, False, False)
    """
    fits = norm.span is None or norm.span <= per_device * num_devices
    return fits and same_as(norm, per_device, num_devices) is None


def grid_jobs(size: Size, tasks: Sequence[Task], num_devices: int) -> list[Job]:
    """Returns the jobs of the grid: each norm of `size` at each per-device batch size at which it is run.

    Norms vary fastest, so that runs whose times are compared follow each other.
    """
    norms = [NORMS[name] for name in size.norms]
    return [
        Job(
            f"grid-{task.name}-{norm.key}-p{per_device}-seed{seed}",
            {
                **_options(task, per_device, num_devices, seed),
                **norm.options,
                "steps": size.budgets[task.name].updates(num_devices * per_device),
            },
        )
        for task in tasks
        for seed, per_device, norm in itertools.product(size.seeds[task.name], size.per_device_batch_sizes, norms)
        if is_run(norm, per_device, num_devices)
    ]


def rate_jobs(size: Size, num_devices: int) -> list[Job]:
    """Returns the jobs of the runs at several rates, with batch statistics and with frozen ones."""
    task = CLASSIFICATION
    return [
        Job(
            f"rate-{norm.rate_key}-{rate:g}-seed{seed}",
            {
                **_options(task, RATES_BATCH_SIZE_PER_DEVICE, num_devices, seed),
                **norm.options,
                "steps": size.budgets[task.name].updates(num_devices * RATES_BATCH_SIZE_PER_DEVICE),
                "learning_rate": rate,
            },
        )
        for seed, rate, norm in itertools.product(size.seeds[task.name], size.rates, FIXED_OR_NOT)
    ]


def _options(task: Task, per_device: int, num_devices: int, seed: int) -> Options:
    return {**task.options, "batch_size": num_devices * per_device, "num_devices": num_devices, "seed": seed}
