"""What is known of the updates to the target and of the time of an update, by batch size: the likeliest, and draws."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.studies.convergence import CONFIDENCE, SEARCH_SEED
from experiments.studies.scaling import DRAWS, StepTimeFit, fit_step_time

# Each draws by a seed of its own, so that the draws are independent.
STEPS_SEED, TIME_SEED = 0, 1
# The noise scale of a run is usually so many times the critical batch size: 2 to 8 times, by the averages that
# McCandlish et al. give for MNIST, SVHN, CIFAR-10 and ImageNet.
OVERSTATED = 3.5
# In standard deviations of the logarithm: of the critical batch size about what a noise scale says that is measured
# well, by the same averages; about a usual one; and of the updates that a run needs about the curve, by its seed
# and because its rate was found among few.
# (The seeds of a cell alone make 0.36, pooled over docs/results/recommend; by problem it is 0.2 to 0.5.)
ABOUT_NOISE, ABOUT_USUAL, OF_A_RUN = math.log(2), math.log(6), 0.4
# And where no run reached the target, because none of the rates may have been a good one.
OF_A_RATE = math.log(2)
USUAL_CRITICAL = 300.0
# So many values are weighed of the critical batch size, and of the least updates at each; that many standard deviations
# about the middle.
VALUES, OFFSETS, FURTHEST = 401, 121, 6.0


class Noise(NamedTuple):
    """The gradient noise scale of a run, the median of its measurements.

    Attributes:
      scale: in examples.
      spread: the standard deviation of its logarithm, by its interval.
    """

    scale: float
    spread: float


class Curves(NamedTuple):
    """Updates to a target, min_steps + min_examples / B, and seconds of computing of an update, overhead + B / R.

    Attributes:
      steps: what is most likely, then draws: shape (1 + draws, 2), of min_steps and min_examples. Without a target
        their ratio is what is known, and the first is 1.
      time: the fit of the time of an update.
      source: what the first rests on: "runs", at two batch sizes or more, "noise", with runs at one batch size if there
        are any, or "usual", runs at one batch size and what is usual elsewhere.
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

    def critical(self) -> np.ndarray:
        """The critical batch size, likewise."""
        return self.steps[:, 1] / self.steps[:, 0]


def curves_of(evidence: dict[str, Any]) -> Curves | None:
    """The curves that follow from what was measured; None: neither runs to the target nor the noise say anything."""
    points = evidence["step_time"]
    if len(points) < 3 or len({size for size, _ in points}) < 2:
        return None
    time = fit_step_time(*zip(*points, strict=True), seed=TIME_SEED)
    chosen = best_runs(evidence["runs"])
    noise = noise_of(evidence)
    sizes = {run["batch_size"] for run in chosen if run["reached"]}
    if noise is None and not sizes:
        return None
    source = "runs" if len(sizes) > 1 else "usual" if noise is None else "noise"
    return Curves(steps_by(noise, chosen), time, source, has_target=bool(sizes))


def noise_over(measured: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The noise scale over a run: it grows on the way, so that this is the median, with the interval of a median.

    (Of ratios of single measurements, which lie too high where the scale is far above the examples of one. Their pooled
    ratio, as of `training.noise.estimate`, would be that of the first, whose gradients are largest.)

    Args:
      measured: [step, loss, squared norm of the gradient, trace of its covariance] of each measurement.

    Returns:
      `scale`, in examples, its `interval`, and the number of `measurements`. An end of the interval is not finite where
      they are too few, or too noisy, to bound it.

    Example:
      >>> found = noise_over([[step, 1.0, 1.0, 100.0 + step] for step in range(9)])
      >>> found["scale"], found["interval"], found["measurements"]
      (104.0, [101.0, 107.0], 9)
    """
    # A gradient that is not told from its noise: no batch is large enough.
    scales = [trace / norm2 if norm2 > 0 else math.inf for _, _, norm2, trace in measured]
    low, high = stats.quantile_test(scales, p=0.5).confidence_interval(CONFIDENCE)
    return {"scale": statistics.median(scales), "interval": [float(low), float(high)], "measurements": len(scales)}


def noise_of(evidence: dict[str, Any]) -> Noise | None:
    """The noise scale that was measured; None: it was not, or is not known to better than what is usual."""
    if evidence["noise"] is None:
        return None
    scale, (low, high) = evidence["noise"]["scale"], evidence["noise"]["interval"]
    # A file has None for what is not finite.
    if None in (scale, low, high) or not (scale > 0 and 0 < low <= high < math.inf):
        return None
    spread = math.log(high / low) / (2 * statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2))
    return Noise(scale, spread) if spread < ABOUT_USUAL else None


def steps_by(noise: Noise | None, runs: list[dict[str, Any]], seed: int = STEPS_SEED) -> np.ndarray:
    """The least updates and the least examples to a target, S(B) = S_min + E_min / B, by few runs and the noise scale.

    By Bayes' rule. Before the runs, log(E_min / S_min) is normal about what is usual, and about a part of the noise
    scale, as far as that is known; log S_min is flat. Of a run, log S is normal about the curve; one that did not reach
    the target says that its S is larger than its updates, and less surely so where no rate reached it.

    Args:
      noise: the gradient noise scale; None: not known.
      runs: at a good rate: `batch_size`, `updates`, and whether the target was `reached`. Where none was, S_min is 1.
      seed: of the draws.

    Returns:
      Shape (1 + draws, 2): what is most likely, then draws.

    Example:
      >>> # The runs lie on 100 + 10,000 / B. What is usual, and the noise scale, draw the three of them a little.
      >>> runs = [{"batch_size": b, "updates": s, "reached": True} for b, s in ((50, 300), (200, 150), (800, 112))]
      >>> (least, examples), *draws = steps_by(Noise(350.0, spread=0.2), runs)
      >>> round(float(least)), round(float(examples), -2)
      (96, 10700.0)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, section 2, for the
    curve, whose ratio is the noise scale where all goes as it says, and for how far it does not.
    """
    middle, wide = math.log(USUAL_CRITICAL), ABOUT_USUAL
    if noise is not None:
        about_noise = math.hypot(ABOUT_NOISE, noise.spread)
        share = wide**2 / (wide**2 + about_noise**2)
        middle += share * (math.log(noise.scale / OVERSTATED) - middle)
        wide = about_noise * math.sqrt(share)
    # Log of the ratio, shape (values, 1).
    ratio = middle + wide * np.linspace(-FURTHEST, FURTHEST, VALUES)[:, None]
    weight = -((ratio - middle) ** 2) / (2 * wide**2)
    reached = [run for run in runs if run["reached"]]
    tuned = {run["batch_size"] for run in reached}
    least = np.zeros_like(ratio)
    if reached:
        # About what the runs that reached the target say at each ratio, shape (values, offsets).
        alone = [math.log(run["updates"]) - np.log1p(np.exp(ratio) / run["batch_size"]) for run in reached]
        least = np.mean(alone, axis=0) + OF_A_RUN * np.linspace(-FURTHEST, FURTHEST, OFFSETS)
        for run in runs:
            expected = least + np.log1p(np.exp(ratio) / run["batch_size"])
            spread = OF_A_RUN if run["batch_size"] in tuned else math.hypot(OF_A_RUN, OF_A_RATE)
            off = (math.log(run["updates"]) - expected) / spread
            weight = weight + (-(off**2) / 2 if run["reached"] else stats.norm.logsf(off))
    probability = np.exp(weight - weight.max()).ravel()
    drawn = np.random.default_rng(seed).choice(probability.size, DRAWS, p=probability / probability.sum())
    row, column = np.unravel_index(np.append(np.argmax(probability), drawn), weight.shape)
    first = np.exp(least[row, column])
    return np.stack([first, first * np.exp(ratio[row, 0])], axis=1)


def best_runs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each batch size the runs at its best rate; where none reached the target, the one that went on longest."""
    chosen = []
    ended = [run for run in runs if not run["diverged"]]
    for size in sorted({run["batch_size"] for run in ended}):
        there = [run for run in ended if run["batch_size"] == size]
        searched = [run for run in there if run["seed"] == SEARCH_SEED]
        reached = [run for run in searched if run["reached"]]
        if reached:
            rate = min(reached, key=lambda run: run["updates"])["rate"]
            chosen += [run for run in there if run["rate"] == rate]
        elif searched:
            chosen.append(max(searched, key=lambda run: run["updates"]))
    return chosen
