"""Makes the measurements that a recommendation rests on, in order, as far as the budget allows.

Every number comes from a training run of `experiments.train`, whose row holds the command that repeats it.
"""

import math
from collections.abc import Callable

import numpy as np

from batchnorm_jax.batch_size import StepTimeFit, fit_step_time

from ..._errors import UsageError
from ...records.evidence import Evidence, Memory, Noise, TimedUpdate, TriedBatch
from ...records.studies import StudyRow
from ...training.config.plan import MIN_UPDATES_PER_EPOCH
from ..convergence import SEARCH_SEED
from ..jobs import Job
from .curves import USUAL_CRITICAL_EXAMPLES, noise_over
from .findings import Findings
from .lab import TIMED_MEASUREMENTS, Costs, Lab, Problem, costs_of
from .memory import fit_memory, largest_batch
from .race import Race, Start
from .runs import (
    MIN_TIMED_UPDATES,
    constant_options,
    size_near,
    step_seconds,
    why,
)
from .target import FIRST_RUN_SHARE, TargetSearch

# The first batch size to time, roughly, in examples, and the factor from each size to the next.
FIRST_BATCH_SIZE, SIZE_FACTOR = 16, 4
# Timing ends at a size whose update takes this many times as long as the one before, since the time then grows almost
# in proportion to the size; but at least this many sizes are timed, if the training set is large enough.
LINEAR_TIME_RATIO, MIN_SIZES = 2.5, 3
# Two are enough where they have taken this share of the budget, most of it compilation: runs to the target, at sizes
# that matter more, are timed too. From the larger share on no more sizes are timed, whatever their time.
SLOW_TIMING_SHARE, MOST_TIMING_SHARE, FEWEST_SIZES = 0.15, 0.3, 2
MAX_TIMED_UPDATES, TIMED_EXAMPLES = 300, 8_000
# The updates of the first size that is timed, and the share of the budget that the updates of another may take.
FIRST_TIMED_UPDATES, TIMING_SHARE = 50, 0.02
# A learning rate at which parameters hardly move, for runs that measure only time and memory.
TINY_RATE = 1e-6
# Shares of the budget: for the run that tries the largest batch, and for a run that only measures the noise, made if
# no run reached a target.
LARGEST_RUN_SHARE, NOISE_RUN_SHARE = 0.05, 0.1
# A batch counts as near the limit of the memory from this share of the largest batch on.
NEAR_LIMIT_SHARE = 0.25
# The least number of measurements in a run that is made to measure the noise.
MIN_MEASUREMENTS = 16
NOISE_SCALE = "the gradient noise scale"


def measure(lab: Lab, problem: Problem) -> Evidence:
    """Makes as many of the measurements as the budget allows.

    Args:
      lab: the lab that runs jobs within the budget.
      problem: the training for which a batch size is sought.

    Returns:
      The measurements, and a reason for each that is missing.

    Raises:
      UsageError: training fails even at the smallest batch size.
    """
    findings = Findings()
    missing, points = findings.not_measured, findings.step_time
    timed = _time(lab, problem, findings)
    if len(timed) < FEWEST_SIZES:
        missing.append("all that rests on the time of an update: fewer than two batch sizes could be timed")
        return findings.evidence(problem, lab.seconds_needed)
    if len(points) < MIN_SIZES and not missing and points[-1].batch_size * SIZE_FACTOR > problem.data.examples:
        missing.append(
            f"the knee: of batch sizes that {problem.unit} divides, only {len(points)} could be timed on "
            f"{problem.data.examples:,} examples"
        )
    fit = fit_step_time(*zip(*points, strict=True)) if len(points) >= MIN_SIZES else None
    costs = costs_of(timed, problem, _update_seconds(points, fit), lab.is_compiled)
    findings.memory = _memory(lab, problem, timed, costs, missing)
    start = _first_size(problem, timed, fit, findings.largest)
    # The race leaves enough time for the first run to the target; of little, half.
    reserve = min(FIRST_RUN_SHARE * lab.seconds, (lab.seconds - lab.spent()) / 2) if problem.target is not None else 0.0
    begin = Race(lab, problem, costs, findings, reserve)(start, problem.usual_rate(start), USUAL_CRITICAL_EXAMPLES)
    if begin is None:
        return findings.evidence(problem, lab.seconds_needed)
    search = TargetSearch(lab, problem, costs, findings)
    if problem.target is None:
        missing.append(f"updates to a target: no --target_{problem.data.goal} was given")
    else:
        search(begin.batch_size, begin.rate)
    if len(points) < MIN_SIZES and (size := SIZE_FACTOR * timed[-1].batch_size) <= problem.data.examples:
        # No run to the target has taken the place of the size that was left out.
        _time_size(lab, problem, findings, size, costs.of(size, MIN_TIMED_UPDATES))
    if findings.prior is None:
        # If a run reached the target, measure along its length only, since the scale keeps growing after the target.
        reached = next((run for run in findings.runs if run.reached), None)
        along, length = begin, None
        if reached is not None:
            along, length = Start(reached.batch_size, reached.rate), reached.updates
        findings.noise = _noise_alone(lab, problem, along, length, costs, missing) or findings.noise
    search.spread()
    if findings.prior is None and not any(what.startswith(NOISE_SCALE) for what in missing):
        missing.append(
            f"{NOISE_SCALE}: its measurements are too few, or too noisy, to say much of it, so it is not used"
        )
    return findings.evidence(problem, lab.seconds_needed)


def _job(problem: Problem, key: str, batch_size: int, steps: int, rate: float, **changes: int) -> Job:
    """Returns the job of a run at a constant rate with a number of updates."""
    options = constant_options(problem, batch_size, rate)
    return Job(key, {**options, "steps": steps, "checkpoint_every": max(1, steps), "seed": SEARCH_SEED, **changes})


def _time(lab: Lab, problem: Problem, findings: Findings) -> list[StudyRow]:
    """Runs rising batch sizes to measure their time and memory, and returns the rows of the runs that ended."""
    rows: list[StudyRow] = []
    points = findings.step_time
    # A small training set needs a smaller first size, so that enough sizes can be timed.
    first = min(FIRST_BATCH_SIZE, problem.data.examples // SIZE_FACTOR ** (MIN_SIZES - 1))
    size = problem.unit * 2 ** max(0, math.floor(math.log2(max(first, 1) / problem.unit)))
    last = 0.0
    while size <= problem.data.examples:
        before = lab.spent()
        row = _time_size(lab, problem, findings, size, last)
        last = lab.spent() - before
        if row is None or row.summary is None:
            if row is not None and not rows:
                # A failure at such a small batch is not due to its size, but to a name, the data or the model.
                raise UsageError(str(row.error))
            break
        rows.append(row)
        ratio = points[-1].seconds / points[-2].seconds if len(points) > 1 else 0.0
        # By the rows, so that a recommendation that goes on decides alike.
        taken = sum(row.ended.seconds.get("in all", 0.0) for row in rows)
        share = taken / lab.seconds if problem.target is not None else 0.0
        enough = len(points) >= (FEWEST_SIZES if share > SLOW_TIMING_SHARE else MIN_SIZES)
        if enough and (ratio >= LINEAR_TIME_RATIO or share > MOST_TIMING_SHARE):
            break
        size *= SIZE_FACTOR
    return rows


def _time_size(lab: Lab, problem: Problem, findings: Findings, size: int, needed: float) -> StudyRow | None:
    """Adds the time of an update at a batch size to the findings, and returns the row; None: too little time is left.

    Args:
      lab: the lab that runs the job.
      problem: the training.
      findings: the measurements so far.
      size: the batch size.
      needed: the seconds that the run is expected to take.
    """
    points = findings.step_time
    if not lab.affords(needed):
        findings.not_measured.append(f"the time of an update at {size:,} examples and more: too little time is left")
        return None
    # Of the first size nothing is known; the next takes at most as many times longer as it is larger.
    most = FIRST_TIMED_UPDATES
    if points:
        most = math.floor(TIMING_SHARE * lab.seconds / (points[-1].seconds * size / points[-1].batch_size))
    steps = max(MIN_TIMED_UPDATES, min(MAX_TIMED_UPDATES, TIMED_EXAMPLES // size, most))
    # The gradient of a problem is a function of its own, whose time does not follow from that of an update.
    with_noise = not points and problem.data.is_problem and problem.can_measure_noise
    noise = {"noise_every": max(1, steps // TIMED_MEASUREMENTS)} if with_noise else {}
    row = lab.run(_job(problem, f"time-b{size}", size, steps, TINY_RATE, **noise))
    if row.summary is not None:
        points.append(TimedUpdate(size, step_seconds(row)))
    elif points:
        findings.not_measured.append(f"the time of an update at {size:,} examples and more: {why(row)}")
    return row


def _update_seconds(points: list[TimedUpdate], fit: StepTimeFit | None) -> Callable[[float], float]:
    """Returns a function from a batch size to the seconds per update: the fit, or without one the nearest points."""

    def between(batch_size: float) -> float:
        sizes, seconds = np.array(sorted(points)).T
        # Beyond the largest size the time grows in proportion to it.
        beyond = max(1.0, batch_size / sizes[-1])
        return float(beyond * np.exp(np.interp(math.log(batch_size), np.log(sizes), np.log(seconds))))

    return between if fit is None else lambda batch_size: fit.overhead + batch_size / fit.throughput


def _first_size(problem: Problem, timed: list[StudyRow], fit: StepTimeFit | None, limit: int | None) -> int:
    """Returns the batch size to begin with: the timed size, whose program is cached, that is nearest to a guess."""
    knee = min(max(fit.knee if fit is not None else 0.0, FIRST_BATCH_SIZE), problem.data.examples)
    start = size_near(math.sqrt(USUAL_CRITICAL_EXAMPLES * knee), problem, limit)
    sizes = (row.batch_size for row in timed)
    return min((size for size in sizes if size <= max(start, FIRST_BATCH_SIZE)), key=lambda b: abs(math.log(b / start)))


def _memory(lab: Lab, problem: Problem, rows: list[StudyRow], costs: Costs, missing: list[str]) -> Memory | None:
    """Returns the line fitted to the memory of compiled steps, and the largest batch that fits; None: not known."""
    found = [(row.batch_size, row.ended.memory) for row in rows]
    analysed = [(size, memory.needed, memory.limit) for size, memory in found if memory and memory.needed is not None]
    if not analysed:
        missing.append("memory: this backend does not say what a compiled program needs")
        return None
    sizes, needed, limits = zip(*analysed, strict=True)
    try:
        line = fit_memory(sizes, needed)
    except UsageError as error:
        missing.append(f"memory: {error}")
        return None
    limit = limits[0]
    if limit is None:
        missing.append("the largest batch that fits: this backend does not say how much memory there is")
        return Memory(**line._asdict(), limit=None, largest=None, tried=None)
    largest = largest_batch(line, limit, problem.unit)
    tried = _try_largest(lab, problem, largest, costs, missing)
    if tried is not None and tried.error:
        # Half of the size that failed should run.
        largest = min(largest, tried.batch_size // 2 // problem.unit * problem.unit)
    return Memory(**line._asdict(), limit=limit, largest=largest, tried=tried)


def _try_largest(lab: Lab, problem: Problem, largest: int, costs: Costs, missing: list[str]) -> TriedBatch | None:
    """Makes a run of two updates near the memory limit; None: no useful batch is near it, or there is no time."""
    most = problem.data.examples // MIN_UPDATES_PER_EPOCH
    if most < NEAR_LIMIT_SHARE * largest:
        return None
    size = min(largest, most) // problem.unit * problem.unit
    if problem.unit != problem.devices and size:
        # A power of two times the unit, so that spans lie whole on the devices.
        size = problem.unit * 2 ** int(math.log2(size // problem.unit))
    # If that run would take too long, a smaller batch is tried; the report names its size.
    room = LARGEST_RUN_SHARE * lab.seconds
    while size > NEAR_LIMIT_SHARE * largest and costs.of(size, 2) > room:
        size = size // 2 // problem.unit * problem.unit
    if size == 0 or costs.of(size, 2) > room or not lab.affords(costs.of(size, 2)):
        missing.append("whether the largest batch runs: too little time is left to try")
        return None
    row = lab.run(_job(problem, f"largest-b{size}", size, 2, TINY_RATE))
    return TriedBatch(batch_size=size, error=None if row.summary is not None else why(row))


def _noise_alone(
    lab: Lab, problem: Problem, along: Start, length: int | None, costs: Costs, missing: list[str]
) -> Noise | None:
    """Makes a run that measures the noise, of `length` updates or, if `length` is None, of a share of the budget."""
    batch_size, rate = along
    if not problem.can_measure_noise:
        missing.append(
            f"{NOISE_SCALE}: the problem has no function 'gradient'"
            if problem.data.is_problem
            else f"{NOISE_SCALE}: {problem.data.examples:,} examples are too few"
        )
        return None
    steps = length or max(2 * MIN_MEASUREMENTS, round(NOISE_RUN_SHARE * lab.seconds / costs.update(batch_size)))
    every = max(1, steps // MIN_MEASUREMENTS)
    evaluations = 1 + steps * batch_size / problem.data.examples
    if not lab.affords(costs.of(batch_size, steps, evaluations, steps // every, problem.shard_size)):
        missing.append(f"{NOISE_SCALE}: too little time is left")
        return None
    job = _job(problem, f"noise-b{batch_size}-r{rate:.4g}", batch_size, steps, rate, noise_every=every)
    row = lab.run(job)
    if row.summary is None:
        missing.append(f"{NOISE_SCALE}: {why(row)}")
        return None
    measured = lab.noise(job)
    return noise_over(measured) if measured else None
