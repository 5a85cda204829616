"""The runs of a recommendation: batch sizes, rates and evaluations, and the figures read from the row of a run."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from batchnorm_jax.batch_size import scale_learning_rate

from ...records.evidence import MeasuredRun
from ...records.fields import Options
from ...records.questions.recommending import Evaluation
from ...records.studies import StudyRow
from ...training.config.plan import MIN_UPDATES_PER_EPOCH
from ..convergence import FINEST, GROWTH, rounded
from ..jobs import Job
from .lab import Costs, Problem

Rule = Literal["linear", "sqrt"]

# The fewest updates for a run to be timed: the first update is slower than the others.
MIN_TIMED_UPDATES = 10
# Evaluations may take this share of the time that a run may have, but each run may have so many of them.
EVALUATION_TIME_SHARE, LEAST_EVALUATIONS = 0.2, 8
# The distance of evaluations as a share of the updates so far: the first that is affordable. Runs of one setting are
# further apart than that by their seeds.
GROWTHS = (GROWTH, 2 * GROWTH, 4 * GROWTH)
# The most characters of an error that are shown, so that it fits on a line or two.
MAX_ERROR_CHARACTERS = 200


def size_near(batch_size: float, problem: Problem, limit: int | None = None) -> int:
    """Returns the nearest batch size that is a power of two times the unit and that data and memory allow."""
    most = problem.data.examples // MIN_UPDATES_PER_EPOCH
    if limit is not None:
        most = min(most, limit)
    highest = math.floor(math.log2(max(1, most / problem.unit)))
    return problem.unit * 2 ** min(max(0, round(math.log2(max(batch_size, 1) / problem.unit))), highest)


def scaled_rate(rate: float, batch_size: float, other: float, critical: float, rule: Rule = "linear") -> float:
    """Scales a rate to another batch size: by the rule well below the critical batch size, and not at all well above.

    Example:
      >>> scaled_rate(0.1, 100, 200, critical=1e9), scaled_rate(0.1, 100, 200, critical=1e-3)
      (0.2, 0.1)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, equation 2.6, with
    the measured critical batch size in place of the noise scale.
    """
    return rounded(scale_learning_rate(rate, batch_size, other, rule=rule, critical_batch_size=critical))


def constant_options(problem: Problem, batch_size: int, rate: float) -> Options:
    """Returns the options of a run at a constant rate, which all runs of a recommendation and its advice share."""
    return {
        **problem.data.constant,
        # The user's own recipe comes last.
        **problem.data.options,
        "batch_size": batch_size,
        **({} if problem.optimizer is None else {"optimizer": problem.optimizer}),
        "learning_rate": rate,
    }


class Evaluations(NamedTuple):
    """The places where a run to the target is evaluated: the distance of the first, and how it grows.

    Attributes:
      every: updates between the first evaluations.
      growth: the share of the updates so far to which that distance grows.
    """

    every: int
    growth: float

    def number(self, updates: float) -> float:
        """Returns about how many evaluations a run has.

        Example:
          >>> round(Evaluations(2, 0.1).number(100)), round(Evaluations(2, 0.1).number(10))
          (27, 5)
        """
        straight = min(updates, self.every / self.growth)
        return straight / self.every + max(0.0, math.log(updates / straight) / math.log1p(self.growth))

    def options(self) -> Options:
        """Returns the options of a run."""
        return {"evaluate_every": self.every, "evaluate_growth": self.growth}


def evaluations_of(problem: Problem, costs: Costs, batch_size: int, updates: float) -> Evaluations:
    """Returns the finest places that cost no more than a share of the time of a run.

    Args:
      problem: the training.
      costs: the estimated costs of runs.
      batch_size: examples per update.
      updates: the most updates of the run.
    """
    room = EVALUATION_TIME_SHARE * costs.of(batch_size, updates, 0)
    affordable = max(LEAST_EVALUATIONS, room / costs.evaluation if costs.evaluation > 0 else math.inf)
    for growth in GROWTHS:
        # An evaluation for each example would be wasted: its noise stays the same.
        every = max(1, round(FINEST * problem.data.examples / batch_size))
        while every < growth * updates:
            found = Evaluations(every, growth)
            if found.number(updates) <= affordable:
                return found
            every *= 2
    return Evaluations(max(1, round(updates / LEAST_EVALUATIONS)), GROWTHS[-1])


def step_seconds(row: StudyRow) -> float:
    """Returns the compute time per update of a run that ended, in seconds."""
    return row.ended.seconds["compute"] / row.ended.updates


def between(updates: int, evaluations: Sequence[Evaluation]) -> tuple[int, int]:
    """Returns the updates before the evaluations on both sides of a number, the first 0 where there was none before.

    Args:
      updates: the updates after which a run reached its target.
      evaluations: the evaluations of the run, which went past its target.
    """
    places = [evaluation.updates for evaluation in evaluations]
    # What the first evaluation finds was reached at any time before it.
    return max((at for at in places if at < updates), default=0), min(at for at in places if at >= updates)


def measured_run(job: Job, row: StudyRow, evaluations: Sequence[Evaluation]) -> MeasuredRun:
    """Returns the outcome of a run to the target that ended or diverged."""
    summary = row.summary
    reached = None if summary is None else summary.reached_after
    return MeasuredRun(
        key=job.key,
        batch_size=job.options["batch_size"],
        rate=job.options["learning_rate"],
        seed=job.options["seed"],
        updates=0 if summary is None else summary.updates if reached is None else reached,
        # Evaluations are missing only where reading them failed.
        between=between(reached, evaluations) if reached is not None and evaluations else None,
        reached=reached is not None,
        diverged=row.diverged,
        step_seconds=None if summary is None else step_seconds(row),
        evaluate_every=job.options["evaluate_every"],
    )


def why(row: StudyRow) -> str:
    """Returns the first line of the error of a run that failed."""
    text = (row.error or "").strip()
    return text.splitlines()[0][:MAX_ERROR_CHARACTERS] if text else "failed"
