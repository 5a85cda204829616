"""The setting that follows from the measurements, what it predicts, what binds, and how sure it is."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.studies.convergence import CONFIDENCE, RESOLUTION
from experiments.studies.recommending.target import FEWEST_UPDATES, best_runs, fit_of, scaled_rate
from experiments.studies.scaling import DRAWS, StepTimeFit, fit_step_time

# Predictions are made as far from the batch sizes that were tried as that.
REACH = 4
# A batch size is as good as the best if its time is no longer than that many times the best one.
AS_GOOD = 1.1


class Curves(NamedTuple):
    """Updates to a target, min_steps + min_examples / B, and seconds of an update, overhead + B / throughput.

    Attributes:
      steps: what is most likely, then draws: shape (1 + draws, 2), of min_steps and min_examples. Without a target
        their ratio is what is known, and the first is 1.
      time: the fit of the time of an update.
      source: what the first rests on: "runs" or "noise".
      has_target: whether updates are more than a ratio.
    """

    steps: np.ndarray
    time: StepTimeFit
    source: str
    has_target: bool

    def updates(self, batch_size: float) -> np.ndarray:
        """Of the most likely curve and of the draws, shape (1 + draws,)."""
        return self.steps[:, 0] + self.steps[:, 1] / batch_size

    def update_seconds(self, batch_size: float) -> np.ndarray:
        """Of an update, likewise."""
        draws = self.time.draws
        overhead = np.append(self.time.overhead, draws["overhead"])
        return overhead + batch_size / np.append(self.time.throughput, draws["throughput"])


def advise(evidence: dict[str, Any]) -> dict[str, Any] | None:
    """What to use.

    Args:
      evidence: from `measure.measure`.

    Returns:
      None where the measurements do not tell. Else, as JSON holds it: `batch_size`, `per_device`,
      `accumulation_steps`, `learning_rate`, `optimizer`, `warmup_epochs`, `span`; `predictions` at half, one and two
      times the batch size, and `candidates`, the same of all that were considered; `critical_batch_size` and `knee`,
      each with its interval; `binds` and `loosen`, as text; `certainty`, the share of bootstrap draws in which the
      batch size is within a tenth of the fastest; `options` of `experiments.train`.
    """
    curves = curves_of(evidence)
    if curves is None:
        return None
    sizes = _candidates(evidence)
    times = np.array([_seconds(evidence, curves, size) for size in sizes])
    batch_size = sizes[int(np.argmin(times[:, 0]))]
    chosen = times[sizes.index(batch_size), 1:]
    memory = evidence["memory"] or {}
    micro = _micro_batches(evidence, batch_size)
    rate = _rate(evidence, batch_size, curves)
    critical = curves.steps[:, 1] / np.maximum(curves.steps[:, 0], 1e-30)
    knee = curves.time.knee
    binds, loosen = _binding(evidence, batch_size, sizes, float(critical[0]), knee, micro)
    options = {
        **evidence["options"],
        "batch_size": batch_size,
        "optimizer": evidence["optimizer"],
        "learning_rate": rate,
        "schedule": "constant",
        "warmup_epochs": 0,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
    }
    if micro > 1:
        options["accumulation_steps"] = micro
    if evidence["target"] is not None:
        every = max(1, round(RESOLUTION * evidence["examples"] / batch_size))
        options |= {
            "target_accuracy": evidence["target"],
            "validation_examples": evidence["held_out"],
            "evaluate_every": every,
        }
        options["epochs"] = math.ceil(2 * _number(curves.updates(batch_size)[0] * batch_size / evidence["examples"]))
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
            _prediction(evidence, curves, size)
            for size in (batch_size // 2, batch_size, 2 * batch_size)
            if size >= evidence["devices"] and size <= evidence["examples"]
        ],
        "candidates": [_prediction(evidence, curves, size) for size in sizes],
        "critical_batch_size": {"value": float(critical[0]), "interval": interval(critical[1:])},
        "knee": {"value": knee, "interval": list(curves.time.intervals["knee"])},
        "largest_batch": memory.get("largest"),
        "binds": binds,
        "loosen": loosen,
        "certainty": float(np.mean(chosen <= AS_GOOD * times[:, 1:].min(axis=0))),
        "options": options,
    }


def curves_of(evidence: dict[str, Any]) -> Curves | None:
    """The curves, from runs to the target or, with too few of them, by the gradient noise; None: neither is there."""
    points = evidence["step_time"]
    if len(points) < 3 or len({size for size, _ in points}) < 2:
        return None
    time = fit_step_time(*zip(*points, strict=True))
    fit = fit_of(evidence["runs"])
    if fit is not None:
        steps = np.stack([fit.draws["min_steps"], fit.draws["min_examples"]], axis=1)
        return Curves(np.vstack([[fit.min_steps, fit.min_examples], steps]), time, "runs", has_target=True)
    noise = _noise_scale(evidence)
    if noise is None:
        return None
    reached = [run for run in best_runs(evidence["runs"]) if run["reached"]]
    # The least number of updates, so that the curve goes through the run that is there.
    run = min(reached, key=lambda r: r["updates"], default=None)
    least = 1.0 if run is None else run["updates"] / (1 + noise / run["batch_size"])
    return Curves(
        np.stack([np.broadcast_to(least, noise.shape), least * noise], axis=1),
        time,
        "noise",
        has_target=run is not None,
    )


def _noise_scale(evidence: dict[str, Any]) -> np.ndarray | None:
    """The noise scale and draws of it, shape (1 + DRAWS,): log-normal, with the interval that was found."""
    windows = [w for w in (evidence["noise"] or {"windows": []})["windows"] if math.isfinite(w["scale"])]
    if not windows:
        return None
    logs = np.log([w["scale"] for w in windows])
    spread = max(
        [math.log(w["interval"][1] / w["scale"]) / 1.96 for w in windows if 0 < w["interval"][1] < math.inf],
        default=1.0,
    )
    # It changes along the run, by more than it is uncertain at any moment.
    spread = max(spread, float(np.std(logs)))
    rng = np.random.default_rng(0)
    return np.exp(np.append(np.median(logs), np.median(logs) + spread * rng.standard_normal(DRAWS)))


def _candidates(evidence: dict[str, Any]) -> list[int]:
    """Powers of two times the devices, about the batch sizes that were tried."""
    tried = [run["batch_size"] for run in evidence["runs"]] or [size for size, _ in evidence["step_time"]]
    most = min(evidence["examples"] // FEWEST_UPDATES, REACH * max(tried))
    devices = evidence["devices"]
    sizes = [devices * 2**k for k in range(max(1, most // devices).bit_length())]
    return [size for size in sizes if min(tried) / REACH <= size <= most] or sizes[-1:]


def _micro_batches(evidence: dict[str, Any], batch_size: int) -> int:
    """Into how many parts memory makes a batch be cut."""
    largest = (evidence["memory"] or {}).get("largest")
    parts = 1
    while largest and batch_size / parts > largest and batch_size // parts > evidence["devices"]:
        parts *= 2
    return parts


def _seconds(evidence: dict[str, Any], curves: Curves, batch_size: int) -> np.ndarray:
    """To the target, of the most likely curves and of the draws. With accumulation an update has no knee."""
    parts = _micro_batches(evidence, batch_size)
    return curves.updates(batch_size) * parts * curves.update_seconds(batch_size / parts)


def _prediction(evidence: dict[str, Any], curves: Curves, batch_size: int) -> dict[str, Any]:
    examples = evidence["examples"]
    parts = _micro_batches(evidence, batch_size)
    step = parts * curves.update_seconds(batch_size / parts)
    memory = evidence["memory"]
    found: dict[str, Any] = {
        "batch_size": batch_size,
        "step_seconds": [float(step[0]), *interval(step[1:])],
        "updates_per_epoch": -(-examples // batch_size),
        # What --drop_remainder would leave out.
        "remainder": examples % batch_size / examples,
        "memory": None if memory is None else memory["fixed"] + memory["per_example"] * batch_size / parts,
        "updates": None,
        "epochs": None,
        "seconds": None,
    }
    if curves.has_target:
        updates, seconds = curves.updates(batch_size), _seconds(evidence, curves, batch_size)
        found["updates"] = [float(updates[0]), *interval(updates[1:])]
        found["epochs"] = [end * batch_size / examples for end in found["updates"]]
        found["seconds"] = [float(seconds[0]), *interval(seconds[1:])]
    return found


def _rate(evidence: dict[str, Any], batch_size: int, curves: Curves) -> float:
    """The best rate at a batch size: between two that were tuned by the power of the batch size, else scaled."""
    best = {run["batch_size"]: run["rate"] for run in best_runs(evidence["runs"]) if run["reached"]}
    if not best:
        screening = evidence["screening"]
        rate = min(screening["losses"], key=lambda pair: pair[1])[0]
        best = {screening["batch_size"]: rate}
    if batch_size in best:
        return best[batch_size]
    sizes = sorted(best)
    if sizes[0] < batch_size < sizes[-1]:
        logs = np.interp(math.log(batch_size), np.log(sizes), np.log([best[size] for size in sizes]))
        return float(f"{math.exp(logs):.3g}")
    near = min(sizes, key=lambda size: abs(math.log(size / batch_size)))
    critical = float(curves.steps[0, 1] / max(curves.steps[0, 0], 1e-30))
    return float(f"{scaled_rate(best[near], near, batch_size, critical):.3g}")


def _binding(
    evidence: dict[str, Any], batch_size: int, sizes: Sequence[int], critical: float, knee: float, micro: int
) -> tuple[str, str]:
    """What keeps a larger batch from being better, and what would loosen it."""
    if micro > 1:
        return "memory", "a half-precision --dtype or more devices; until then --accumulation_steps"
    if batch_size == sizes[-1] and 2 * batch_size > evidence["examples"] // FEWEST_UPDATES:
        return "data", "more examples: an epoch should have some updates"
    if critical > knee:
        return "knee", (
            "faster or more devices: beyond the knee twice the batch takes twice as long, although the gradient could "
            "still use it"
        )
    return "noise", (
        "nothing about the machine: beyond the critical batch size a larger batch saves hardly any updates; a harder "
        "target, or a ramp late in training, can use more"
    )


def interval(draws: np.ndarray) -> list[float]:
    """The ends between which most draws lie."""
    ordered = np.sort(draws)
    rank = max(1, round((len(ordered) + 1) * (1 - CONFIDENCE) / 2))
    return [float(ordered[rank - 1]), float(ordered[-rank])]


def _number(value: float) -> float:
    return min(max(value, 1.0), 1e6)
