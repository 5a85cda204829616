"""The runs of a recommendation: batch sizes, rates and evaluations, and the figures read from the row of a run."""

import math

from batchnorm_jax.batch_size import scale_learning_rate

from ...records.evidence import MeasuredRun
from ...records.fields import Options
from ...records.studies import StudyRow
from ...training.config.plan import MIN_UPDATES_PER_EPOCH
from ..convergence import RESOLUTION, rounded
from ..jobs import Job
from ..smoothness import CONSTANT
from .lab import Costs, Problem

# The fewest updates for a run to be timed: the first update is slower than the others.
MIN_TIMED_UPDATES = 10
# Evaluations during a run may take at most this share of the compute time.
EVALUATION_TIME_SHARE = 0.2
# The most characters of an error that are shown, so that it fits on a line or two.
MAX_ERROR_CHARACTERS = 200


def size_near(batch_size: float, problem: Problem, limit: int | None = None) -> int:
    """Returns the nearest batch size that is a power of two times the unit and that data and memory allow."""
    most = problem.data.examples // MIN_UPDATES_PER_EPOCH
    if limit is not None:
        most = min(most, limit)
    highest = math.floor(math.log2(max(1, most / problem.unit)))
    return problem.unit * 2 ** min(max(0, round(math.log2(max(batch_size, 1) / problem.unit))), highest)


def scaled_rate(rate: float, batch_size: float, other: float, critical: float) -> float:
    """Scales a rate to another batch size: in proportion well below the critical batch size, and not at all well above.

    Example:
      >>> scaled_rate(0.1, 100, 200, critical=1e9), scaled_rate(0.1, 100, 200, critical=1e-3)
      (0.2, 0.1)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, equation 2.6, with
    the measured critical batch size in place of the noise scale.
    """
    return rounded(scale_learning_rate(rate, batch_size, other, critical_batch_size=critical))


def constant_options(problem: Problem, batch_size: int, rate: float) -> Options:
    """Returns the options of a run at a constant rate, which all runs of a recommendation and its advice share."""
    return {
        **problem.data.options,
        **CONSTANT,
        "batch_size": batch_size,
        "optimizer": problem.optimizer,
        "learning_rate": rate,
        "validation_examples": problem.data.held_out,
    }


def evaluate_every(problem: Problem, costs: Costs, batch_size: int) -> int:
    """Returns the number of updates between two evaluations of a run to the target."""
    finest = RESOLUTION * problem.data.examples / batch_size
    affordable = costs.evaluation / (EVALUATION_TIME_SHARE * costs.update(batch_size))
    epoch = problem.data.examples // batch_size
    return max(1, min(round(max(finest, affordable)), epoch))


def step_seconds(row: StudyRow) -> float:
    """Returns the compute time per update of a run that ended, in seconds."""
    return row.ended.seconds["compute"] / row.ended.updates


def updates_to_target(row: StudyRow) -> int | None:
    """Returns the number of updates after which a run reached its target; None: the run did not reach it."""
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
