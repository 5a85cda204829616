"""The measurements that a recommendation rests on, in their order, as far as the budget goes.

Every number comes from a training run of `experiments.train`, whose row says how to repeat it.
"""

import math
from typing import Any

import numpy as np

from experiments._errors import UsageError
from experiments.studies.convergence import SEARCH_SEED
from experiments.studies.jobs import Job
from experiments.studies.recommending.curves import USUAL_CRITICAL, noise_of, noise_over
from experiments.studies.recommending.lab import Costs, Lab, Problem, costs_of
from experiments.studies.recommending.memory import fit_memory, largest_batch
from experiments.studies.recommending.race import Race, Start
from experiments.studies.recommending.target import (
    FIRST_RUN,
    LEAST_STEPS,
    TargetSearch,
    constant_options,
    first_line,
    size_near,
    step_seconds,
)
from experiments.studies.scaling import fit_step_time
from experiments.training.config.options import REFERENCE_BATCH_SIZE
from experiments.training.config.plan import MIN_UPDATES_PER_EPOCH
from experiments.training.recipe.optimizers import OPTIMIZERS

# Batch sizes to be timed: from about the first on, each four times the last, until an update takes so many times
# longer; at least three, if the training set has so many.
FIRST_SIZE, STEP, LINEAR, FEWEST_SIZES = 16, 4, 2.5, 3
TIMED_STEPS, TIMED_EXAMPLES = 300, 8_000
# Parameters hardly move, where only time and memory are looked at.
TINY_RATE = 1e-6
# Of the budget: the run that tries the largest batch; the run whose noise is measured where none reached a target.
CONFIRMATION, NOISE = 0.05, 0.1
# A batch is near the limit of the memory from that share of it on.
NEAR = 0.25
# Measurements of the noise along a run that is made for them, at least.
MEASUREMENTS = 16
NOISE_SCALE = "the gradient noise scale"


def measure(lab: Lab, problem: Problem) -> dict[str, Any]:
    """Measures what the budget allows.

    Returns:
      What was found, as JSON holds it. `step_time`: points [batch size, seconds of computing of an update]. `memory`:
      the line through compiled programs, the `limit`, the `largest` batch that fits and how a run near it went.
      `race`: [batch size, rate, loss] of short runs of equal time. `noise`: what `curves.noise_over` gives. `runs`: to
      the target. `not_measured`: what is missing, and why.

    Raises:
      UsageError: not even the smallest batch can be trained on.
    """
    missing: list[str] = []
    points: list[list[float]] = []
    evidence: dict[str, Any] = {
        "options": problem.data.options,
        "examples": problem.data.examples,
        "held_out": problem.data.held_out,
        "devices": problem.devices,
        "unit": problem.unit,
        "target": problem.target,
        "optimizer": problem.optimizer,
        "step_time": points,
        "memory": None,
        "race": [],
        "noise": None,
        "runs": [],
        "not_measured": missing,
    }
    timed = _time(lab, problem, points, missing)
    if len(timed) < 2:
        missing.append("all that rests on the time of an update: fewer than two batch sizes could be timed")
        return evidence
    if len(points) < FEWEST_SIZES and not missing:
        missing.append(
            f"the knee: of batch sizes that {problem.unit} divides, only {len(points)} could be timed on "
            f"{problem.data.examples:,} examples"
        )
    fit = fit_step_time(*zip(*points, strict=True)) if len(points) >= FEWEST_SIZES else None

    def update(batch_size: float) -> float:
        return _between(points, batch_size) if fit is None else fit.overhead + batch_size / fit.throughput

    costs = costs_of(timed, problem, update, lab.is_compiled)
    evidence["memory"] = _memory(lab, problem, timed, costs, missing)
    knee = min(max(fit.knee if fit is not None else 0.0, FIRST_SIZE), problem.data.examples)
    limit = evidence["memory"]["largest"] if evidence["memory"] else None
    start = size_near(math.sqrt(USUAL_CRITICAL * knee), problem, limit)
    # One that was timed is compiled.
    sizes: list[int] = [row["options"]["batch_size"] for row in timed]
    start = min((size for size in sizes if size <= max(start, FIRST_SIZE)), key=lambda b: abs(math.log(b / start)))
    rate = OPTIMIZERS[problem.optimizer].base_rate * start / REFERENCE_BATCH_SIZE
    # What the first run to the target may take is kept for it.
    reserve = 0.0 if problem.target is None else FIRST_RUN * lab.seconds
    begin = Race(lab, problem, costs, evidence, reserve)(start, rate, USUAL_CRITICAL, limit)
    if begin is None:
        return evidence
    if problem.target is None:
        missing.append("updates to a target: no --target_accuracy was given")
    else:
        TargetSearch(lab, problem, costs, limit, evidence)(begin.batch_size, begin.rate)
    if noise_of(evidence) is None:
        # Along a run to the target where one is known, since the scale grows after it.
        reached = next((run for run in evidence["runs"] if run["reached"]), None)
        along, length = begin, None
        if reached is not None:
            along, length = Start(reached["batch_size"], reached["rate"]), reached["updates"]
        evidence["noise"] = _noise_alone(lab, problem, along, length, costs, missing) or evidence["noise"]
    if noise_of(evidence) is None and not any(what.startswith(NOISE_SCALE) for what in missing):
        missing.append(
            f"{NOISE_SCALE}: its measurements are too few, or too noisy, to say much of it, so it is not used"
        )
    return evidence


def _job(problem: Problem, key: str, batch_size: int, steps: int, rate: float, **changes: Any) -> Job:
    """A run of so many updates."""
    options = constant_options(problem, batch_size, rate)
    return Job(key, {**options, "steps": steps, "checkpoint_every": max(1, steps), "seed": SEARCH_SEED, **changes})


def _time(lab: Lab, problem: Problem, points: list[list[float]], missing: list[str]) -> list[dict[str, Any]]:
    """Runs of rising batch size, whose compiled steps are timed and whose memory is known."""
    rows: list[dict[str, Any]] = []
    # Of a small training set smaller batches are timed, so that there are enough of them.
    first = min(FIRST_SIZE, problem.data.examples // STEP ** (FEWEST_SIZES - 1))
    size = problem.unit * 2 ** max(0, math.floor(math.log2(max(first, 1) / problem.unit)))
    last = 0.0
    while size <= problem.data.examples:
        if not lab.affords(last):
            missing.append(f"the time of an update at {size:,} examples and more: too little time is left")
            break
        before = lab.spent()
        steps = min(TIMED_STEPS, max(LEAST_STEPS, TIMED_EXAMPLES // size))
        row = lab.run(_job(problem, f"time-b{size}", size, steps, TINY_RATE))
        last = lab.spent() - before
        if "summary" not in row:
            if not rows:
                # Of such a small batch it is no matter of size: a name, the data, the model.
                raise UsageError(row["error"])
            missing.append(f"the time of an update at {size:,} examples and more: {first_line(row['error'])}")
            break
        rows.append(row)
        points.append([size, step_seconds(row)])
        ratio = points[-1][1] / points[-2][1] if len(points) > 1 else 0.0
        if len(points) >= FEWEST_SIZES and ratio >= LINEAR:
            break
        size *= STEP
    return rows


def _between(points: list[list[float]], batch_size: float) -> float:
    sizes, seconds = np.array(sorted(points)).T
    return float(np.exp(np.interp(math.log(batch_size), np.log(sizes), np.log(seconds))))


def _memory(
    lab: Lab, problem: Problem, rows: list[dict[str, Any]], costs: Costs, missing: list[str]
) -> dict[str, Any] | None:
    found = [(row["options"]["batch_size"], row["summary"]["memory"]) for row in rows]
    analysed = [(size, memory) for size, memory in found if memory and memory["needed"] is not None]
    if not analysed:
        missing.append("memory: this backend does not say what a compiled program needs")
        return None
    try:
        line = fit_memory([size for size, _ in analysed], [memory["needed"] for _, memory in analysed])
    except UsageError as error:
        missing.append(f"memory: {error}")
        return None
    limit = analysed[0][1]["limit"]
    if limit is None:
        missing.append("the largest batch that fits: this backend does not say how much memory there is")
        return {**line._asdict(), "limit": None, "largest": None, "tried": None}
    largest = largest_batch(line, limit, problem.unit)
    tried = _try_largest(lab, problem, largest, costs, missing)
    if tried and tried["error"]:
        # What is known to run, and not what should.
        largest = min(largest, tried["batch_size"] // 2 // problem.unit * problem.unit)
    return {**line._asdict(), "limit": limit, "largest": largest, "tried": tried}


def _try_largest(lab: Lab, problem: Problem, largest: int, costs: Costs, missing: list[str]) -> dict[str, Any] | None:
    """A run of two updates near the limit, in the process that trains; None if no batch that is of use comes near."""
    most = problem.data.examples // MIN_UPDATES_PER_EPOCH
    if most < NEAR * largest:
        return None
    size = min(largest, most) // problem.unit * problem.unit
    if problem.unit != problem.devices and size:
        # Of whole spans over the devices.
        size = problem.unit * 2 ** int(math.log2(size // problem.unit))
    # Where that takes too long a smaller batch is tried, and the report says which.
    room = CONFIRMATION * lab.seconds
    while size > NEAR * largest and costs.of(size, 2) > room:
        size = size // 2 // problem.unit * problem.unit
    if size == 0 or costs.of(size, 2) > room or not lab.affords(costs.of(size, 2)):
        missing.append("whether the largest batch runs: too little time is left to try")
        return None
    row = lab.run(_job(problem, f"largest-b{size}", size, 2, TINY_RATE))
    return {"batch_size": size, "error": first_line(row["error"]) if "error" in row else None}


def _noise_alone(
    lab: Lab, problem: Problem, along: Start, length: int | None, costs: Costs, missing: list[str]
) -> dict[str, Any] | None:
    """The noise along a run of so many updates, or, where `length` is None, of a share of the budget."""
    batch_size, rate = along
    if not problem.can_measure_noise:
        missing.append(f"{NOISE_SCALE}: {problem.data.examples:,} examples are too few")
        return None
    steps = length or max(2 * MEASUREMENTS, round(NOISE * lab.seconds / costs.update(batch_size)))
    every = max(1, steps // MEASUREMENTS)
    evaluations = 1 + steps * batch_size / problem.data.examples
    if not lab.affords(costs.of(batch_size, steps, evaluations, steps // every, problem.shard_size)):
        missing.append(f"{NOISE_SCALE}: too little time is left")
        return None
    job = _job(problem, f"noise-b{batch_size}-r{rate:.4g}", batch_size, steps, rate, noise_every=every)
    row = lab.run(job)
    if "error" in row:
        missing.append(f"{NOISE_SCALE}: {first_line(row['error'])}")
        return None
    measured = lab.noise(job)
    return noise_over(measured) if measured else None
