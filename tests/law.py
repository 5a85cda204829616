"""A training problem whose laws are known exactly, to test the answers of `recommend`."""

import json
import math
from typing import NamedTuple

import msgspec
import numpy as np

from experiments.records.questions.recommending import Evaluation
from experiments.records.recommendation import Recommendation
from experiments.records.runs import StepMemory
from experiments.records.studies import StudyRow
from experiments.studies.convergence import Data
from experiments.studies.jobs import Job
from experiments.studies.recommending.advice import advise
from experiments.studies.recommending.curves import NOISE_OVER_CRITICAL
from experiments.studies.recommending.lab import Problem
from experiments.studies.recommending.measure import measure
from experiments.training.config import plan
from experiments.training.config.options import TrainConfig
from experiments.training.loop import Places
from tests import made


class Outcome(NamedTuple):
    """A run: its row, the updates to the target, and how many measurements of the noise it made."""

    row: StudyRow
    needed: int = 0
    measurements: int = 0


class Law:
    """A training problem with known laws, and a lab that runs it on a simulated clock.

    A run needs S_min (1 + B_crit / B) updates to the target at the best rate, and more at other rates. An update takes
    t0 + B / R seconds. The best rate is that of the theory, in proportion to 1 / (1 + B_crit / B), and a far larger
    rate diverges. A run takes time to start and compile, evaluates at the given interval, and measures the noise.

    Attributes:
      start: seconds until the first update of a program that has to be compiled.
      again: seconds until the first update of a program that was compiled before.
      evaluation: seconds per evaluation.
    """

    start, again, evaluation = 3.0, 1.0, 0.3

    def __init__(
        self,
        least=600,
        critical=300.0,
        overhead=1e-3,
        throughput=1e4,
        *,
        minutes=4.0,
        spread=0.0,
        most=None,
        rate=0.3,
        longest=math.inf,
        per_example=10**5,
    ):
        self.least, self.critical, self.overhead, self.throughput = least, critical, overhead, throughput
        self.seconds, self.spread, self.most, self.rate = 60 * minutes, spread, most, rate
        # The number of updates after which a rate above a quarter of the best one diverges.
        self.longest, self.per_example = longest, per_example
        self.now, self.jobs = 0.0, []
        self.seconds_needed = None
        self._outcomes: dict[str, Outcome] = {}

    def problem(self, target: float | None = 0.98, examples=55_000, devices=2, **options):
        options = {"dataset": "mnist", "model": "simple_cnn", **options}
        return Problem(Data(options, examples, examples // 11), target, devices, "cpu")

    def best_rate(self, batch_size):
        return self.rate / (1 + self.critical / batch_size)

    def updates(self, batch_size, rate=None):
        off = math.log2((rate or self.best_rate(batch_size)) / self.best_rate(batch_size))
        return self.least * (1 + self.critical / batch_size) * (1 + 0.3 * off**2)

    def update_seconds(self, batch_size):
        return self.overhead + batch_size / self.throughput

    def time(self, batch_size, rate=None):
        return self.updates(batch_size, rate) * self.update_seconds(batch_size)

    def best_time(self):
        return min(self.time(2 * 2**k) for k in range(12))

    def spent(self):
        return self.now

    def is_compiled(self, batch_size):
        return any(job.options["batch_size"] == batch_size for job in self.jobs)

    def affords(self, seconds, *, notes=True):
        if notes and self.now + seconds > self.seconds:
            self.seconds_needed = max(self.now + seconds, self.seconds_needed or 0.0)
        return self.now + seconds <= self.seconds

    def run(self, job: Job):
        if job.key not in self._outcomes:
            self._outcomes[job.key] = self._run(job)
        row = self._outcomes[job.key].row
        assert row.options == job.options
        return row

    def _run(self, job: Job) -> Outcome:
        start = self.again if self.is_compiled(job.options["batch_size"]) else self.start
        self.jobs.append(job)
        config = TrainConfig(**job.options)
        planned = plan.make(config, 11 * config.validation_examples, 2)
        size, rate, most = config.batch_size, job.options["learning_rate"], planned.total_steps
        noise = np.random.default_rng(len(self.jobs)).normal(0, self.spread, 2)
        fragile = most > self.longest and rate > self.best_rate(size) / 4
        self.now += start
        if self.most is not None and size > self.most:
            return Outcome(made.row(job.key, job.options, error="its process ended with exit status -9\nand more"))
        if rate > 8 * self.best_rate(size) or fragile:
            return Outcome(made.row(job.key, job.options, error="the loss is nan", diverged=True))
        needed = round(self.updates(size, rate) * math.exp(noise[0]))
        past = math.ceil(needed * (1 + config.past_target))
        updates = min(most, past) if config.target_accuracy else most
        compute = float(updates * self.update_seconds(size) * math.exp(noise[1] / 10))
        evaluations = 1 + len(places(config, updates))
        measurements = updates // config.noise_every if config.noise_every else 0
        spent = compute + evaluations * self.evaluation + measurements * 32 * self.update_seconds(2 * 64)
        self.now += spent
        summary = made.summary(
            reached=False if not config.target_accuracy else needed if needed <= most else None,
            updates=updates,
            seconds={
                "compute": compute,
                "start": start,
                "evaluate": evaluations * self.evaluation,
                "in all": start + spent,
            },
            memory=StepMemory(needed=10**8 + self.per_example * size, limit=24 * 2**30),
        )
        return Outcome(made.row(job.key, job.options, summary=summary), needed, measurements)

    def evaluations(self, job: Job):
        """Returns evaluations in which the loss falls as a power of the updates, to 0.1 at the target, of 0.98."""
        outcome, config = self._outcomes[job.key], TrainConfig(**job.options)
        at = places(config, outcome.row.summary.updates) if outcome.row.summary else ()
        losses = [0.1 * (step / outcome.needed) ** -0.5 for step in at]
        return [Evaluation(step, 1 - 0.2 * loss, loss) for step, loss in zip(at, losses, strict=True)]

    def noise(self, job: Job):
        count = self._outcomes[job.key].measurements
        rng = np.random.default_rng(1)
        norm2, trace = 1 + 0.1 * rng.normal(size=count), 1 + 0.1 * rng.normal(size=count)
        trace *= NOISE_OVER_CRITICAL * self.critical
        return [(i, 1.0, *estimate) for i, estimate in enumerate(zip(norm2, trace, strict=True))]


def places(config, updates):
    """Returns the updates after which a run is evaluated."""
    found, places = [], Places(config.evaluate_every or 10**9, config.evaluate_growth)
    while (found[-1] if found else 0) < updates:
        found.append(min(updates, places.next_after(found[-1] if found else 0)))
    return found


def kept(result):
    """Returns a recommendation as its file has it."""
    return msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(result), allow_nan=False)), Recommendation)


def answer(law: Law, **changes):
    evidence = measure(law, law.problem(**changes))
    return evidence, advise(evidence)
