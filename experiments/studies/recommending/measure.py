"""The measurements that a recommendation rests on, in their order, as far as the budget goes.

Every number comes from a training run of `experiments.train`, whose row says how to repeat it.
"""

import math
from collections.abc import Callable

import numpy as np

from experiments._errors import UsageError
from experiments.records.evidence import Evidence, Memory, Noise, TimedUpdate, TriedBatch
from experiments.records.studies import StudyRow
from experiments.studies.convergence import SEARCH_SEED
from experiments.studies.jobs import Job
from experiments.studies.recommending.curves import USUAL_CRITICAL_EXAMPLES, noise_over
from experiments.studies.recommending.findings import Findings
from experiments.studies.recommending.lab import Costs, Lab, Problem, costs_of
from experiments.studies.recommending.memory import fit_memory, largest_batch
from experiments.studies.recommending.race import Race, Start
from experiments.studies.recommending.runs import (
    MIN_TIMED_UPDATES,
    constant_options,
    size_near,
    step_seconds,
    why,
)
from experiments.studies.recommending.target import FIRST_RUN_SHARE, TargetSearch
from experiments.studies.scaling import StepTimeFit, fit_step_time
from experiments.training.config.options import REFERENCE_BATCH_SIZE
from experiments.training.config.plan import MIN_UPDATES_PER_EPOCH
from experiments.training.recipe.optimizers import OPTIMIZERS

# Batch sizes that are timed begin about here, in examples; each is this factor times the last.
FIRST_BATCH_SIZE, SIZE_FACTOR = 16, 4
# They end where an update takes so many times longer than the last; but there are so many at least, if the training set
# has them.
LINEAR_RATIO, MIN_SIZES = 2.5, 3
MAX_TIMED_UPDATES, TIMED_EXAMPLES = 300, 8_000
# Parameters hardly move, where only time and memory are measured.
TINY_RATE = 1e-6
# Shares of the budget: of the run that tries the largest batch, and of the run whose noise is measured where none
# reached a target.
LARGEST_RUN_SHARE, NOISE_RUN_SHARE = 0.05, 0.1
# A batch is near the limit of the memory from this share of the largest batch on.
NEAR_LIMIT_SHARE = 0.25
# Measurements of the noise along a run that is made for them, at least.
MIN_MEASUREMENTS = 16
NOISE_SCALE = "the gradient noise scale"


def measure(lab: Lab, problem: Problem) -> Evidence:
    """Measures what the budget allows.

    Returns:
      The measurements, and what is missing and why.

    Raises:
      UsageError: not even the smallest batch can be trained on.
    """
    findings = Findings()
    missing, points = findings.not_measured, findings.step_time
    timed = _time(lab, problem, findings)
    if len(timed) < 2:
        missing.append("all that rests on the time of an update: fewer than two batch sizes could be timed")
        return findings.evidence(problem)
    if len(points) < MIN_SIZES and not missing:
        missing.append(
            f"the knee: of batch sizes that {problem.unit} divides, only {len(points)} could be timed on "
            f"{problem.data.examples:,} examples"
        )
    fit = fit_step_time(*zip(*points, strict=True)) if len(points) >= MIN_SIZES else None
    costs = costs_of(timed, problem, _update_seconds(points, fit), lab.is_compiled)
    findings.memory = _memory(lab, problem, timed, costs, missing)
    start = _first_size(problem, timed, fit, findings.largest)
    rate = OPTIMIZERS[problem.optimizer].base_rate * start / REFERENCE_BATCH_SIZE
    # The share of the first run to the target is kept for it.
    reserve = 0.0 if problem.target is None else FIRST_RUN_SHARE * lab.seconds
    begin = Race(lab, problem, costs, findings, reserve)(start, rate, USUAL_CRITICAL_EXAMPLES)
    if begin is None:
        return findings.evidence(problem)
    if problem.target is None:
        missing.append("updates to a target: no --target_accuracy was given")
    else:
        TargetSearch(lab, problem, costs, findings)(begin.batch_size, begin.rate)
    if findings.prior is None:
        # Along a run to the target where one is known, since the scale grows after it.
        reached = next((run for run in findings.runs if run.reached), None)
        along, length = begin, None
        if reached is not None:
            along, length = Start(reached.batch_size, reached.rate), reached.updates
        findings.noise = _noise_alone(lab, problem, along, length, costs, missing) or findings.noise
    if findings.prior is None and not any(what.startswith(NOISE_SCALE) for what in missing):
        missing.append(
            f"{NOISE_SCALE}: its measurements are too few, or too noisy, to say much of it, so it is not used"
        )
    return findings.evidence(problem)


def _job(problem: Problem, key: str, batch_size: int, steps: int, rate: float, **changes: int) -> Job:
    """Returns a run of so many updates."""
    options = constant_options(problem, batch_size, rate)
    return Job(key, {**options, "steps": steps, "checkpoint_every": max(1, steps), "seed": SEARCH_SEED, **changes})


def _time(lab: Lab, problem: Problem, findings: Findings) -> list[StudyRow]:
    """Runs rising batch sizes, whose compiled steps are timed and whose memory is known; returns those that ended."""
    rows: list[StudyRow] = []
    missing, points = findings.not_measured, findings.step_time
    # On a small training set smaller batches are timed, so that there are enough of them.
    first = min(FIRST_BATCH_SIZE, problem.data.examples // SIZE_FACTOR ** (MIN_SIZES - 1))
    size = problem.unit * 2 ** max(0, math.floor(math.log2(max(first, 1) / problem.unit)))
    last = 0.0
    while size <= problem.data.examples:
        if not lab.affords(last):
            missing.append(f"the time of an update at {size:,} examples and more: too little time is left")
            break
        before = lab.spent()
        steps = min(MAX_TIMED_UPDATES, max(MIN_TIMED_UPDATES, TIMED_EXAMPLES // size))
        row = lab.run(_job(problem, f"time-b{size}", size, steps, TINY_RATE))
        last = lab.spent() - before
        if row.summary is None:
            if not rows:
                # At such a small batch the size is not to blame, but a name, the data or the model.
                raise UsageError(str(row.error))
            missing.append(f"the time of an update at {size:,} examples and more: {why(row)}")
            break
        rows.append(row)
        points.append(TimedUpdate(size, step_seconds(row)))
        ratio = points[-1].seconds / points[-2].seconds if len(points) > 1 else 0.0
        if len(points) >= MIN_SIZES and ratio >= LINEAR_RATIO:
            break
        size *= SIZE_FACTOR
    return rows


def _update_seconds(points: list[TimedUpdate], fit: StepTimeFit | None) -> Callable[[float], float]:
    """Returns the seconds per update as a function of the batch size: by the fit, or without one between the points."""

    def between(batch_size: float) -> float:
        sizes, seconds = np.array(sorted(points)).T
        return float(np.exp(np.interp(math.log(batch_size), np.log(sizes), np.log(seconds))))

    return between if fit is None else lambda batch_size: fit.overhead + batch_size / fit.throughput


def _first_size(problem: Problem, timed: list[StudyRow], fit: StepTimeFit | None, limit: int | None) -> int:
    """Returns the batch size to begin with: the timed one, whose program is cached, next to the best guess."""
    knee = min(max(fit.knee if fit is not None else 0.0, FIRST_BATCH_SIZE), problem.data.examples)
    start = size_near(math.sqrt(USUAL_CRITICAL_EXAMPLES * knee), problem, limit)
    sizes = (row.batch_size for row in timed)
    return min((size for size in sizes if size <= max(start, FIRST_BATCH_SIZE)), key=lambda b: abs(math.log(b / start)))


def _memory(lab: Lab, problem: Problem, rows: list[StudyRow], costs: Costs, missing: list[str]) -> Memory | None:
    """Returns the line through the memory of compiled steps, and the largest batch that fits; None: not known."""
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
        # A size that should run by what is known of the one that failed.
        largest = min(largest, tried.batch_size // 2 // problem.unit * problem.unit)
    return Memory(**line._asdict(), limit=limit, largest=largest, tried=tried)


def _try_largest(lab: Lab, problem: Problem, largest: int, costs: Costs, missing: list[str]) -> TriedBatch | None:
    """Makes a run of two updates near the limit; None: no batch that is of use comes near it, or there is no time."""
    most = problem.data.examples // MIN_UPDATES_PER_EPOCH
    if most < NEAR_LIMIT_SHARE * largest:
        return None
    size = min(largest, most) // problem.unit * problem.unit
    if problem.unit != problem.devices and size:
        # Whole spans over the devices.
        size = problem.unit * 2 ** int(math.log2(size // problem.unit))
    # Where that takes too long a smaller batch is tried, and the report says which.
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
    """Measures the noise along a run of `length` updates, or, where that is None, of a share of the budget."""
    batch_size, rate = along
    if not problem.can_measure_noise:
        missing.append(f"{NOISE_SCALE}: {problem.data.examples:,} examples are too few")
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
