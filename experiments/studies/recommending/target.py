"""The runs to the target: at which batch sizes, and at which rates."""

import math
from typing import Any

from experiments.studies.convergence import RESOLUTION, SEARCH_SEED, rounded, updates_to_target
from experiments.studies.jobs import Job
from experiments.studies.recommending.curves import best_runs, noise_of, noise_over, steps_by
from experiments.studies.recommending.lab import Costs, Lab, Problem
from experiments.studies.smoothness import CONSTANT
from experiments.training.config.plan import MIN_UPDATES_PER_EPOCH

# A run of so many is timed.
LEAST_STEPS = 10
# Of the budget, what the first run may take; of that, what is kept for other batch sizes while rates are compared.
FIRST_RUN, FOR_OTHERS = 0.35, 0.5
# Of the time of an update's computing, what evaluations on the way may take, and measurements of the noise, of which
# fewer leave it without bounds.
EVALUATION_SHARE, NOISE_SHARE = 0.2, 0.4
# Batch sizes that are compared first are so far apart.
APART = 4
# A run at another batch size may take so many times the updates that are expected; with less time left, so many.
PATIENCE, IMPATIENCE = 2.5, 1.25
# So often what the first run may take is halved before there is too little time for it. And by so much a lower rate has
# to be better, for a still lower one to be tried: less is a matter of seeds.
HALVINGS, BETTER = 2, 0.85
# Rates beside one that was scaled from another batch size, and below the best of short runs, which like large rates:
# what noise they leave matters at the end alone.
FACTOR = 2.0
# Two rates whose logarithms differ by less are one.
SAME = 0.1
MOST_SIZES = 4
MOST_RATES = 5
FINAL_SEEDS = (0, 1)


def size_near(batch_size: float, problem: Problem, limit: int | None = None) -> int:
    """The nearest power of two times the unit that the data and the memory have room for."""
    most = problem.data.examples // MIN_UPDATES_PER_EPOCH
    if limit is not None:
        most = min(most, limit)
    highest = math.floor(math.log2(max(1, most / problem.unit)))
    return problem.unit * 2 ** min(max(0, round(math.log2(max(batch_size, 1) / problem.unit))), highest)


def first_line(text: str) -> str:
    """Of an error, what fits on a line."""
    return text.strip().splitlines()[0][:200] if text.strip() else "failed"


def step_seconds(row: dict[str, Any]) -> float:
    """Seconds of computing of an update of a run."""
    return row["summary"]["seconds"]["compute"] / row["summary"]["updates"]


def constant_options(problem: Problem, batch_size: int, rate: float) -> dict[str, Any]:
    """Of a run at a constant rate, which is how all runs of a recommendation train, and what it recommends."""
    return {
        **problem.data.options,
        **CONSTANT,
        "batch_size": batch_size,
        "optimizer": problem.optimizer,
        "learning_rate": rate,
        "validation_examples": problem.data.held_out,
    }


def evaluate_every(problem: Problem, costs: Costs, batch_size: int) -> int:
    """Updates between two evaluations on the way to the target."""
    finest = RESOLUTION * problem.data.examples / batch_size
    affordable = costs.evaluation / (EVALUATION_SHARE * costs.update(batch_size))
    epoch = problem.data.examples // batch_size
    return max(1, min(round(max(finest, affordable)), epoch))


def scaled_rate(rate: float, batch_size: float, other: float, critical: float) -> float:
    """A rate at another batch size: in proportion to it well below the critical batch size, the same well above.

    Example:
      >>> scaled_rate(0.1, 100, 200, critical=1e9), scaled_rate(0.1, 100, 200, critical=1e-3)
      (0.2, 0.1)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, equation 2.6, with
    the critical batch size that is measured in place of the noise scale.
    """
    return rounded(rate * (1 + critical / batch_size) / (1 + critical / other))


class TargetSearch:
    """Adds runs to the target, and the noise of the first of them, to the evidence; and what is missing.

    The first batch size with rates from the best of short runs on downward; then others, on the side that short runs
    favour and then about where the curve so far says that the best one is, at a rate scaled by that and one beside it;
    then rates in between at the fastest; then other seeds.
    """

    def __init__(self, lab: Lab, problem: Problem, costs: Costs, limit: int | None, evidence: dict[str, Any]):
        """Prepares a search.

        Args:
          lab: to run in.
          problem: to be solved.
          costs: of runs.
          limit: the largest batch that fits; None: not known.
          evidence: so far.
        """
        self._lab, self._problem, self._costs, self._limit = lab, problem, costs, limit
        self._evidence, self._runs, self._missing = evidence, evidence["runs"], evidence["not_measured"]

    def __call__(self, start: int, rate: float) -> None:
        """Searches from a batch size, and the best rate of short runs there."""
        # By the budget, not by what is left of it, so that a search that goes on asks for the same runs.
        every = evaluate_every(self._problem, self._costs, start)
        update = self._costs.update(start) + self._noise_seconds(start) + self._costs.evaluation / every
        most = int(FIRST_RUN * self._lab.seconds / update)
        if not self._first(start, rate, most):
            return
        while (size := self._next_size()) is not None and self._try_size(size):
            pass
        self._refine()
        for seed in FINAL_SEEDS:
            # The fastest batch size first, while time is left.
            for run in sorted(self._bests(), key=self._time):
                if most := self._allowed(run["batch_size"], run["updates"]):
                    self._run(run["batch_size"], run["rate"], most, seed)

    def _first(self, batch_size: int, rate: float, most: int) -> bool:
        """The first batch size, at lower and lower rates while that takes fewer updates; whether any was enough."""
        noise = self._noise_seconds(batch_size)
        for _ in range(HALVINGS):
            most = most if self._affords(batch_size, most, most * noise) else most // 2
        if most < 1 or not self._affords(batch_size, most, most * noise):
            self._missing.append("updates to the target: too little time is left for a run to it")
            return False
        for number in range(MOST_RATES):
            best = self._best(batch_size)
            limit = best["updates"] if best else most
            reserve = FOR_OTHERS * FIRST_RUN * self._lab.seconds if best else 0.0
            reserve += limit * self._noise_seconds(batch_size)
            if number and not self._affords(batch_size, limit, reserve):
                self._missing.append(f"rates from {rate:g} down at batch size {batch_size}: too little time is left")
                break
            run = self._run(batch_size, rate, limit, noise=noise_of(self._evidence) is None)
            if run is None or (best and not (run["reached"] and run["updates"] < BETTER * best["updates"])):
                break
            if not run["reached"] and not run["diverged"] and number > 1:
                break
            rate = rounded(rate / FACTOR)
        if self._best(batch_size) is not None:
            return True
        tried = [run for run in self._runs if not run["diverged"]]
        what = (
            ", ".join(f"{run['updates']:,} updates at rate {run['rate']:g}" for run in tried) or "every rate diverged"
        )
        self._missing.append(f"updates to the target: not reached at batch size {batch_size}: {what}")
        return False

    def _refine(self) -> None:
        """Rates between those that were tried, and above them, at the batch size that is fastest so far."""
        size = min(self._bests(), key=self._time)["batch_size"]
        for factor in (FACTOR, math.sqrt(FACTOR), 1 / math.sqrt(FACTOR)):
            best = next(run for run in self._bests() if run["batch_size"] == size)
            rate = rounded(best["rate"] * factor)
            there = [run["rate"] for run in self._runs if run["batch_size"] == size]
            if all(abs(math.log(rate / other)) > SAME for other in there) and self._affords(size, best["updates"]):
                self._run(size, rate, best["updates"])

    def _noise_seconds(self, batch_size: int) -> float:
        """Of measuring the noise, for each update of a run that does it; nothing once it is known."""
        needed = self._problem.can_measure_noise and noise_of(self._evidence) is None
        return NOISE_SHARE * self._costs.update(batch_size) if needed else 0.0

    def _allowed(self, batch_size: int, expected: float) -> int:
        """The updates that a run may take of which so many are expected; 0: too little time is left for it."""
        allowed = (math.ceil(times * expected) for times in (PATIENCE, IMPATIENCE))
        return next((most for most in allowed if self._affords(batch_size, most)), 0)

    def _affords(self, batch_size: int, updates: float, reserve: float = 0.0) -> bool:
        every = evaluate_every(self._problem, self._costs, batch_size)
        return self._lab.affords(self._costs.of(batch_size, updates, 1 + updates / every) + reserve)

    def _run(
        self, batch_size: int, rate: float, most: int, seed: int = SEARCH_SEED, *, noise: bool = False
    ) -> dict[str, Any] | None:
        """A run to the target, cut short after so many updates; None: it failed, and not by a loss that diverged."""
        job = self._job(batch_size, rate, most, seed, noise and self._problem.can_measure_noise)
        row = self._lab.run(job)
        diverged = row.get("diverged", False)
        if "error" in row and not diverged:
            self._missing.append(f"batch size {batch_size} at rate {rate:g}: {first_line(row['error'])}")
            return None
        run = {
            "key": job.key,
            "batch_size": batch_size,
            "rate": rate,
            "seed": seed,
            "updates": 0 if diverged else row["summary"]["updates"],
            "reached": updates_to_target(row) is not None,
            "diverged": diverged,
            "step_seconds": None if diverged else step_seconds(row),
            "evaluate_every": job.options["evaluate_every"],
        }
        self._runs.append(run)
        # The first update is slower than the others.
        if run["updates"] >= LEAST_STEPS:
            self._evidence["step_time"].append([batch_size, run["step_seconds"]])
        if "noise_every" in job.options and (measured := self._lab.noise(job)):
            # Over the whole run, since all of it has to be gone through.
            self._evidence["noise"] = noise_over(measured)
        return run

    def _job(self, batch_size: int, rate: float, most: int, seed: int, noise: bool) -> Job:
        problem, costs = self._problem, self._costs
        every = evaluate_every(problem, costs, batch_size)
        options: dict[str, Any] = {
            **constant_options(problem, batch_size, rate),
            "steps": most,
            "target_accuracy": problem.target,
            "evaluate_every": every,
            "log_every": every,
            "checkpoint_every": most,
            "seed": seed,
        }
        if noise:
            measured = costs.measurement(problem.shard_size) / NOISE_SHARE / costs.update(batch_size)
            # Where the loss is logged.
            options["noise_every"] = options["log_every"] = max(1, math.ceil(measured))
        return Job(f"target-b{batch_size}-r{rate:.4g}-seed{seed}-most{most}", options)

    def _best(self, batch_size: int) -> dict[str, Any] | None:
        """The run of the search at a batch size that reached the target first."""
        searched = [run for run in self._runs if run["batch_size"] == batch_size and run["seed"] == SEARCH_SEED]
        return min((run for run in searched if run["reached"]), key=lambda run: run["updates"], default=None)

    def _bests(self) -> list[dict[str, Any]]:
        """The same of every batch size where there is one."""
        return [run for run in map(self._best, self._tried()) if run is not None]

    def _tried(self) -> list[int]:
        return sorted({run["batch_size"] for run in self._runs})

    def _time(self, run: dict[str, Any]) -> float:
        return run["updates"] * self._costs.update(run["batch_size"])

    def _next_size(self) -> int | None:
        """The batch size to be tried next; None: those that matter have been."""
        tried = self._tried()
        if len(tried) >= MOST_SIZES:
            return None
        least, examples = self._curve()
        if len(tried) == 1:
            # On the side where the best one should be; a factor away, for what a fit can tell.
            (start,) = tried
            beside = [size_near(size, self._problem, self._limit) for size in (start / APART, start * APART)]
            beside = [size for size in beside if size != start]
            race = self._race()
            # The race compares times; the noise says little of these.
            if all(size in race for size in beside):
                return min(beside, key=lambda b: race[b], default=None)
            return min(beside, key=lambda b: (least + examples / b) * self._costs.update(b), default=None)
        grid = {size_near(self._problem.unit * 2.0**power, self._problem, self._limit) for power in range(24)}
        inside = [size for size in grid if min(tried) / APART <= size <= max(tried) * APART]
        there = [b for b in inside if b in tried or self._allowed(b, least + examples / b)]
        size = min(there, key=lambda b: (least + examples / b) * self._costs.update(b))
        return None if size in tried else size

    def _race(self) -> dict[int, float]:
        """The least loss of short runs of equal time, by batch size."""
        least: dict[int, float] = {}
        for size, _, loss in self._evidence["race"]:
            least[size] = min(loss, least.get(size, math.inf))
        return least

    def _curve(self) -> tuple[float, float]:
        """The least updates and the least examples, by what is known so far."""
        least, examples = steps_by(noise_of(self._evidence), best_runs(self._runs))[0]
        return float(least), float(examples)

    def _try_size(self, size: int) -> bool:
        """Runs at another batch size, by the rate of the nearest one, and one beside it; whether the first was made."""
        near = min(self._bests(), key=lambda run: abs(math.log(run["batch_size"] / size)))
        least, examples = self._curve()
        rate = scaled_rate(near["rate"], near["batch_size"], size, examples / least)
        most = self._allowed(size, least + examples / size)
        if not most:
            self._missing.append(f"updates to the target at batch size {size}: too little time is left")
            return False
        run = self._run(size, rate, most)
        if run is None:
            return False
        # The rule may turn to a constant rate too early, and too late.
        upward = size > near["batch_size"] and not run["diverged"]
        limit = run["updates"] if run["reached"] else most
        if self._affords(size, limit):
            self._run(size, rounded(rate * (FACTOR if upward else 1 / FACTOR)), limit)
        else:
            self._missing.append(f"another rate at batch size {size}: too little time is left")
        return True
