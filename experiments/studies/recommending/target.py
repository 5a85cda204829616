"""The runs to the target: at which batch sizes, and at which rates."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments._errors import UsageError
from experiments.studies.convergence import RESOLUTION, SEARCH_SEED, Setting, tuned_job, updates_to_target
from experiments.studies.jobs import Job
from experiments.studies.recommending.lab import START, Lab, Problem
from experiments.studies.scaling import ScalingFit, fit_steps_to_target, predict_steps
from experiments.studies.smoothness import noise_windows
from experiments.training.noise_probe import SHARD_SIZE, SHARDS

# An epoch has at least so many updates.
FEWEST_UPDATES = 8
# A run of so many is timed.
LEAST_STEPS = 10
# Of the budget that is left: what the first run may take.
FIRST_RUN = 0.4
# Of the time of a run, what measuring its noise may take, about.
NOISE_SHARE = 0.1
# Batch sizes that are compared first are so far apart.
APART = 4
# A run at another batch size may take so many times the updates that are expected.
PATIENCE = 2.5
# Rates beside one that was scaled from another batch size, and below the best of short runs, which like large rates:
# what noise they leave matters at the end alone.
FACTOR = 2.0
MOST_SIZES = 4
FINAL_SEEDS = (0, 1)


def size_near(batch_size: float, problem: Problem, limit: int | None = None) -> int:
    """The nearest power of two times the devices that the data and the memory have room for."""
    most = problem.data.examples // FEWEST_UPDATES
    if limit is not None:
        most = min(most, limit)
    highest = math.floor(math.log2(max(1, most / problem.devices)))
    return problem.devices * 2 ** min(max(0, round(math.log2(max(batch_size, 1) / problem.devices))), highest)


def step_seconds(row: dict[str, Any]) -> float:
    """Seconds of computing of an update of a run."""
    return row["summary"]["seconds"]["compute"] / row["summary"]["updates"]


def scaled_rate(rate: float, batch_size: float, other: float, noise_scale: float) -> float:
    """A rate at another batch size: in proportion to it well below the noise scale, the same well above.

    Example:
      >>> scaled_rate(0.1, 100, 200, noise_scale=1e9), scaled_rate(0.1, 100, 200, noise_scale=1e-3)
      (0.2, 0.1)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, equation 2.6.
    """
    return float(f"{rate * (1 + noise_scale / batch_size) / (1 + noise_scale / other):.4g}")


def reach_target(
    lab: Lab,
    problem: Problem,
    start: int,
    rate: float,
    seconds: Callable[[float], float],
    limit: int | None,
    evidence: dict[str, Any],
) -> None:
    """Adds runs to the target and the noise of the first of them to the evidence, and what is missing.

    Args:
      lab: to run in.
      problem: to be solved.
      start: the batch size of the first run.
      rate: its rate, the best of short runs.
      seconds: of an update, by batch size.
      limit: the largest batch that fits; None: not known.
      evidence: so far.
    """
    _Search(lab, problem, seconds, limit, evidence).all(start, rate)


class _Search:
    def __init__(self, lab: Lab, problem: Problem, seconds, limit: int | None, evidence: dict[str, Any]):
        self._lab, self._problem, self._seconds, self._limit = lab, problem, seconds, limit
        self._evidence, self._runs, self._missing = evidence, evidence["runs"], evidence["not_measured"]
        self._noise_scale = math.inf

    def all(self, start: int, rate: float) -> None:
        left = self._lab.seconds - self._lab.spent()
        first = self._run(start, rate, round(FIRST_RUN * left / self._seconds(start)), noise=True)
        if first is None:
            self._missing.append("updates to the target: too little time is left for a run to it")
            return
        # As much for the first batch size as for all others.
        self._lower(start, rate, reserve=0.25 * left)
        if self._best(start) is None:
            self._missing.append(
                f"updates to the target: {first['updates']:,} at batch size {start} and rate {rate:g} did not reach it"
            )
            return
        while (size := self._next_size()) is not None and self._try_size(size):
            pass
        self._repeat()

    def _run(
        self, batch_size: int, rate: float, most_updates: int, seed: int = SEARCH_SEED, *, noise: bool = False
    ) -> dict[str, Any] | None:
        """A run to the target, cut short after so many updates; None: it can't be afforded, or failed."""
        update = self._seconds(batch_size)
        if most_updates < 1 or not self._lab.affords(most_updates * update + START):
            return None
        job = self._job(batch_size, rate, most_updates, seed, noise)
        row = self._lab.run(job)
        if "error" in row and not row["diverged"]:
            self._missing.append(f"batch size {batch_size} at rate {rate:g}: {row['error']}")
            return None
        reached = updates_to_target(row)
        run = {
            "key": job.key,
            "batch_size": batch_size,
            "rate": rate,
            "seed": seed,
            "updates": row["summary"]["updates"] if "summary" in row else 0,
            "reached": reached is not None,
            "step_seconds": step_seconds(row) if "summary" in row else None,
        }
        self._runs.append(run)
        # The first update is slower than the others.
        if run["updates"] >= LEAST_STEPS:
            self._evidence["step_time"].append([batch_size, run["step_seconds"]])
        if noise and (measured := self._lab.noise(job)):
            self._evidence["noise"] = {"batch_size": batch_size, "windows": noise_windows(measured)}
            # Over the whole run, since all of it has to be gone through.
            self._noise_scale = float(np.median([w["scale"] for w in self._evidence["noise"]["windows"]]))
        return run

    def _job(self, batch_size: int, rate: float, most_updates: int, seed: int, noise: bool) -> Job:
        problem = self._problem
        setting = Setting(problem.target or 1.0, (), (), (), 1, ())
        plain = tuned_job(problem.data, setting, batch_size, rate, seed)
        options: dict[str, Any] = {
            **plain.options,
            "optimizer": problem.optimizer,
            "steps": most_updates,
            "checkpoint_every": most_updates,
        }
        if noise:
            # A measurement takes as long as an update of so many examples.
            cost = self._seconds(SHARD_SIZE * SHARDS)
            every = max(round(RESOLUTION * problem.data.examples / batch_size), 1)
            options["noise_every"] = every * max(1, round(cost / NOISE_SHARE / (every * self._seconds(batch_size))))
        name = f"target-b{batch_size}-r{rate:.4g}-seed{seed}-most{most_updates}"
        return Job(name, options)

    def _lower(self, batch_size: int, rate: float, reserve: float) -> None:
        """Halves the rate for as long as that takes fewer updates."""
        while True:
            best = self._best(batch_size)
            most = best["updates"] if best else self._runs[-1]["updates"]
            if not self._lab.affords(most * self._seconds(batch_size) + START, reserve):
                self._missing.append(f"rates below {rate:g} at batch size {batch_size}: too little time is left")
                return
            rate = float(f"{rate / FACTOR:.4g}")
            run = self._run(batch_size, rate, most)
            if run is None or not run["reached"] or (best is not None and run["updates"] >= best["updates"]):
                return

    def _best(self, batch_size: int) -> dict[str, Any] | None:
        """The run of the search at a batch size that reached the target first."""
        there = [
            run
            for run in self._runs
            if run["batch_size"] == batch_size and run["reached"] and run["seed"] == SEARCH_SEED
        ]
        return min(there, key=lambda run: run["updates"], default=None)

    def _bests(self) -> list[dict[str, Any]]:
        """The same of every batch size where there is one."""
        return [run for run in map(self._best, self._tried()) if run is not None]

    def _tried(self) -> list[int]:
        return sorted({run["batch_size"] for run in self._runs})

    def _next_size(self) -> int | None:
        """The batch size to be tried next; None: those that matter have been."""
        tried = self._tried()
        if len(tried) >= MOST_SIZES:
            return None
        if len(tried) == 1:
            # On the side where the best one should be, by the noise; a factor away, for what a fit can tell.
            (start,) = tried
            noise = self._noise_scale if math.isfinite(self._noise_scale) else start
            cost = {size: (1 + noise / size) * self._seconds(size) for size in (start / APART, start * APART)}
            first, second = sorted(cost, key=lambda size: cost[size])
            for size in (size_near(first, self._problem, self._limit), size_near(second, self._problem, self._limit)):
                if size != start:
                    return size
            return None
        fit = fit_of(self._runs)
        if fit is None:
            # Two sizes and too few runs for a fit: the other side of the better one.
            best = min(self._bests(), key=self._cost)
            size = best["batch_size"] * (APART if best["batch_size"] == max(tried) else 1 / APART)
            size = size_near(size, self._problem, self._limit)
        else:
            grid = {size_near(2.0**power, self._problem, self._limit) for power in range(24)}
            inside = [size for size in grid if min(tried) / APART <= size <= max(tried) * APART]
            size = min(inside, key=lambda b: predict_steps(fit, b) * self._seconds(b))
        return None if size in tried else size

    def _cost(self, run: dict[str, Any]) -> float:
        return run["updates"] * self._seconds(run["batch_size"])

    def _try_size(self, size: int) -> bool:
        """A run at another batch size, by the rate of the nearest one, and one beside it; whether it could be made."""
        near = min(self._bests(), key=lambda run: abs(math.log(run["batch_size"] / size)))
        noise = self._noise_scale if math.isfinite(self._noise_scale) else near["batch_size"]
        expected = near["updates"] * (1 + noise / size) / (1 + noise / near["batch_size"])
        rate = scaled_rate(near["rate"], near["batch_size"], size, noise)
        most = math.ceil(PATIENCE * expected)
        left = (self._lab.seconds - self._lab.spent() - START) / self._seconds(size)
        if left < expected:
            self._missing.append(f"updates to the target at batch size {size}: too little time is left")
            return False
        run = self._run(size, rate, min(most, int(left)))
        if run is None:
            return False
        limit = run["updates"] if run["reached"] else most
        self._run(size, float(f"{rate * (FACTOR if size > near['batch_size'] else 1 / FACTOR):.4g}"), limit)
        return True

    def _repeat(self) -> None:
        """Other seeds at the best rates, the fastest batch size first, while time is left."""
        best = sorted(self._bests(), key=self._cost)
        for seed in FINAL_SEEDS:
            for run in best:
                self._run(run["batch_size"], run["rate"], math.ceil(PATIENCE * run["updates"]), seed)


def best_runs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each batch size the runs at its best rate; where none reached the target, the one that went on longest."""
    chosen = []
    for size in sorted({run["batch_size"] for run in runs}):
        there = [run for run in runs if run["batch_size"] == size]
        searched = [run for run in there if run["seed"] == SEARCH_SEED]
        reached = [run for run in searched if run["reached"]]
        if reached:
            rate = min(reached, key=lambda run: run["updates"])["rate"]
            chosen += [run for run in there if run["rate"] == rate]
        elif any(run["updates"] for run in searched):
            chosen.append(max(searched, key=lambda run: run["updates"]))
    return chosen


def fit_of(runs: list[dict[str, Any]]) -> ScalingFit | None:
    """The fit of the updates to the target; None: there are too few runs for one."""
    chosen = best_runs(runs)
    try:
        return fit_steps_to_target(
            [run["batch_size"] for run in chosen],
            [run["updates"] for run in chosen],
            censored=[not run["reached"] for run in chosen],
        )
    except UsageError:
        return None
