"""Chooses the setting that follows from the measurements, with its predictions, binding constraint and certainty."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from batchnorm_jax.batch_size import interval_of

from ...records.evidence import Evidence
from ...records.fields import Bounded, OpenInterval, Options, finite
from ...records.recommendation import Advice, Alternative, Estimate, Prediction, Supposed
from ...records.runs import OF_DATA_AND_MODEL
from ...training.config.options import TrainConfig
from ...training.config.plan import MIN_UPDATES_PER_EPOCH
from ...training.recipe.norms import NORMS
from ..convergence import CONFIDENCE, rounded
from ..smoothness import CONSTANT
from .curves import Curves, best_runs, curves_of
from .runs import scaled_rate

# Predictions reach up to this factor beyond the batch sizes that were tried.
REACH_FACTOR = 4
# A batch size counts as good as the best if its time is at most this multiple of the best time; among such sizes one at
# which the target was reached is preferred.
AS_GOOD_TIME_RATIO = 1.1
# Batch sizes that are less probable to be the fastest are not named.
LEAST_PROBABILITY = 0.02
# The epoch limit of the recommended run, in multiples of the predicted epochs: a slow seed should still reach the
# target.
EPOCH_LIMIT_FACTOR = 2
# The distance of the evaluations of the recommended run, as a share of its updates so far: it stops that much late.
ADVISED_GROWTH = 0.05
# The rule for rates needs a finite critical batch size: a number that stands for infinity.
MAX_CRITICAL_EXAMPLES = 1e9


def advise(evidence: Evidence) -> Advice | None:
    """Chooses the batch size with the least time to the target, and the other settings that go with it.

    Args:
      evidence: the measurements, from `measure.measure`.

    Returns:
      The advice; None: the measurements do not decide it.
    """
    curves = curves_of(evidence)
    if curves is None:
        return None
    problem = _Limits(evidence)
    sizes = problem.candidates()
    times = np.array([_seconds(problem, curves, size) for size in sizes])
    # Among nearly equal sizes, prefer one that has reached the target: the times and rates of the others are less
    # certain.
    reached = {run.batch_size for run in evidence.runs if run.reached}
    least = times[:, 0].min()
    place = min(
        range(len(sizes)),
        key=lambda i: (times[i, 0] > AS_GOOD_TIME_RATIO * least, sizes[i] not in reached, times[i, 0]),
    )
    batch_size = sizes[place]
    micro = problem.micro_batches(batch_size)
    critical = curves.critical()
    rate = _rate(evidence, batch_size, float(critical[0]))
    binding = _binding(evidence, problem, curves, batch_size)
    return Advice(
        batch_size=batch_size,
        per_device=batch_size // evidence.devices // micro,
        accumulation_steps=micro,
        learning_rate=rate,
        optimizer=evidence.optimizer,
        warmup_epochs=float(evidence.options.get("warmup_epochs") or 0),
        span=problem.span,
        source=curves.source,
        predictions=[
            _prediction(evidence, problem, curves, size)
            for size in (batch_size // 2, batch_size, 2 * batch_size)
            if size % evidence.unit == 0 and evidence.unit <= size <= evidence.examples
        ],
        candidates=[_prediction(evidence, problem, curves, size) for size in sizes],
        critical_batch_size=Estimate(
            value=finite(critical[0]), interval=_interval(interval_of(critical[1:], CONFIDENCE))
        ),
        knee=Estimate(value=finite(curves.time.knee), interval=_interval(curves.time.intervals["knee"])),
        binds=binding.name,
        loosen=binding.loosen,
        certainty=float(np.mean(times[place, 1:] <= AS_GOOD_TIME_RATIO * times[:, 1:].min(axis=0))),
        options=_options(evidence, curves, batch_size, rate, micro),
        alternatives=_alternatives(sizes, times[:, 1:]),
        supposed=_supposed(problem, curves, sizes),
    )


def _alternatives(sizes: Sequence[int], times: np.ndarray) -> list[Alternative]:
    """Returns the probability of each batch size to be the fastest, by the draws of their times, if it is worth a word.

    Args:
      sizes: the batch sizes.
      times: the times to the target by batch size and draw, shape (sizes, draws).
    """
    share = np.bincount(times.argmin(axis=0), minlength=len(sizes)) / times.shape[1]
    found = [Alternative(batch_size=size, probability=float(p)) for size, p in zip(sizes, share, strict=True)]
    return sorted((a for a in found if a.probability >= LEAST_PROBABILITY), key=lambda a: -a.probability)


def _supposed(problem: "_Limits", curves: Curves, sizes: Sequence[int]) -> list[Supposed]:
    """Returns the fastest batch size by the curve at each end of the interval of the critical batch size."""
    found = []
    for critical in interval_of(curves.critical()[1:], CONFIDENCE):
        if not 0 < critical < math.inf:
            continue

        def seconds(size: int, critical: float = critical) -> float:
            parts = problem.micro_batches(size)
            return (1 + critical / size) * parts * curves.update_seconds(size / parts)[0]

        found.append(Supposed(critical_batch_size=critical, batch_size=min(sizes, key=seconds)))
    return found


def _options(evidence: Evidence, curves: Curves, batch_size: int, rate: float, micro: int) -> Options:
    """Returns the options of the training command, which repeat the options of the measured runs."""
    options: Options = {
        **constant_of(evidence),
        **evidence.options,
        "batch_size": batch_size,
        **({} if evidence.optimizer is None else {"optimizer": evidence.optimizer}),
        "learning_rate": rate,
    }
    if micro > 1:
        options["accumulation_steps"] = micro
    if evidence.target is not None:
        options[f"target_{evidence.goal}"] = evidence.target
        if evidence.held_out:
            options["validation_examples"] = evidence.held_out
    if curves.has_target:
        epochs = EPOCH_LIMIT_FACTOR * float(curves.updates(batch_size)[0]) * batch_size / evidence.examples
        # A rate that decays needs the epochs over which it did.
        options.setdefault("epochs", max(1, math.ceil(epochs)))
        every = next((run.evaluate_every * run.batch_size for run in evidence.runs), 0)
        options |= {"evaluate_every": max(1, round(every / batch_size)), "evaluate_growth": ADVISED_GROWTH}
    return options


def constant_of(evidence: Evidence) -> Options:
    """Returns the options of a run whose rate and batch stay as they are, for the data set or the problem."""
    of_problem = evidence.options.get("problem") is not None
    return {name: value for name, value in CONSTANT.items() if not (of_problem and name in OF_DATA_AND_MODEL)}


class _Limits:
    """The batch sizes that data and memory allow."""

    def __init__(self, evidence: Evidence):
        self.examples, self.unit = evidence.examples, evidence.unit
        self.largest = None if evidence.memory is None else evidence.memory.largest
        tried = [run.batch_size for run in evidence.runs if not run.diverged]
        self.tried = tried or [point.batch_size for point in evidence.step_time]
        # A norm that corrects by running statistics uses those of the previous update, not of the previous micro-batch,
        # and the trainer refuses to accumulate with it.
        norm = NORMS[str(evidence.options.get("norm") or TrainConfig.norm)]
        # A problem has its own ways to accumulate.
        self.cuts = evidence.options.get("problem") is None and not norm.corrects_by_running_statistics
        span = evidence.options.get("span")
        self.span = None if span is None else int(span)

    def candidates(self) -> list[int]:
        """Returns the batch sizes to consider: powers of two times the unit, near those that were tried."""
        most = max(self.unit, min(self.examples // MIN_UPDATES_PER_EPOCH, REACH_FACTOR * max(self.tried)))
        sizes = [self.unit * 2**k for k in range((most // self.unit).bit_length())]
        about = [size for size in sizes if size >= min(self.tried) / REACH_FACTOR] or sizes[-1:]
        return [size for size in about if self.fits(size) or self.cuts] or sizes[:1]

    def fits(self, batch_size: float) -> bool:
        """Returns whether a batch fits in memory without accumulation."""
        return self.largest is None or batch_size <= self.largest

    def micro_batches(self, batch_size: int) -> int:
        """Returns the number of micro-batches that a batch must be cut into to fit in memory."""
        parts = 1
        while not self.fits(batch_size / parts) and batch_size % (2 * parts * self.unit) == 0:
            parts *= 2
        return parts


def _seconds(problem: _Limits, curves: Curves, batch_size: int) -> np.ndarray:
    """Returns the compute time to the target: by the most likely curves, then by each draw; shape (1 + draws,)."""
    # With accumulation, the time of an update grows in proportion to the number of micro-batches.
    parts = problem.micro_batches(batch_size)
    return curves.of_setting(batch_size) * parts * curves.update_seconds(batch_size / parts)


def _prediction(evidence: Evidence, problem: _Limits, curves: Curves, batch_size: int) -> Prediction:
    examples, memory = evidence.examples, evidence.memory
    parts = problem.micro_batches(batch_size)
    updates = epochs = seconds = None
    if curves.has_target:
        run = curves.of_run(batch_size)
        drawn = run * curves.of_setting(batch_size)
        updates, epochs = _bounded(drawn), _bounded(drawn * batch_size / examples)
        seconds = _bounded(run * _seconds(problem, curves, batch_size))
    return Prediction(
        batch_size=batch_size,
        step_seconds=_bounded(parts * curves.update_seconds(batch_size / parts)),
        # The trainer drops an epoch's last, smaller batch by default.
        updates_per_epoch=examples // batch_size,
        dropped=examples % batch_size / examples,
        memory=None if memory is None else memory.fixed + memory.per_example * batch_size / parts,
        updates=updates,
        epochs=epochs,
        seconds=seconds,
    )


def _rate(evidence: Evidence, batch_size: int, critical: float) -> float:
    """Returns the best rate at a batch size: interpolated between two tuned sizes, or scaled from the nearest one."""
    best = {run.batch_size: run.rate for run in best_runs(evidence.runs) if run.reached}
    if not best:
        # A short run does not show whether a rate diverges on the way to the target.
        bounds = [(run.batch_size, run.rate) for run in evidence.runs if run.diverged]
        entries = [e for e in evidence.race if all(e.batch_size != size or e.rate < rate for size, rate in bounds)]
        fastest = min(entries or evidence.race, key=lambda entry: entry.loss)
        best = {fastest.batch_size: fastest.rate}
    if batch_size in best:
        return best[batch_size]
    sizes = sorted(best)
    if sizes[0] < batch_size < sizes[-1]:
        logs = np.interp(math.log(batch_size), np.log(sizes), np.log([best[size] for size in sizes]))
        return rounded(math.exp(logs))
    near = min(sizes, key=lambda size: abs(math.log(size / batch_size)))
    # Where doubling the batch halves the updates, the rate doubles too.
    return scaled_rate(best[near], near, batch_size, min(critical, MAX_CRITICAL_EXAMPLES), evidence.rule)


class _Binding(NamedTuple):
    """The constraint that keeps a larger batch from being better.

    Attributes:
      name: the name of the constraint, in one word.
      loosen: a remedy for the constraint, as text.
    """

    name: str
    loosen: str


_DATA = _Binding("data", "more examples: an epoch should have some updates")
_BUDGET = _Binding("budget", "a larger --budget_minutes: larger batches than those that were tried look better still")
_KNEE = _Binding("knee", "faster or more devices: the gradient could use a larger batch, but its time grows with it")
_NOISE = _Binding(
    "noise", "a harder target: the machine has room for a larger batch, but it would save hardly any updates"
)


def _binding(evidence: Evidence, problem: _Limits, curves: Curves, batch_size: int) -> _Binding:
    twice = 2 * batch_size
    whole, without = (curves.of_setting(b)[0] * curves.update_seconds(b)[0] for b in (batch_size, twice))
    if not problem.fits(batch_size) or (not problem.fits(twice) and without < whole):
        cut = "; --accumulation_steps makes up for it in part" if problem.cuts else ""
        return _Binding("memory", f"a half-precision --dtype or more devices{cut}")
    if without < whole:
        return _DATA if twice > evidence.examples // MIN_UPDATES_PER_EPOCH else _BUDGET
    return _KNEE if float(curves.critical()[0]) > curves.time.knee else _NOISE


def _bounded(values: np.ndarray) -> Bounded:
    """Returns the most likely value, which comes first, and the interval of the draws, which follow it."""
    return float(values[0]), *_interval(interval_of(values[1:], CONFIDENCE))


def _interval(ends: Sequence[float]) -> OpenInterval:
    low, high = ends
    return finite(low), finite(high)
