"""Seconds per update and per epoch by batch size, and whether powers of two are faster.

Short runs, in turn over the batch sizes, several rounds: a machine that is slow for a while is so for all sizes.
"""

import contextlib
import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from batchnorm_jax.batch_size import fit_step_time

from ...records.fields import Options
from ...records.questions.time import Analysis, Kind, Neighbour, SizeTime, TimeFit, TimeIntervals
from ...records.studies import StudyRow
from ..jobs import Job
from ..question import Asked, Question, keys_of, no_larger
from ..question import Setting as Base

# Updates of a run. The first is slower than the others, by less than a tenth of the time of the least.
LEAST_STEPS, MOST_STEPS = 10, 300
# The distance to a power of two, relative to it, up to which a size is its neighbour.
NEAR = 0.05


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The batch sizes to time, and how often.

    Attributes:
      batch_sizes: to time; those near a power of two are compared with it.
      examples: the approximate number of examples of a run.
      rounds: how often each size is timed.
    """

    batch_sizes: tuple[int, ...]
    examples: int
    rounds: int

    def fitted(self, examples: int) -> Self:
        """Returns the setting with the batch sizes that fit the training set."""
        return dataclasses.replace(self, batch_sizes=no_larger(self.batch_sizes, examples))


class _Time(NamedTuple):
    """Seconds of one update in one round: of computing, and with input and logging."""

    computing: float
    in_all: float


# By batch size and round.
_Times = Mapping[int, Mapping[int, _Time]]


def jobs(options: Options, setting: Setting, rate: float = 0.01) -> list[Job]:
    """Returns a run at every batch size in every round, at a rate at which it does not diverge."""
    return [
        Job(
            f"time-b{batch_size}-round{number}",
            {
                **options,
                "batch_size": batch_size,
                "steps": min(MOST_STEPS, max(LEAST_STEPS, setting.examples // batch_size)),
                "schedule": "constant",
                "warmup_epochs": 0,
                "learning_rate": rate,
                "seed": number,
            },
            alone=True,
        )
        for number in range(setting.rounds)
        for batch_size in setting.batch_sizes
    ]


def planned(asked: Asked) -> list[Job]:
    """Returns all runs."""
    data = asked.data
    of_problem = {} if data.problem is None else {"rate": data.problem.learning_rate / 10}
    return jobs(asked.study.options, asked.study.of(Setting), **of_problem)


def run(asked: Asked) -> Analysis:
    """Runs and compares all sizes."""
    return analyse(asked.runner.run_all(planned(asked)), asked.data.examples + asked.data.held_out)


def analyse(rows: Sequence[StudyRow], train_size: int) -> Analysis:
    """Returns the times of an update and of an epoch, their fit, and sizes beside the power of two nearby.

    Args:
      rows: those of `jobs`.
      train_size: the number of training examples, which make an epoch.
    """
    times: dict[int, dict[int, _Time]] = defaultdict(dict)
    devices: dict[int, str] = {}
    for row in rows:
        if row.summary is not None:
            seconds, updates = row.summary.seconds, row.summary.updates
            inside = sum(seconds.get(name, 0.0) for name in ("input", "compute", "log"))
            times[row.batch_size][row.seed] = _Time(seconds["compute"] / updates, inside / updates)
            devices[row.batch_size] = row.summary.devices
    # Sizes that fewer devices divide were timed on another machine, so to say.
    usual = max(devices.values(), key=list(devices.values()).count, default="")
    comparable = {size: rounds for size, rounds in times.items() if devices[size] == usual}
    return Analysis(
        keys=keys_of(rows),
        train_size=train_size,
        devices=usual,
        sizes=[_size(size, list(rounds.values()), devices[size], train_size) for size, rounds in sorted(times.items())],
        fit=_fit(comparable),
        neighbours=_neighbours(comparable),
    )


def _size(size: int, rounds: Sequence[_Time], devices: str, train_size: int) -> SizeTime:
    computing, in_all = [time.computing for time in rounds], [time.in_all for time in rounds]
    return SizeTime(
        batch_size=size,
        kind=kind(size),
        devices=devices,
        computing=computing,
        in_all=in_all,
        epoch_computing=train_size / size * statistics.median(computing),
        epoch_in_all=train_size / size * statistics.median(in_all),
    )


def _fit(times: _Times) -> TimeFit | None:
    points = [(size, time.computing) for size, rounds in times.items() for time in rounds.values()]
    with contextlib.suppress(ValueError):
        fit = fit_step_time([size for size, _ in points], [seconds for _, seconds in points])
        return TimeFit(
            overhead=fit.overhead,
            throughput=fit.throughput,
            knee=fit.knee,
            intervals=TimeIntervals(**fit.intervals),
        )
    return None


def kind(size: int) -> Kind:
    """Returns the kind of a batch size.

    Example:
      >>> kind(64), kind(72), kind(60)
      ('power of two', 'multiple of 8', 'neither')
    """
    if size & (size - 1) == 0:
        return "power of two"
    return "multiple of 8" if size % 8 == 0 else "neither"


def _neighbours(times: _Times) -> list[Neighbour]:
    found = []
    for power in (size for size in sorted(times) if kind(size) == "power of two"):
        for size in sorted(times):
            shared = sorted(times[size].keys() & times[power].keys())
            if size == power or abs(size - power) > NEAR * power or not shared:
                continue
            # In examples per second, each round by itself.
            ratios = [size / times[size][r].computing / (power / times[power][r].computing) for r in shared]
            found.append(Neighbour(batch_size=size, kind=kind(size), power=power, throughput=ratios))
    return found


_MNIST_TIMED = (1, 6, 60, 250, 256, 264, 600, 1018, 1024, 1032, 4090, 4096, 4104, 6000)
QUESTION = Question(
    order=10,
    help="short runs at many sizes",
    setting=Setting,
    planned=planned,
    run=run,
    presets={
        "quick": Setting((60, 256, 264, 1024), examples=8_000, rounds=2),
        "mnist": Setting(_MNIST_TIMED, examples=30_000, rounds=5),
        "mnist_full": Setting(_MNIST_TIMED, examples=60_000, rounds=9),
    },
    of_problems=True,
)
