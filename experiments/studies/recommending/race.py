"""Short runs of equal time, which say where runs to the target should begin: at which batch size, at which rate."""

import math
from typing import Any, NamedTuple

import numpy as np

from experiments.studies.convergence import SEARCH_SEED, rounded
from experiments.studies.jobs import Job
from experiments.studies.recommending.lab import Costs, Lab, Problem
from experiments.studies.recommending.target import LEAST_STEPS, constant_options, first_line, scaled_rate, size_near

# Of the budget, the computing of one run.
SHARE = 0.02
# At the first batch size, of a small training set: what is learnt by heart in more epochs says little.
MOST_EPOCHS = 10
# Evaluations on the way, and which of them count, of the way: their mean is less noisy than the last.
EVALUATIONS, TAIL = 4, 0.7
# Rates at the first batch size are so far apart, and so often it goes on beyond their edge.
COARSE, MOST_EXTENSIONS = 4.0, 4
# Batch sizes are so far apart, and so many are tried.
APART, MOST_SIZES = 4, 3


class Start(NamedTuple):
    """Where to begin.

    Attributes:
      batch_size: of the run with the least loss.
      rate: likewise.
    """

    batch_size: int
    rate: float


class Race:
    """Runs with equal seconds of computing, compared by their loss on what is evaluated.

    (But that each has some updates, at least.)
    """

    def __init__(self, lab: Lab, problem: Problem, costs: Costs, evidence: dict[str, Any], reserve: float):
        """Prepares a race.

        Args:
          lab: to run in.
          problem: to be solved.
          costs: of runs.
          evidence: so far; `race` gets an entry [batch size, rate, loss] for each run that did not diverge.
          reserve: seconds to be kept for what comes after it.
        """
        self._lab, self._problem, self._costs, self._reserve = lab, problem, costs, reserve
        self._missing = evidence["not_measured"]
        self._entries: list[list[float]] = evidence["race"]
        self._tried: dict[tuple[int, float], float] = {}
        self._seconds = 0.0

    def __call__(self, batch_size: int, first_rate: float, critical: float, limit: int | None) -> Start | None:
        """Races from a batch size, with rates about a first one; None: none did not diverge.

        Args:
          batch_size: where rates are compared.
          first_rate: in the middle of the first three.
          critical: a guess of the critical batch size, by which the rate follows the batch size.
          limit: the largest batch that fits; None: not known.
        """
        epoch = self._problem.data.examples / batch_size
        self._seconds = min(SHARE * self._lab.seconds, MOST_EPOCHS * epoch * self._costs.update(batch_size))
        if not self._rates(batch_size, first_rate):
            return self._best()
        best = self._best()
        tried = {batch_size}
        while best is not None and len(tried) < MOST_SIZES:
            # On both sides of the best one.
            near = {size_near(best.batch_size * factor, self._problem, limit) for factor in (1 / APART, APART)} - tried
            if not near:
                break
            size = min(near, key=lambda b: (1 + critical / b) * self._costs.update(b))
            tried.add(size)
            if not self._run(size, scaled_rate(best.rate, best.batch_size, size, critical)):
                break
            best = self._best()
        return best

    def _best(self) -> Start | None:
        cell = min(self._tried, key=lambda cell: self._tried[cell], default=None)
        return Start(*cell) if cell is not None and math.isfinite(self._tried[cell]) else None

    def _rates(self, batch_size: int, first: float) -> bool:
        """Three rates, then others beyond the edge; whether there was time for all."""
        if not all(self._run(batch_size, first * factor) for factor in (1 / COARSE, 1.0, COARSE)):
            return False
        for _ in range(MOST_EXTENSIONS):
            rates = [rate for _, rate in self._tried]
            # Where all diverged, the least rate.
            best = min(rates, key=lambda rate: (self._tried[batch_size, rate], rate))
            if min(rates) < best < max(rates):
                # Runs to the target try lower rates; so that the first of them is not too low:
                return self._run(batch_size, best * math.sqrt(COARSE))
            if not self._run(batch_size, best * (COARSE if best == max(rates) else 1 / COARSE)):
                return False
        if not any(map(math.isfinite, self._tried.values())):
            rates = [rate for _, rate in self._tried]
            self._missing.append(f"a rate: every one from {min(rates):g} to {max(rates):g} diverged")
        return True

    def _run(self, batch_size: int, rate: float) -> bool:
        """One run; whether there was time for it and it ended as runs do."""
        rate = rounded(rate)
        what = f"the rate {rate:g} at batch size {batch_size} in a short run"
        epoch = self._problem.data.examples / batch_size
        steps = max(LEAST_STEPS, round(self._seconds / self._costs.update(batch_size)))
        every = max(1, steps // EVALUATIONS)
        cost = self._costs.of(batch_size, steps, 1 + steps / every + steps / epoch)
        if not self._lab.affords(cost + self._reserve):
            self._missing.append(f"{what}: too little time is left")
            return False
        options = {
            **constant_options(self._problem, batch_size, rate),
            "steps": steps,
            "evaluate_every": every,
            "log_every": every,
            "checkpoint_every": steps,
            "seed": SEARCH_SEED,
        }
        job = Job(f"short-b{batch_size}-r{rate:.4g}", options)
        row = self._lab.run(job)
        if "error" in row and not row["diverged"]:
            self._missing.append(f"{what}: {first_line(row['error'])}")
            return False
        counted = [loss for step, _, loss in self._lab.evaluations(job) if step >= TAIL * steps]
        if not counted and not row.get("diverged"):
            self._missing.append(f"{what}: its evaluations are not there")
            return False
        loss = float(np.mean(counted)) if counted else math.inf
        self._tried[batch_size, rate] = loss
        if math.isfinite(loss):
            self._entries.append([batch_size, rate, loss])
        return True
