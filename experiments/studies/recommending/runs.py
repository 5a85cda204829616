"""The runs of a recommendation: their batch sizes, their rates, how often they evaluate, and what a row says of one."""

import math

from experiments.records.evidence import MeasuredRun
from experiments.records.fields import Options
from experiments.records.studies import StudyRow
from experiments.studies.convergence import RESOLUTION, rounded
from experiments.studies.jobs import Job
from experiments.studies.recommending.lab import Costs, Problem
from experiments.studies.smoothness import CONSTANT
from experiments.training.config.plan import MIN_UPDATES_PER_EPOCH

# A run with fewer updates is not timed: its first update is slower than the others.
MIN_TIMED_UPDATES = 10
# Evaluations on the way may take this share of the time of computing.
EVALUATION_TIME_SHARE = 0.2
# Characters of an error that fit on a line.
MAX_ERROR_CHARACTERS = 200


def size_near(batch_size: float, problem: Problem, limit: int | None = None) -> int:
    """Returns the nearest power of two times the unit that the data and the memory have room for."""
    most = problem.data.examples // MIN_UPDATES_PER_EPOCH
    if limit is not None:
        most = min(most, limit)
    highest = math.floor(math.log2(max(1, most / problem.unit)))
    return problem.unit * 2 ** min(max(0, round(math.log2(max(batch_size, 1) / problem.unit))), highest)


def scaled_rate(rate: float, batch_size: float, other: float, critical: float) -> float:
    """Scales a rate to another batch size: in proportion well below the critical batch size, not at all well above.

    Example:
      >>> scaled_rate(0.1, 100, 200, critical=1e9), scaled_rate(0.1, 100, 200, critical=1e-3)
      (0.2, 0.1)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, equation 2.6, with
    the critical batch size that is measured in place of the noise scale.
    """
    return rounded(rate * (1 + critical / batch_size) / (1 + critical / other))


def constant_options(problem: Problem, batch_size: int, rate: float) -> Options:
    """Returns the options of a run at a constant rate, as all runs of a recommendation, and the advice, have it."""
    return {
        **problem.data.options,
        **CONSTANT,
        "batch_size": batch_size,
        "optimizer": problem.optimizer,
        "learning_rate": rate,
        "validation_examples": problem.data.held_out,
    }


def evaluate_every(problem: Problem, costs: Costs, batch_size: int) -> int:
    """Returns the updates between two evaluations on the way to the target."""
    finest = RESOLUTION * problem.data.examples / batch_size
    affordable = costs.evaluation / (EVALUATION_TIME_SHARE * costs.update(batch_size))
    epoch = problem.data.examples // batch_size
    return max(1, min(round(max(finest, affordable)), epoch))


def step_seconds(row: StudyRow) -> float:
    """Returns the seconds of computing per update of a run that ended."""
    return row.ended.seconds["compute"] / row.ended.updates


def updates_to_target(row: StudyRow) -> int | None:
    """Returns the updates after which a run reached its target; None: it did not."""
    return None if row.summary is None else row.summary.reached_after


def measured_run(job: Job, row: StudyRow) -> MeasuredRun:
    """Returns the outcome of a run to the target that ended or diverged."""
    return MeasuredRun(
        key=job.key,
        batch_size=job.options["batch_size"],
        rate=job.options["learning_rate"],
        seed=job.options["seed"],
        updates=0 if row.summary is None else row.summary.updates,
        reached=updates_to_target(row) is not None,
        diverged=row.diverged,
        step_seconds=None if row.summary is None else step_seconds(row),
        evaluate_every=job.options["evaluate_every"],
    )


def why(row: StudyRow) -> str:
    """Returns the first line of the error of a run that failed."""
    text = (row.error or "").strip()
    return text.splitlines()[0][:MAX_ERROR_CHARACTERS] if text else "failed"
