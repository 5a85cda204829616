"""The search for the fastest setting by runs to the target, over batch sizes and learning rates."""

import math
import statistics

import msgspec

from ...records.evidence import MeasuredRun, TimedUpdate
from ..convergence import PAST_TARGET, SEARCH_SEED, rounded
from ..jobs import Job
from .curves import best_runs, noise_over, seed_spread, steps_by
from .findings import Findings
from .lab import Costs, Lab, Problem
from .runs import (
    EVALUATION_TIME_SHARE,
    MIN_TIMED_UPDATES,
    constant_options,
    evaluations_of,
    measured_run,
    scaled_rate,
    size_near,
    why,
)

# The share of the budget that the first run may take; and the share of this time that is kept for other batch sizes
# while rates are compared.
FIRST_RUN_SHARE, OTHER_SIZES_SHARE = 0.35, 0.5
# The share of the compute time that noise measurements take: with fewer, the interval of the scale has no bounds.
NOISE_TIME_SHARE = 0.4
# The factor between the first batch sizes that are compared.
SIZE_FACTOR = 4
# The update limit of a run at another batch size, in multiples of the expected updates: the first factor or, if too
# little time is left for it, the second.
PATIENT_FACTOR, IMPATIENT_FACTOR = 2.5, 1.25
# A run at another batch size ends where it has taken this multiple of the least time so far: how much slower that size
# is then matters little.
SLOWER_TIME_RATIO = 2.0
# The most halvings of the length of the first run; if that is still too long, the run is not made.
MAX_HALVINGS = 2
# A still lower rate is tried only if the last one took at most this multiple of the best updates so far: a smaller gain
# may be due to the seed.
WORTHWHILE_UPDATES_RATIO = 0.85
# The factor between neighbouring rates: below the best rate of short runs, and beside a rate that was scaled from
# another batch size. Short runs favour large rates, because the noise that large rates leave matters only at the end.
RATE_FACTOR = 2.0
# Two rates count as equal if their logarithms differ by less.
SAME_RATE_LOG = 0.1
# The candidates for the best batch size by the curve, as exponents of two.
SIZE_EXPONENTS = range(24)
MAX_SIZES = 4
# The most sizes that are tried in all, with the time that is left at the end.
MOST_SIZES = 8
MAX_RATES = 5
# The most seeds of a setting beside that of the search, how many are run at a time, and how many settings are compared
# so at first and at the end: those that take at most this multiple of the least time.
FINAL_SEEDS, SEEDS_AT_A_TIME, MOST_SETTINGS, LEAST_SETTINGS = 8, 2, 6, 2
NEAR_TIME_RATIO = 1.5
# A run that missed the target counts as one of so many times its updates.
MISSED = 2.0


class TargetSearch:
    """A search that adds to the findings: runs to the target, the noise along the first run, and what is missing.

    The search begins at the first batch size, with rates from the best of the short runs downward. Other batch sizes
    follow, first on the side that short runs favour, then near the best size by the curve so far. Each gets a rate that
    is scaled by that curve, and a neighbouring rate. At the fastest batch size rates in between follow, then its
    neighbours, and then the fastest settings with other seeds. Time that is left goes to sizes farther away.
    """

    def __init__(self, lab: Lab, problem: Problem, costs: Costs, findings: Findings):
        """Prepares a search.

        Args:
          lab: the lab that runs jobs within the budget.
          problem: the training for which a batch size is sought.
          costs: the estimated costs of runs.
          findings: the measurements so far, to which the search adds.
        """
        self._lab, self._problem, self._costs, self._findings = lab, problem, costs, findings
        self._limit = findings.largest
        self._runs, self._missing = findings.runs, findings.not_measured

    def __call__(self, start: int, rate: float) -> None:
        """Runs the search, from a batch size and the best rate of short runs at that size."""
        # The limit follows from the whole budget, not from the time left, so that a resumed search makes the same runs.
        update = (1 + EVALUATION_TIME_SHARE) * self._costs.update(start) + self._noise_seconds(start)
        most = int(FIRST_RUN_SHARE * self._lab.seconds / ((1 + PAST_TARGET) * update))
        most = self._problem.length(start) or most
        if not self._first(start, rate, most):
            return
        while (size := self._next_size()) is not None and self._try_size(size):
            pass
        self._refine()
        for size in self._neighbours():
            self._try_size(size)
        self._halve()

    def spread(self) -> None:
        """Runs batch sizes farther away with what is left of the time, once a run has reached the target."""
        while self._bests() and (size := self._farthest()) is not None:
            if not self._try_size(size, notes=False, slower=math.inf):
                break

    def _farthest(self) -> int | None:
        """Returns the batch size about those tried that is farthest from all of them; None: enough have been tried."""
        tried = self._tried()
        if len(tried) >= MOST_SIZES:
            return None
        powers = (self._problem.unit * 2.0**power for power in SIZE_EXPONENTS)
        grid = {size_near(size, self._problem, self._limit) for size in powers} - set(tried)
        about = [size for size in grid if min(tried) / SIZE_FACTOR <= size <= max(tried) * SIZE_FACTOR]
        least, examples = self._curve()
        there = [size for size in about if self._allowed(size, least + examples / size, notes=False)]
        return max(there, key=lambda b: min(abs(math.log(b / other)) for other in tried), default=None)

    def _neighbours(self) -> list[int]:
        """Returns the batch sizes on both sides of the fastest one that have not been tried."""
        fastest = min(self._bests(), key=self._time).batch_size
        near = {size_near(size, self._problem, self._limit) for size in (2 * fastest, fastest / 2)}
        return sorted(near - set(self._tried()), reverse=True)

    def _halve(self) -> None:
        """Runs the fastest settings with other seeds: each time two more seeds, and after that half of the settings.

        Single runs of one setting are far apart, so that the fastest of them is so by luck in part.
        """
        left = self._settings()
        for first in range(0, FINAL_SEEDS, SEEDS_AT_A_TIME):
            # The fastest setting comes first, in case time runs out; and the best rate of each size before the others,
            # so that sizes that are nearly equal are compared to the end.
            left = sorted(left, key=self._mean_time)
            bests = {size: (size, rate) for size, rate in reversed(left)}
            left = sorted(left, key=lambda setting: setting != bests[setting[0]])
            # With one seed each, none of them is left out.
            left = left[: max(LEAST_SETTINGS, len(left) // 2) if first else MOST_SETTINGS]
            for size, rate in left:
                for seed in range(first, first + SEEDS_AT_A_TIME):
                    if most := self._allowed(size, math.exp(self._mean(size, rate))):
                        self._run(size, rate, most, seed)

    def _settings(self) -> list[tuple[int, float]]:
        """Returns the batch sizes and rates at which a run came near the fastest one."""
        least = min(self._time(run) for run in self._bests())
        reached = [run for run in self._runs if run.reached and run.seed == self._seed(run.batch_size)]
        near = [run for run in reached if self._time(run) <= NEAR_TIME_RATIO * least]
        return list(dict.fromkeys((run.batch_size, run.rate) for run in near))

    def _mean(self, batch_size: int, rate: float) -> float:
        """Returns the mean of the logarithms of the updates of a setting; a run that missed counts as twice its own."""
        there = [run for run in self._runs if (run.batch_size, run.rate) == (batch_size, rate)]
        return statistics.mean(math.log(max(run.updates, 1) * (1 if run.reached else MISSED)) for run in there)

    def _mean_time(self, setting: tuple[int, float]) -> float:
        size, rate = setting
        return math.exp(self._mean(size, rate)) * self._costs.update(size)

    def _first(self, batch_size: int, rate: float, most: int) -> bool:
        """Runs the first batch size at falling rates while that helps; returns whether a run reached the target."""
        noise = self._noise_seconds(batch_size)
        for _ in range(MAX_HALVINGS):
            most = most if self._affords(batch_size, most, most * noise, notes=False) else most // 2
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
            if run is None or (best and not (run.reached and run.updates < WORTHWHILE_UPDATES_RATIO * best.updates)):
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
        """Runs rates between and above those that were tried, at the fastest batch size so far."""
        size = min(self._bests(), key=self._time).batch_size
        for factor in (RATE_FACTOR, math.sqrt(RATE_FACTOR), 1 / math.sqrt(RATE_FACTOR)):
            best = next(run for run in self._bests() if run.batch_size == size)
            rate = rounded(best.rate * factor)
            there = [run.rate for run in self._runs if run.batch_size == size]
            is_new = all(abs(math.log(rate / other)) > SAME_RATE_LOG for other in there)
            if is_new and self._affords(size, best.updates):
                self._run(size, rate, best.updates)

    def _noise_seconds(self, batch_size: int) -> float:
        """Returns the seconds per update that measuring the noise adds to a run; 0 once the noise is known."""
        needed = self._problem.can_measure_noise and self._findings.prior is None
        return NOISE_TIME_SHARE * self._costs.update(batch_size) if needed else 0.0

    def _allowed(self, batch_size: int, expected: float, *, slower: float = math.inf, notes: bool = True) -> int:
        """Returns the update limit of a run from its expected updates; 0: too little time is left for the run.

        Args:
          batch_size: the batch size.
          expected: the updates that it is expected to take to the target.
          slower: the multiple of the least time so far at which the run ends.
          notes: note what time does not allow.
        """
        cut = math.inf
        if slower < math.inf:
            cut = slower * min(map(self._time, self._bests())) / self._costs.update(batch_size)
        patient, impatient = (math.ceil(min(f * expected, cut)) for f in (PATIENT_FACTOR, IMPATIENT_FACTOR))
        if self._affords(batch_size, patient, notes=False):
            return patient
        return impatient if self._affords(batch_size, impatient, notes=notes) else 0

    def _affords(self, batch_size: int, updates: float, reserve: float = 0.0, *, notes: bool = True) -> bool:
        updates = self._updates_of(batch_size, updates)
        evaluations = evaluations_of(self._problem, self._costs, batch_size, updates).number(updates)
        return self._lab.affords(self._costs.of(batch_size, updates, 1 + evaluations) + reserve, notes=notes)

    def _updates_of(self, batch_size: int, most: float) -> int:
        """Returns the updates of a run that may take so many to the target; with a decaying rate it has its length."""
        return self._problem.length(batch_size) or math.ceil((1 + PAST_TARGET) * most)

    def _run(
        self, batch_size: int, rate: float, most: int, seed: int | None = None, *, noise: bool = False
    ) -> MeasuredRun | None:
        """Makes a run that reaches the target in at most `most` updates; None: it failed, other than by diverging.

        Without a seed it has that of the search at its batch size.
        """
        seed = self._seed(batch_size) if seed is None else seed
        job = self._job(batch_size, rate, most, seed, noise and self._problem.can_measure_noise)
        row = self._lab.run(job)
        if not row.is_result:
            self._missing.append(f"batch size {batch_size} at rate {rate:g}: {why(row)}")
            return None
        run = measured_run(job, row, self._lab.evaluations(job))
        self._runs.append(run)
        if run.step_seconds is not None and run.updates >= MIN_TIMED_UPDATES:
            self._findings.step_time.append(TimedUpdate(batch_size, run.step_seconds))
        if "noise_every" in job.options and (measured := self._lab.noise(job)):
            # The median over the whole run, because training has to pass through all of it.
            self._findings.noise = noise_over(measured)
        return run

    def _job(self, batch_size: int, rate: float, most: int, seed: int, noise: bool) -> Job:
        problem, costs = self._problem, self._costs
        steps = self._updates_of(batch_size, most)
        evaluations = evaluations_of(problem, costs, batch_size, steps)
        options = {
            **constant_options(problem, batch_size, rate),
            **({"steps": steps} if problem.length(batch_size) is None else {}),
            f"target_{problem.data.goal}": problem.target,
            "past_target": PAST_TARGET,
            **evaluations.options(),
            "log_every": evaluations.every,
            "checkpoint_every": steps,
            "seed": seed,
        }
        if noise:
            measured = costs.measurement(problem.shard_size) / NOISE_TIME_SHARE / costs.update(batch_size)
            # A measurement needs the loss of its update, so updates are logged as often as the noise is measured.
            options["noise_every"] = options["log_every"] = max(1, math.ceil(measured))
        return Job(f"target-b{batch_size}-r{rate:.4g}-seed{seed}-most{most}", options)

    def _best(self, batch_size: int) -> MeasuredRun | None:
        """Returns the run at a batch size that reached the target in the fewest updates; None: no run reached it."""
        seed = self._seed(batch_size)
        searched = [run for run in self._runs if run.batch_size == batch_size and run.seed == seed]
        return min((run for run in searched if run.reached), key=lambda run: run.updates, default=None)

    def _seed(self, batch_size: int) -> int:
        """Returns the seed of the search at a batch size, which rates there share, so that their order is seen best.

        Each size has another: a seed that is slow at one size tends to be slow at all, and the level would rest on it.
        """
        return SEARCH_SEED + (batch_size // self._problem.unit).bit_length() - 1

    def _bests(self) -> list[MeasuredRun]:
        """Returns the best run of each batch size at which a run reached the target."""
        return [run for run in map(self._best, self._tried()) if run is not None]

    def _tried(self) -> list[int]:
        return sorted({run.batch_size for run in self._runs})

    def _time(self, run: MeasuredRun) -> float:
        return run.updates * self._costs.update(run.batch_size)

    def _next_size(self) -> int | None:
        """Returns the batch size to try next; None: all that matter have been tried."""
        tried = self._tried()
        if len(tried) >= MAX_SIZES:
            return None
        least, examples = self._curve()
        if len(tried) == 1:
            # The second size lies on the side where the best one should be, far enough away for a fit.
            (start,) = tried
            beside = [
                size_near(size, self._problem, self._limit) for size in (start / SIZE_FACTOR, start * SIZE_FACTOR)
            ]
            beside = [size for size in beside if size != start]
            # If there is time for one side alone, that is the one; for none, what is left out is noted.
            beside = [size for size in beside if self._has_time(size, least + examples / size)] or beside
            race = self._race()
            # The race compared times at equal compute, which the noise scale predicts poorly.
            if all(size in race for size in beside):
                return min(beside, key=lambda b: race[b], default=None)
            return min(beside, key=lambda b: (least + examples / b) * self._costs.update(b), default=None)
        grid = {size_near(self._problem.unit * 2.0**power, self._problem, self._limit) for power in SIZE_EXPONENTS}
        inside = [size for size in grid if min(tried) / SIZE_FACTOR <= size <= max(tried) * SIZE_FACTOR]
        there = [size for size in inside if size in tried or self._has_time(size, least + examples / size)]
        size = min(there, key=lambda b: (least + examples / b) * self._costs.update(b))
        return None if size in tried else size

    def _has_time(self, batch_size: int, expected: float) -> bool:
        """Returns whether enough time is left for a run at another batch size, from its expected updates."""
        return self._allowed(batch_size, expected, slower=SLOWER_TIME_RATIO, notes=False) > 0

    def _race(self) -> dict[int, float]:
        """Returns the least loss of the short runs, by batch size."""
        least: dict[int, float] = {}
        for entry in self._findings.race:
            least[entry.batch_size] = min(entry.loss, least.get(entry.batch_size, math.inf))
        return least

    def _curve(self) -> tuple[float, float]:
        """Returns the most likely least updates and least examples, by the measurements so far.

        A run counts where its evaluations say that it reached the target, though they may be far apart: what was found
        at the first of them would else be most likely long before it, and runs at other sizes would be cut too early.
        """
        runs = [msgspec.structs.replace(run, between=None) for run in best_runs(self._runs)]
        least, examples = steps_by(self._findings.prior, runs, seed_spread(self._runs).deviation)[0]
        return float(least), float(examples)

    def _try_size(self, size: int, *, notes: bool = True, slower: float = SLOWER_TIME_RATIO) -> bool:
        """Runs another batch size at a rate scaled from the nearest size, and at a neighbouring rate.

        Args:
          size: the batch size.
          notes: note what time does not allow.
          slower: the multiple of the least time so far after which the runs end.

        Returns:
          Whether the first of these two runs was made.
        """
        near = min(self._bests(), key=lambda run: abs(math.log(run.batch_size / size)))
        least, examples = self._curve()
        rate = scaled_rate(near.rate, near.batch_size, size, examples / least, self._problem.rule)
        most = self._allowed(size, least + examples / size, slower=slower, notes=notes)
        if not most:
            self._missing.append(f"updates to the target at batch size {size}: too little time is left")
            return False
        run = self._run(size, rate, most)
        if run is None:
            return False
        # The scaling rule may flatten too early or too late, so a neighbouring rate is tried too: higher for a larger
        # batch at which the scaled one reached the target, else lower.
        upward = size > near.batch_size and run.reached
        limit = run.updates if run.reached else most
        if self._affords(size, limit, notes=notes):
            self._run(size, rounded(rate * (RATE_FACTOR if upward else 1 / RATE_FACTOR)), limit)
        elif notes:
            self._missing.append(f"another rate at batch size {size}: too little time is left")
        return True
