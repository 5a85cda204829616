"""The setting that follows from the measurements, what it predicts, what binds, and how sure it is."""

import math
from typing import Any

import numpy as np

from experiments.studies.convergence import CONFIDENCE, rounded
from experiments.studies.recommending.curves import OF_A_RUN, Curves, curves_of
from experiments.studies.recommending.target import best_runs, scaled_rate
from experiments.studies.scaling import interval_of
from experiments.studies.smoothness import CONSTANT
from experiments.training.config.options import TrainConfig
from experiments.training.config.plan import MIN_UPDATES_PER_EPOCH
from experiments.training.recipe.norms import NORMS

# Predictions are made as far from the batch sizes that were tried as that.
REACH = 4
# A batch size is as good as the best if its time is no longer than that many times the best one.
AS_GOOD = 1.1
# One that was tried is preferred to a better one that was not, up to that.
PREFERRED = 1.05
# Of the draws of what a run's seed does.
RUN_SEED = 2
# Epochs that a recommended run may take, of those that are predicted.
EPOCHS = 2


def advise(evidence: dict[str, Any]) -> dict[str, Any] | None:
    """What to use.

    Args:
      evidence: from `measure.measure`.

    Returns:
      None where the measurements do not tell. Else, as JSON holds it: `batch_size`, `per_device`,
      `accumulation_steps`, `learning_rate`, `optimizer`, `warmup_epochs`, `span`; `predictions` at half, one and two
      times the batch size, with the intervals of a single run, and `candidates`, the same of all that were considered;
      `critical_batch_size` and `knee`, each with its interval; `binds` and `loosen`, as text; `certainty`, the share of
      the draws in which the batch size is within a tenth of the fastest; `source` of the updates, as in `Curves`;
      `options` of `experiments.train`.
    """
    curves = curves_of(evidence)
    if curves is None:
        return None
    problem = _Limits(evidence)
    sizes = problem.candidates()
    times = np.array([_seconds(problem, curves, size) for size in sizes])
    # Of those that are as good, one that has reached the target: of the others neither time nor rate is known as well.
    reached = {run["batch_size"] for run in evidence["runs"] if run["reached"]}
    least = times[:, 0].min()
    place = min(
        range(len(sizes)), key=lambda i: (times[i, 0] > PREFERRED * least, sizes[i] not in reached, times[i, 0])
    )
    batch_size = sizes[place]
    micro = problem.micro_batches(batch_size)
    critical = curves.critical()
    rate = _rate(evidence, batch_size, float(critical[0]))
    binds, loosen = _binding(evidence, problem, curves, batch_size)
    return {
        "batch_size": batch_size,
        "per_device": batch_size // evidence["devices"] // micro,
        "accumulation_steps": micro,
        "learning_rate": rate,
        "optimizer": evidence["optimizer"],
        "warmup_epochs": 0,
        "span": evidence["options"].get("span"),
        "source": curves.source,
        "predictions": [
            _prediction(evidence, problem, curves, size)
            for size in (batch_size // 2, batch_size, 2 * batch_size)
            if size % evidence["unit"] == 0 and evidence["unit"] <= size <= evidence["examples"]
        ],
        "candidates": [_prediction(evidence, problem, curves, size) for size in sizes],
        "critical_batch_size": {"value": float(critical[0]), "interval": _interval(critical[1:])},
        "knee": {"value": curves.time.knee, "interval": list(curves.time.intervals["knee"])},
        "binds": binds,
        "loosen": loosen,
        "certainty": float(np.mean(times[place, 1:] <= AS_GOOD * times[:, 1:].min(axis=0))),
        "options": _options(evidence, curves, batch_size, rate, micro),
    }


def _options(evidence: dict[str, Any], curves: Curves, batch_size: int, rate: float, micro: int) -> dict[str, Any]:
    """Of the training command: what the runs had, so that it does what they did."""
    options = {
        **evidence["options"],
        **CONSTANT,
        "batch_size": batch_size,
        "optimizer": evidence["optimizer"],
        "learning_rate": rate,
    }
    if micro > 1:
        options["accumulation_steps"] = micro
    if evidence["target"] is not None:
        options |= {"target_accuracy": evidence["target"], "validation_examples": evidence["held_out"]}
    if curves.has_target:
        epochs = EPOCHS * float(curves.updates(batch_size)[0]) * batch_size / evidence["examples"]
        options["epochs"] = max(1, math.ceil(epochs))
        every = next((run["evaluate_every"] * run["batch_size"] for run in evidence["runs"]), 0)
        options["evaluate_every"] = max(1, round(every / batch_size))
    return options


class _Limits:
    """What data and memory allow."""

    def __init__(self, evidence: dict[str, Any]):
        self.examples, self.unit = evidence["examples"], evidence["unit"]
        self.largest = (evidence["memory"] or {}).get("largest")
        tried = [run["batch_size"] for run in evidence["runs"] if not run["diverged"]]
        self.tried = tried or [size for size, _ in evidence["step_time"]]
        # Its statistics are corrected by those of the batch before, not of the micro-batch.
        self.cuts = not NORMS[evidence["options"].get("norm", TrainConfig.norm)].corrects_by_running_statistics

    def candidates(self) -> list[int]:
        """Powers of two times the unit, about the batch sizes that were tried."""
        most = max(self.unit, min(self.examples // MIN_UPDATES_PER_EPOCH, REACH * max(self.tried)))
        sizes = [self.unit * 2**k for k in range((most // self.unit).bit_length())]
        about = [size for size in sizes if size >= min(self.tried) / REACH] or sizes[-1:]
        return [size for size in about if self.fits(size) or self.cuts] or sizes[:1]

    def fits(self, batch_size: float) -> bool:
        """Whether memory has room for a batch as a whole."""
        return self.largest is None or batch_size <= self.largest

    def micro_batches(self, batch_size: int) -> int:
        """Into how many parts memory makes a batch be cut."""
        parts = 1
        while not self.fits(batch_size / parts) and batch_size % (2 * parts * self.unit) == 0:
            parts *= 2
        return parts


def _seconds(problem: _Limits, curves: Curves, batch_size: int) -> np.ndarray:
    """Of computing to the target, of the most likely curves and of the draws."""
    # With accumulation the time of an update has no knee.
    parts = problem.micro_batches(batch_size)
    return curves.updates(batch_size) * parts * curves.update_seconds(batch_size / parts)


def _prediction(evidence: dict[str, Any], problem: _Limits, curves: Curves, batch_size: int) -> dict[str, Any]:
    examples, memory = evidence["examples"], evidence["memory"]
    parts = problem.micro_batches(batch_size)
    step = parts * curves.update_seconds(batch_size / parts)
    found: dict[str, Any] = {
        "batch_size": batch_size,
        "step_seconds": [float(step[0]), *_interval(step[1:])],
        # As the trainer has it without --nodrop_remainder.
        "updates_per_epoch": examples // batch_size,
        "dropped": examples % batch_size / examples,
        "memory": None if memory is None else memory["fixed"] + memory["per_example"] * batch_size / parts,
        "updates": None,
        "epochs": None,
        "seconds": None,
    }
    if curves.has_target:
        # A run is about the curve, and its seed says where.
        scatter = np.exp(np.random.default_rng(RUN_SEED).normal(0, OF_A_RUN, len(curves.steps)))
        scatter[0] = 1
        updates, seconds = scatter * curves.updates(batch_size), scatter * _seconds(problem, curves, batch_size)
        found["updates"] = [float(updates[0]), *_interval(updates[1:])]
        found["epochs"] = [end * batch_size / examples for end in found["updates"]]
        found["seconds"] = [float(seconds[0]), *_interval(seconds[1:])]
    return found


def _rate(evidence: dict[str, Any], batch_size: int, critical: float) -> float:
    """The best rate at a batch size: between two that were tuned by the power of the batch size, else scaled."""
    best = {run["batch_size"]: run["rate"] for run in best_runs(evidence["runs"]) if run["reached"]}
    if not best:
        # What diverged on the way to the target was not seen to in a short run.
        bounds = [(run["batch_size"], run["rate"]) for run in evidence["runs"] if run["diverged"]]
        entries = [e for e in evidence["race"] if all(e[0] != size or e[1] < rate for size, rate in bounds)]
        size, rate, _ = min(entries or evidence["race"], key=lambda entry: entry[2])
        best = {size: rate}
    if batch_size in best:
        return best[batch_size]
    sizes = sorted(best)
    if sizes[0] < batch_size < sizes[-1]:
        logs = np.interp(math.log(batch_size), np.log(sizes), np.log([best[size] for size in sizes]))
        return rounded(math.exp(logs))
    near = min(sizes, key=lambda size: abs(math.log(size / batch_size)))
    # Where twice the batch halves the updates, twice the rate does it.
    return scaled_rate(best[near], near, batch_size, min(critical, 1e9))


def _binding(evidence: dict[str, Any], problem: _Limits, curves: Curves, batch_size: int) -> tuple[str, str]:
    """What keeps a larger batch from being better, and what would loosen it."""
    twice = 2 * batch_size
    whole = curves.updates(batch_size)[0] * curves.update_seconds(batch_size)[0]
    without = curves.updates(twice)[0] * curves.update_seconds(twice)[0]
    if not problem.fits(batch_size) or (not problem.fits(twice) and without < whole):
        cut = "; --accumulation_steps makes up for it in part" if problem.cuts else ""
        return "memory", f"a half-precision --dtype or more devices{cut}"
    if without < whole and twice > evidence["examples"] // MIN_UPDATES_PER_EPOCH:
        return "data", "more examples: an epoch should have some updates"
    if without < whole:
        return "budget", "a larger --budget_minutes: larger batches than those that were tried look better still"
    if float(curves.critical()[0]) > curves.time.knee:
        return "knee", "faster or more devices: the gradient could use a larger batch, but its time grows with it"
    return "noise", "a harder target: the machine has room for a larger batch, but it would save hardly any updates"


def _interval(draws: np.ndarray) -> list[float]:
    return list(interval_of(draws, CONFIDENCE))
