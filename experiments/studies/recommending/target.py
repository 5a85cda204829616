"""The search among runs to the target: over batch sizes and learning rates."""

import math

from experiments.records.evidence import MeasuredRun, TimedUpdate
from experiments.studies.convergence import SEARCH_SEED, rounded
from experiments.studies.jobs import Job
from experiments.studies.recommending.curves import best_runs, noise_over, steps_by
from experiments.studies.recommending.findings import Findings
from experiments.studies.recommending.lab import Costs, Lab, Problem
from experiments.studies.recommending.runs import (
    MIN_TIMED_UPDATES,
    constant_options,
    evaluate_every,
    measured_run,
    scaled_rate,
    size_near,
    why,
)

# The first run may take this share of the budget; a share of that is kept for other batch sizes while rates are
# compared.
FIRST_RUN_SHARE, OTHER_SIZES_SHARE = 0.35, 0.5
# Measurements of the noise take this share of the time of computing; fewer leave the scale without bounds.
NOISE_TIME_SHARE = 0.4
# The first batch sizes that are compared are this factor apart.
SIZE_FACTOR = 4
# A run at another batch size may take so many times the updates that are expected of it: the first of these, or with
# less time left the second.
PATIENT_FACTOR, IMPATIENT_FACTOR = 2.5, 1.25
# The length of the first run is halved so often before there is too little time for it.
MAX_HALVINGS = 2
# A still lower rate is tried only if the last one took at most this ratio of the updates: less is a matter of seeds.
WORTHWHILE_RATIO = 0.85
# Rates beside one that was scaled from another batch size, and below the best of short runs, are this factor apart.
# Short runs like large rates, because the noise that these leave matters at the end alone.
RATE_FACTOR = 2.0
# Two rates whose logarithms differ by less are one rate.
SAME_RATE_LOG = 0.1
# Batch sizes, as exponents of two, among which the best one by the curve is looked for.
SIZE_EXPONENTS = range(24)
MAX_SIZES = 4
MAX_RATES = 5
FINAL_SEEDS = (0, 1)


class TargetSearch:
    """Adds runs to the target, and the noise along the first of them, to the findings; and what is missing.

    The first batch size is run with rates from the best of the short runs downward. Other batch sizes follow, on the
    side that short runs favour and then about the best one by the curve so far, each at a rate scaled by that curve and
    at one beside it. Rates in between follow at the fastest batch size, and then other seeds.
    """

    def __init__(self, lab: Lab, problem: Problem, costs: Costs, findings: Findings):
        """Prepares a search.

        Args:
          lab: to run in.
          problem: to be solved.
          costs: of runs.
          findings: so far.
        """
        self._lab, self._problem, self._costs, self._findings = lab, problem, costs, findings
        self._limit = findings.largest
        self._runs, self._missing = findings.runs, findings.not_measured

    def __call__(self, start: int, rate: float) -> None:
        """Searches from a batch size, and the best rate of short runs there."""
        # By the budget, not by what is left of it, so that a search that goes on asks for the same runs.
        every = evaluate_every(self._problem, self._costs, start)
        update = self._costs.update(start) + self._noise_seconds(start) + self._costs.evaluation / every
        most = int(FIRST_RUN_SHARE * self._lab.seconds / update)
        if not self._first(start, rate, most):
            return
        while (size := self._next_size()) is not None and self._try_size(size):
            pass
        self._refine()
        for seed in FINAL_SEEDS:
            # The fastest batch size first, while time is left.
            for run in sorted(self._bests(), key=self._time):
                if most := self._allowed(run.batch_size, run.updates):
                    self._run(run.batch_size, run.rate, most, seed)

    def _first(self, batch_size: int, rate: float, most: int) -> bool:
        """Runs the first batch size at lower rates while that helps; returns whether any run reached the target."""
        noise = self._noise_seconds(batch_size)
        for _ in range(MAX_HALVINGS):
            most = most if self._affords(batch_size, most, most * noise) else most // 2
        if most < 1 or not self._affords(batch_size, most, most * noise):
            self._missing.append("updates to the target: too little time is left for a run to it")
            return False
        for number in range(MAX_RATES):
            best = self._best(batch_size)
            limit = best.updates if best else most
            reserve = OTHER_SIZES_SHARE * FIRST_RUN_SHARE * self._lab.seconds if best else 0.0
            reserve += limit * self._noise_seconds(batch_size)
            if number and not self._affords(batch_size, limit, reserve):
                self._missing.append(f"rates from {rate:g} down at batch size {batch_size}: too little time is left")
                break
            run = self._run(batch_size, rate, limit, noise=self._findings.prior is None)
            if run is None or (best and not (run.reached and run.updates < WORTHWHILE_RATIO * best.updates)):
                break
            if not run.reached and not run.diverged and number > 1:
                break
            rate = rounded(rate / RATE_FACTOR)
        if self._best(batch_size) is not None:
            return True
        tried = [run for run in self._runs if not run.diverged]
        what = ", ".join(f"{run.updates:,} updates at rate {run.rate:g}" for run in tried) or "every rate diverged"
        self._missing.append(f"updates to the target: not reached at batch size {batch_size}: {what}")
        return False

    def _refine(self) -> None:
        """Runs rates between those that were tried, and above them, at the batch size that is fastest so far."""
        size = min(self._bests(), key=self._time).batch_size
        for factor in (RATE_FACTOR, math.sqrt(RATE_FACTOR), 1 / math.sqrt(RATE_FACTOR)):
            best = next(run for run in self._bests() if run.batch_size == size)
            rate = rounded(best.rate * factor)
            there = [run.rate for run in self._runs if run.batch_size == size]
            is_new = all(abs(math.log(rate / other)) > SAME_RATE_LOG for other in there)
            if is_new and self._affords(size, best.updates):
                self._run(size, rate, best.updates)

    def _noise_seconds(self, batch_size: int) -> float:
        """Returns the seconds of measuring the noise, per update of a run that does it; 0 once the noise is known."""
        needed = self._problem.can_measure_noise and self._findings.prior is None
        return NOISE_TIME_SHARE * self._costs.update(batch_size) if needed else 0.0

    def _allowed(self, batch_size: int, expected: float) -> int:
        """Returns the updates that a run may take, by those expected of it; 0: too little time is left for it."""
        allowed = (math.ceil(times * expected) for times in (PATIENT_FACTOR, IMPATIENT_FACTOR))
        return next((most for most in allowed if self._affords(batch_size, most)), 0)

    def _affords(self, batch_size: int, updates: float, reserve: float = 0.0) -> bool:
        every = evaluate_every(self._problem, self._costs, batch_size)
        return self._lab.affords(self._costs.of(batch_size, updates, 1 + updates / every) + reserve)

    def _run(
        self, batch_size: int, rate: float, most: int, seed: int = SEARCH_SEED, *, noise: bool = False
    ) -> MeasuredRun | None:
        """Makes a run to the target, cut short after `most` updates; None: it failed, and did not diverge."""
        job = self._job(batch_size, rate, most, seed, noise and self._problem.can_measure_noise)
        row = self._lab.run(job)
        if not row.is_result:
            self._missing.append(f"batch size {batch_size} at rate {rate:g}: {why(row)}")
            return None
        run = measured_run(job, row)
        self._runs.append(run)
        if run.step_seconds is not None and run.updates >= MIN_TIMED_UPDATES:
            self._findings.step_time.append(TimedUpdate(batch_size, run.step_seconds))
        if "noise_every" in job.options and (measured := self._lab.noise(job)):
            # Over the whole run, since all of it has to be gone through.
            self._findings.noise = noise_over(measured)
        return run

    def _job(self, batch_size: int, rate: float, most: int, seed: int, noise: bool) -> Job:
        problem, costs = self._problem, self._costs
        every = evaluate_every(problem, costs, batch_size)
        options = {
            **constant_options(problem, batch_size, rate),
            "steps": most,
            "target_accuracy": problem.target,
            "evaluate_every": every,
            "log_every": every,
            "checkpoint_every": most,
            "seed": seed,
        }
        if noise:
            measured = costs.measurement(problem.shard_size) / NOISE_TIME_SHARE / costs.update(batch_size)
            # A measurement needs the loss there, which is logged.
            options["noise_every"] = options["log_every"] = max(1, math.ceil(measured))
        return Job(f"target-b{batch_size}-r{rate:.4g}-seed{seed}-most{most}", options)

    def _best(self, batch_size: int) -> MeasuredRun | None:
        """Returns the run of the search at a batch size that reached the target in the fewest updates."""
        searched = [run for run in self._runs if run.batch_size == batch_size and run.seed == SEARCH_SEED]
        return min((run for run in searched if run.reached), key=lambda run: run.updates, default=None)

    def _bests(self) -> list[MeasuredRun]:
        """Returns the best run of every batch size at which one reached the target."""
        return [run for run in map(self._best, self._tried()) if run is not None]

    def _tried(self) -> list[int]:
        return sorted({run.batch_size for run in self._runs})

    def _time(self, run: MeasuredRun) -> float:
        return run.updates * self._costs.update(run.batch_size)

    def _next_size(self) -> int | None:
        """Returns the batch size to be tried next; None: those that matter have been."""
        tried = self._tried()
        if len(tried) >= MAX_SIZES:
            return None
        least, examples = self._curve()
        if len(tried) == 1:
            # On the side where the best one should be; a factor away, for what a fit can tell.
            (start,) = tried
            beside = [
                size_near(size, self._problem, self._limit) for size in (start / SIZE_FACTOR, start * SIZE_FACTOR)
            ]
            beside = [size for size in beside if size != start]
            race = self._race()
            # The race compares times; the noise says little of these.
            if all(size in race for size in beside):
                return min(beside, key=lambda b: race[b], default=None)
            return min(beside, key=lambda b: (least + examples / b) * self._costs.update(b), default=None)
        grid = {size_near(self._problem.unit * 2.0**power, self._problem, self._limit) for power in SIZE_EXPONENTS}
        inside = [size for size in grid if min(tried) / SIZE_FACTOR <= size <= max(tried) * SIZE_FACTOR]
        there = [b for b in inside if b in tried or self._allowed(b, least + examples / b)]
        size = min(there, key=lambda b: (least + examples / b) * self._costs.update(b))
        return None if size in tried else size

    def _race(self) -> dict[int, float]:
        """Returns the least loss of short runs of equal time, by batch size."""
        least: dict[int, float] = {}
        for entry in self._findings.race:
            least[entry.batch_size] = min(entry.loss, least.get(entry.batch_size, math.inf))
        return least

    def _curve(self) -> tuple[float, float]:
        """Returns the least updates and the least examples, by what is known so far."""
        least, examples = steps_by(self._findings.prior, best_runs(self._runs))[0]
        return float(least), float(examples)

    def _try_size(self, size: int) -> bool:
        """Runs another batch size at the rate of the nearest one, scaled, and at one beside it.

        Returns:
          Whether the first of these runs was made.
        """
        near = min(self._bests(), key=lambda run: abs(math.log(run.batch_size / size)))
        least, examples = self._curve()
        rate = scaled_rate(near.rate, near.batch_size, size, examples / least)
        most = self._allowed(size, least + examples / size)
        if not most:
            self._missing.append(f"updates to the target at batch size {size}: too little time is left")
            return False
        run = self._run(size, rate, most)
        if run is None:
            return False
        # The rule of the scaled rate may turn to a constant rate too early, and too late.
        upward = size > near.batch_size and not run.diverged
        limit = run.updates if run.reached else most
        if self._affords(size, limit):
            self._run(size, rounded(rate * (RATE_FACTOR if upward else 1 / RATE_FACTOR)), limit)
        else:
            self._missing.append(f"another rate at batch size {size}: too little time is left")
        return True
