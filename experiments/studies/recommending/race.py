"""The race: short runs of equal time, which choose the batch size and the rate for the first run to the target."""

import math
from typing import NamedTuple

import numpy as np

from ...records.evidence import RaceEntry
from ..convergence import SEARCH_SEED, rounded
from ..jobs import Job
from .findings import Findings
from .lab import Costs, Lab, Problem
from .runs import MIN_TIMED_UPDATES, constant_options, scaled_rate, size_near, why

# The share of the budget that the computing of one run takes.
RUN_SHARE = 0.02
# The epoch limit of a run at the first batch size, for small training sets: memorising them says little about a rate.
MAX_EPOCHS = 10
# The number of evaluations during a run, and the share of the run after which they count: the mean of several is less
# noisy than the last one.
EVALUATIONS, TAIL_START_SHARE = 4, 0.7
# The factor between rates at the first batch size, and the most rates that are added beyond the edge.
RATE_FACTOR, MAX_EXTENSIONS = 4.0, 4
# The factor between batch sizes, and the most sizes that are tried.
SIZE_FACTOR, MAX_SIZES = 4, 3


class Start(NamedTuple):
    """The setting at which runs to the target begin.

    Attributes:
      batch_size: the batch size of the short run with the least loss.
      rate: the learning rate of that run.
    """

    batch_size: int
    rate: float


class Race:
    """A race between settings: runs with equal compute time, compared by their loss on the evaluated split.

    Each run makes a least number of updates, even if they take longer than the others' time.
    """

    def __init__(self, lab: Lab, problem: Problem, costs: Costs, findings: Findings, reserve: float):
        """Prepares a race.

        Args:
          lab: the lab that runs jobs within the budget.
          problem: the training for which a batch size is sought.
          costs: the estimated costs of runs.
          findings: the measurements so far; `race` gets one entry per run that did not diverge.
          reserve: the seconds to leave for the runs to the target.
        """
        self._lab, self._problem, self._costs, self._reserve = lab, problem, costs, reserve
        self._limit, self._missing, self._entries = findings.largest, findings.not_measured, findings.race
        self._tried: dict[tuple[int, float], float] = {}
        self._seconds = 0.0

    def __call__(self, batch_size: int, first_rate: float, critical: float) -> Start | None:
        """Runs the race: compares rates at a first batch size, then other batch sizes.

        Args:
          batch_size: the batch size at which rates are compared.
          first_rate: the middle of the first three rates.
          critical: a guess of the critical batch size, which decides how the rate is scaled with the batch size.

        Returns:
          The best setting; None: every run diverged.
        """
        epoch = self._problem.data.examples / batch_size
        self._seconds = min(RUN_SHARE * self._lab.seconds, MAX_EPOCHS * epoch * self._costs.update(batch_size))
        if not self._rates(batch_size, first_rate):
            return self._best()
        best = self._best()
        tried = {batch_size}
        while best is not None and len(tried) < MAX_SIZES:
            # The neighbours of the best size, on both sides.
            beside = (best.batch_size * factor for factor in (1 / SIZE_FACTOR, SIZE_FACTOR))
            near = {size_near(size, self._problem, self._limit) for size in beside} - tried
            if not near:
                break
            size = min(near, key=lambda b: (1 + critical / b) * self._costs.update(b))
            tried.add(size)
            if not self._run(size, scaled_rate(best.rate, best.batch_size, size, critical, self._problem.rule)):
                break
            best = self._best()
        return best

    def _best(self) -> Start | None:
        cell = min(self._tried, key=lambda cell: self._tried[cell], default=None)
        return Start(*cell) if cell is not None and math.isfinite(self._tried[cell]) else None

    def _rates(self, batch_size: int, first: float) -> bool:
        """Runs three rates, then others while the best one is at the edge; returns whether there was time for all."""
        if not all(self._run(batch_size, first * factor) for factor in (1 / RATE_FACTOR, 1.0, RATE_FACTOR)):
            return False
        for _ in range(MAX_EXTENSIONS):
            rates = [rate for _, rate in self._tried]
            # If all diverged, their losses are equal and the least rate counts as the best.
            best = min(rates, key=lambda rate: (self._tried[batch_size, rate], rate))
            if min(rates) < best < max(rates):
                # Runs to the target try lower rates than the race's best, so one higher rate makes sure that they do
                # not begin too low.
                return self._run(batch_size, best * math.sqrt(RATE_FACTOR))
            if not self._run(batch_size, best * (RATE_FACTOR if best == max(rates) else 1 / RATE_FACTOR)):
                return False
        if not any(map(math.isfinite, self._tried.values())):
            rates = [rate for _, rate in self._tried]
            self._missing.append(f"a rate: every one from {min(rates):g} to {max(rates):g} diverged")
        return True

    def _run(self, batch_size: int, rate: float) -> bool:
        """Makes one run; returns True if there was time for the run and it ended or diverged."""
        rate = rounded(rate)
        what = f"the rate {rate:g} at batch size {batch_size} in a short run"
        epoch = self._problem.data.examples / batch_size
        steps = max(MIN_TIMED_UPDATES, round(self._seconds / self._costs.update(batch_size)))
        every = max(1, steps // EVALUATIONS)
        cost = self._costs.of(batch_size, steps, 1 + steps / every + steps / epoch)
        if not self._lab.affords(cost + self._reserve):
            self._missing.append(f"{what}: too little time is left")
            return False
        options = {
            **constant_options(self._problem, batch_size, rate),
            # A rate that decays does so within the short run.
            "steps": steps,
            "evaluate_every": every,
            "log_every": every,
            "checkpoint_every": steps,
            "seed": SEARCH_SEED,
        }
        job = Job(f"short-b{batch_size}-r{rate:.4g}", options)
        row = self._lab.run(job)
        if not row.is_result:
            self._missing.append(f"{what}: {why(row)}")
            return False
        counted = [e.loss for e in self._lab.evaluations(job) if e.updates >= TAIL_START_SHARE * steps]
        if not counted and not row.diverged:
            self._missing.append(f"{what}: its evaluations are not there")
            return False
        loss = float(np.mean(counted)) if counted else math.inf
        self._tried[batch_size, rate] = loss
        if math.isfinite(loss):
            self._entries.append(RaceEntry(batch_size, rate, loss))
        return True
