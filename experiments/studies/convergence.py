"""Runs to a target, and the search for the learning rate that reaches it in the fewest updates.

Rates are constant, without warmup or decay, so that the length that a run may have does not change its course. The
target is an accuracy, or a loss, on training examples that are held out, where that can be.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from batchnorm_jax.batch_size import fit_steps_to_target

from .._errors import UsageError
from ..records.fields import Options
from ..records.questions.convergence import StepsFit, StepsIntervals
from ..records.runs import EvaluationRow
from ..records.studies import StudyRow
from ..training.storage import metrics
from .driver import Runner
from .jobs import Job
from .question import Changes, Data, no_larger
from .question import Setting as Base

SEARCH_SEED = 100
# The share of an epoch between two evaluations; those of 5,000 images take 25% to 65% of the computing beside them.
RESOLUTION = 0.04
# Of a problem, which has no epochs to speak of: the least distance of the first evaluations, in epochs, and the share
# of the updates so far to which it grows. A run goes past its target by this share of its updates, so that noise is
# told from reaching it.
FINEST, GROWTH, PAST_TARGET = 0.004, 0.1, 0.2
# The most updates of a run; at a batch of one an epoch of MNIST has a minute's worth of updates.
MOST_UPDATES = 300_000
# The step by which a search that was given one rate goes on.
FACTOR = 2.0
# How often a grid is extended where the best rate is on its edge.
MOST_EXTENSIONS = 6
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The settings of runs to a target: batch sizes, rates, limits and seeds.

    Attributes:
      target: the accuracy, or the loss if that is the goal of the problem.
      fixed_sizes: batch sizes to run at one rate.
      tuned_sizes: batch sizes to tune the rate at, rising.
      rates: where the search starts at the smallest of `tuned_sizes`, rising; at each other size it starts in the same
        steps about the best rate of the size below.
      max_epochs: epochs after which a run counts as not having reached the target, as it does after 300,000 updates.
      seeds: the seeds of the runs at one rate, and at the best rates.
    """

    target: float
    fixed_sizes: tuple[int, ...]
    tuned_sizes: tuple[int, ...]
    rates: tuple[float, ...]
    max_epochs: int
    seeds: tuple[int, ...]

    def changed(self, changes: Changes) -> Self:
        """Returns the setting with the target, length, sizes, rates and seeds of the user."""
        refuse_search_seed(changes.seeds)
        return dataclasses.replace(
            self,
            target=changes.target or self.target,
            fixed_sizes=changes.batch_sizes or self.fixed_sizes,
            tuned_sizes=changes.batch_sizes or self.tuned_sizes,
            rates=changes.rates or self.rates,
            max_epochs=changes.max_epochs or self.max_epochs,
            seeds=changes.seeds or self.seeds,
        )

    def fitted(self, examples: int) -> Self:
        """Returns the setting with the batch sizes that fit the training set."""
        return dataclasses.replace(
            self,
            fixed_sizes=no_larger(self.fixed_sizes, examples),
            tuned_sizes=no_larger(self.tuned_sizes, examples),
        )

    @property
    def compared_sizes(self) -> tuple[int, ...]:
        """Batch sizes at which the rate is tuned."""
        return self.tuned_sizes


def refuse_search_seed(seeds: Sequence[int] | None) -> None:
    """Refuses seeds of the user's among which is that of the search.

    Raises:
      UsageError: it is among them.
    """
    if SEARCH_SEED in (seeds or ()):
        raise UsageError(f"--seeds: {SEARCH_SEED} is the seed of the search; take others")


class ToTarget(Protocol):
    """The part of a setting that says what a run stops at."""

    @property
    def target(self) -> float:
        """The accuracy or the loss."""
        ...

    @property
    def max_epochs(self) -> int:
        """Epochs after which the run has not reached it."""
        ...


def job_options(
    data: Data, setting: ToTarget, batch_size: int, seed: int, is_smoothed: bool | None = None, **changes: Any
) -> Options:
    """Returns the options of a run to the target.

    Args:
      data: to train on.
      setting: target and length.
      batch_size: examples per update.
      seed: the seed of the run.
      is_smoothed: evaluate finely at first, and count the target where the evaluations are at it without their noise;
        None: for problems alone.
      **changes: other options, such as the optimizer.
    """
    is_smoothed = data.is_problem if is_smoothed is None else is_smoothed
    every = max(1, round((FINEST if is_smoothed else RESOLUTION) * data.examples / batch_size))
    growing: Options = {"evaluate_growth": GROWTH, "past_target": PAST_TARGET} if is_smoothed else {}
    return {
        **data.options,
        "batch_size": batch_size,
        "epochs": max(1, min(setting.max_epochs, MOST_UPDATES * batch_size // data.examples)),
        f"target_{data.goal}": setting.target,
        "evaluate_every": every,
        "log_every": every,
        **growing,
        **data.constant,
        "seed": seed,
        **changes,
    }


def tuned_job(
    data: Data, setting: Setting, batch_size: int, rate: float, seed: int, is_smoothed: bool | None = None
) -> Job:
    """Returns a run with Nesterov's momentum of 0.9, or with the optimizer of the problem."""
    optimizer: dict[str, Any] = {} if data.is_problem else {"optimizer": "nesterov"}
    options = job_options(data, setting, batch_size, seed, is_smoothed, **optimizer, learning_rate=rate)
    return Job(f"tuned-b{batch_size}-r{rate:.4g}-seed{seed}", options)


def grid_jobs(data: Data, setting: Setting, is_smoothed: bool | None = None) -> list[Job]:
    """Returns a run at every batch size and rate with each seed, to compare a search or a recommendation with."""
    return [
        tuned_job(data, setting, batch_size, rate, seed, is_smoothed)
        for seed in setting.seeds
        for batch_size in setting.tuned_sizes
        for rate in setting.rates
    ]


def evaluations(workdir: Path) -> list[tuple[int, float | None, float]]:
    """Returns updates, accuracy and loss at each evaluation of the split that a run evaluates first."""
    rows = [row for row in metrics.read(workdir / metrics.FILE) if isinstance(row, EvaluationRow)]
    return [(row.step, row.accuracy, row.loss) for row in rows if row.kind == rows[0].kind]


def updates_to_target(row: StudyRow) -> int | None:
    """Returns the update after which a run reached its target; None: it did not."""
    return None if row.summary is None else row.summary.reached_after


def fitted_steps(rows: Sequence[StudyRow]) -> tuple[StepsFit | None, str | None]:
    """Returns the fit of the updates to the target against the batch sizes of runs that ended, or why there is none.

    A run that did not reach the target counts as one that takes more updates than it made.
    """
    reached = [updates_to_target(row) for row in rows]
    steps = [row.ended.updates if r is None else r for row, r in zip(rows, reached, strict=True)]
    try:
        fitted = fit_steps_to_target(
            [row.batch_size for row in rows], steps, censored=[r is None for r in reached], confidence=CONFIDENCE
        )
    except ValueError as error:
        # Without the name of the function, which says nothing to a reader of the report.
        return None, str(error).partition(": ")[2]
    fit = StepsFit(
        min_steps=fitted.min_steps,
        min_examples=fitted.min_examples,
        critical_batch_size=fitted.critical_batch_size,
        intervals=StepsIntervals(**fitted.intervals),
    )
    return fit, None


class Trial(NamedTuple):
    """The outcome of one run of a search.

    Attributes:
      updates: until the target was reached; None: it was not.
      merit: the accuracy at the end, or minus the loss; None: the loss was not finite, or the run failed.
      failed: the run ended with an error other than a loss that is not finite.
    """

    updates: int | None
    merit: float | None
    failed: bool = False

    @property
    def ended(self) -> bool:
        """Whether the run ended with a finite loss."""
        return self.merit is not None


def trial_of(row: StudyRow) -> Trial:
    """Returns the outcome of a run."""
    merit = None if row.summary is None else row.summary.result.merit
    return Trial(updates_to_target(row), merit, failed=not row.is_result)


class Tuned(NamedTuple):
    """The outcome of the search at one batch size.

    Attributes:
      batch_size: the batch size of the search.
      rate: the rate that reached the target first; if none did, the best one at its end; None: no run
        ended with a finite loss.
      reached: whether the target was reached.
      on_edge: the rate is the least or the greatest of the grid, which was not extended further.
      trials: by their rates, which rise.
    """

    batch_size: int
    rate: float | None
    reached: bool
    on_edge: bool
    trials: Mapping[float, Trial]


# Returns the outcomes of jobs, which it runs side by side if it can.
Run = Callable[[Sequence[Job]], Sequence[Trial]]


def search(data: Data, setting: Setting, batch_size: int, rates: Sequence[float], run: Run) -> Tuned:
    """Finds the rate that reaches the target in the fewest updates, with one seed.

    All of `rates` are run; while the best is on the edge, one further beyond it. A run that fails, unless by a loss
    that is not finite, ends the search at this batch size.

    Args:
      data: to train on.
      setting: the settings of the runs.
      batch_size: to tune at.
      rates: to begin with.
      run: returns the outcomes of jobs.
    """
    trials: dict[float, Trial] = {}
    failed = False
    waiting = list(rates)
    while waiting and not failed:
        jobs = [tuned_job(data, setting, batch_size, rate, SEARCH_SEED) for rate in waiting]
        trials |= zip(waiting, run(jobs), strict=True)
        waiting = []
        failed = any(trial.failed for trial in trials.values())
        best = best_rate(trials)
        if not failed and best in (min(trials), max(trials)) and len(trials) < len(rates) + MOST_EXTENSIONS:
            waiting.append(_beyond(sorted(trials), upward=best == max(trials)))
    best = best_rate(trials)
    return Tuned(
        batch_size,
        best if trials[best].ended else None,
        trials[best].updates is not None,
        best in (min(trials), max(trials)),
        {rate: trials[rate] for rate in sorted(trials)},
    )


def _beyond(rates: Sequence[float], upward: bool) -> float:
    """Returns the next rate of a rising grid, in the grid's own steps."""
    if len(rates) == 1:
        return rounded(rates[0] * (FACTOR if upward else 1 / FACTOR))
    return rounded(rates[-1] ** 2 / rates[-2] if upward else rates[0] ** 2 / rates[1])


def rounded(rate: float) -> float:
    """Rounds a rate to four digits, so that a key names the rate that was run."""
    return float(f"{rate:.4g}")


def best_rate(trials: Mapping[float, Trial]) -> float:
    """Returns the rate with the fewest updates to the target; without any, the best at its end, or the least."""

    def badness(rate: float) -> tuple[int, float, float]:
        trial = trials[rate]
        if trial.updates is not None:
            return 0, trial.updates, rate
        # Where all losses are not finite the rates are too high.
        return (1, -trial.merit, rate) if trial.merit is not None else (2, 0.0, rate)

    return min(trials, key=badness)


def run_tuned(
    data: Data, setting: Setting, run: Run, expect: Callable[[Sequence[Job]], None] = lambda jobs: None
) -> list[Tuned]:
    """Searches at every batch size, about the best rate of the size below, and runs the best rates with each seed.

    Args:
      data: to train on.
      setting: the settings of the runs.
      run: returns the outcomes of jobs.
      expect: is told of jobs that `run` will be asked for, and that may be run beside others until then.

    Returns:
      The outcome of each search.
    """
    found: list[Tuned] = []
    final: list[Job] = []
    rates = setting.rates
    for batch_size in setting.tuned_sizes:
        tuned = search(data, setting, batch_size, rates, run)
        found.append(tuned)
        if tuned.rate is None:
            continue
        at_best = [tuned_job(data, setting, batch_size, tuned.rate, seed) for seed in setting.seeds]
        expect(at_best)
        final += at_best
        if not tuned.reached:
            continue
        middle = setting.rates[len(setting.rates) // 2]
        rates = tuple(rounded(tuned.rate * rate / middle) for rate in setting.rates)
    run(final)
    return found


def tuned_so_far(data: Data, setting: Setting, runner: Runner) -> tuple[dict[int, float], list[Job]]:
    """Returns the best rates of the sizes whose search is done, and the jobs that the other searches ask for next."""
    waiting: list[Job] = []

    def look(job: Job) -> Trial:
        if runner.is_done(job):
            return trial_of(runner.run(job))
        # Worse than any run that is done; among others, the best in the middle.
        middle = len(setting.rates) // 2
        place = sum(other.options["batch_size"] == job.options["batch_size"] for other in waiting)
        waiting.append(job)
        return Trial(updates=10**9 + abs(place - middle), merit=-math.inf)

    found = run_tuned(data, setting, lambda jobs: [look(job) for job in jobs])
    asked = {job.options["batch_size"] for job in waiting if job.options["seed"] == SEARCH_SEED}
    return {t.batch_size: t.rate for t in found if t.rate is not None and t.batch_size not in asked}, waiting
