"""Infers updates to the target and time per update by batch size: the most likely curves, and draws of them."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from batchnorm_jax.batch_size import StepTimeFit, fit_step_time

from ...records.evidence import Evidence, MeasuredRun, Noise
from ...records.fields import finite
from ...records.recommendation import Source
from ..convergence import CONFIDENCE

# Different seeds, so that the draws are independent.
STEPS_SEED, TIME_SEED, RUN_SEED, SETTING_SEED = 0, 1, 2, 3
# As many draws as the fit of the times has, with which they are paired.
DRAWS = 999
# The usual ratio of a run's noise scale to its critical batch size: 2 to 8, by the averages that McCandlish et al. give
# for MNIST, SVHN, CIFAR-10 and ImageNet.
NOISE_OVER_CRITICAL = 3.5
# The standard deviation of the log of the critical batch size: about the value that a well-measured noise scale
# implies, over the six problems of docs/results/critical.md; and about the usual value, where the noise scale is not
# known. (Over the averages above the former is about log 2.)
NOISE_LOG_SD, USUAL_LOG_SD = math.log(4.5), math.log(6)
# The standard deviation of the log of the updates of a setting, over many seeds, about the curve: its rate was chosen
# among few, and the curve is a law that holds only nearly.
SETTING_LOG_SD = 0.2
# The standard deviation of that logarithm between seeds of one setting, about that in docs/results/recommend (0.1 to
# 0.6 by problem), and the number of measured differences that it counts for beside those of the problem itself.
SEED_LOG_SD, SEED_LOG_SD_WEIGHT = 0.36, 4
# The correlation of that logarithm between two settings with the same seed, likewise: a seed gives both the same
# initial weights and order of examples.
SEED_CORRELATION = 0.4
# The standard deviation of that logarithm, averaged over seeds, between rates near the best that are a factor of two
# apart, likewise.
RATE_LOG_SD = 0.2
# A rate at which the logarithm is larger than at the best one by more was not in the running.
NEAR_LOG = math.log(2)
# The additional standard deviation at a batch size where no run reached the target: perhaps no rate there was good.
UNTUNED_LOG_SD = math.log(2)
USUAL_CRITICAL_EXAMPLES = 300.0
# From this ratio of the evaluations on both sides on, they count as the ends of an interval and not as one place.
WIDE = 1.25
# The grid of the posterior: the number of values of the critical batch size, the number of values of the least updates
# at each, and the half width of the grid in standard deviations.
CRITICAL_VALUES, STEPS_VALUES, GRID_SDS = 401, 121, 6.0


class NoisePrior(NamedTuple):
    """A measured gradient noise scale, for the prior of the critical batch size.

    Attributes:
      scale: the median of the measurements, in examples.
      spread: the standard deviation of the logarithm of `scale`, from the interval of the median.
    """

    scale: float
    spread: float


class Curves(NamedTuple):
    """The updates to a target, min_steps + min_examples / B, and the compute time per update, overhead + B / R.

    Attributes:
      steps: min_steps and min_examples: the most likely values, then draws; shape (1 + draws, 2). If no run reached a
        target, only the ratio of the two is known, and min_steps is 1.
      time: the fit to the time per update.
      source: the basis of the updates.
      has_target: whether the updates are known, and not only the ratio of min_examples to min_steps.
      settings: the runs of each batch size at its best rate.
      seeds: how far apart the updates of a setting are by their seeds.
      luck: by how much the logarithm of the updates of the best rate is expected to be too low, by batch size.
    """

    steps: np.ndarray
    time: StepTimeFit
    source: Source
    has_target: bool
    settings: Mapping[int, "SettingRuns"]
    seeds: "SeedSpread"
    luck: Mapping[int, float]

    def updates(self, batch_size: float) -> np.ndarray:
        """Returns the updates to the target by the curve: the most likely value, then the draws; (1 + draws,)."""
        return self.steps[:, 0] + self.steps[:, 1] / batch_size

    def of_setting(self, batch_size: int) -> np.ndarray:
        """Returns the updates of a batch size at a good rate, averaged over seeds, as `updates` does.

        At a size that was run they lie between the curve and the mean of the runs, nearer to it the more runs there
        are; where none was, they scatter about the curve.
        """
        curve = np.log(self.updates(batch_size))
        found = self.settings.get(batch_size)
        share = 0.0 if found is None else SETTING_LOG_SD**2 / found.spread(self.seeds.deviation) ** 2
        # Another batch size has another deviation.
        random = np.random.default_rng((SETTING_SEED, batch_size))
        off = random.normal(0, SETTING_LOG_SD * math.sqrt(1 - share), len(curve))
        off[0] = 0
        return np.exp(curve + off + (0.0 if found is None else share * (found.mean - curve)))

    def of_run(self, batch_size: int) -> np.ndarray:
        """Returns the factors by which a run with a new seed is off the updates of its setting; shape (1 + draws,).

        The best rate was lucky in part, which a new run is not; sizes that were not run follow from those that were.
        (This does not count where sizes are compared: one at which more rates were tried would look worse for it.)

        The draws count twice that seeds differ: the new one has its own deviation, and the few of the runs have theirs,
        of which each shifts all that was run with it. How far seeds lie apart is itself known from few.
        """
        few = 0.0
        if runs := sum(found.number for found in self.settings.values()):
            # Runs count as independent in the curve; those with the same seed are less than that.
            few = max(0.0, SEED_CORRELATION * (1 / self.seeds.number - 1 / runs))
        random = np.random.default_rng(RUN_SEED)
        drawn = random.standard_t(self.seeds.freedom, len(self.steps))
        drawn[0] = 0
        usual = statistics.mean(self.luck.values()) if self.luck else 0.0
        return np.exp(self.luck.get(batch_size, usual) + self.seeds.deviation * math.sqrt(1 + few) * drawn)

    def update_seconds(self, batch_size: float) -> np.ndarray:
        """Returns the seconds per update: the most likely value, then the draws; shape (1 + draws,)."""
        draws = self.time.draws
        overhead = np.append(self.time.overhead, draws["overhead"])
        return overhead + batch_size / np.append(self.time.throughput, draws["throughput"])

    def critical(self) -> np.ndarray:
        """Returns the critical batch size: the most likely value, then the draws; shape (1 + draws,)."""
        return self.steps[:, 1] / self.steps[:, 0]


class SettingRuns(NamedTuple):
    """The runs of one setting that reached the target at a known place.

    Attributes:
      mean: the mean of the logarithms of their updates.
      number: how many there are.
    """

    mean: float
    number: int

    def spread(self, seed_spread: float) -> float:
        """Returns the standard deviation of the mean about the curve."""
        return math.hypot(SETTING_LOG_SD, seed_spread / math.sqrt(self.number))


def settings_of(runs: Sequence[MeasuredRun]) -> dict[int, SettingRuns]:
    """Returns the settings of runs at the best rates, by batch size, as far as they reached the target."""
    logs: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        if run.reached and not _is_wide(run):
            logs[run.batch_size].append(math.log(run.updates))
    return {size: SettingRuns(statistics.mean(values), len(values)) for size, values in logs.items()}


def luck_of(runs: Sequence[MeasuredRun], spread: float) -> dict[int, float]:
    """Returns how much too low the logarithm of the updates at the best rate is expected to be, by batch size.

    The best of some rates with few seeds each is best by luck in part. Of rates that come near it, with as many runs as
    it, each is expected to lie between what was found and the mean of all, by the shares of the seeds and of the rates
    in what sets them apart.

    Args:
      runs: the runs at all rates.
      spread: the standard deviation of the logarithm between seeds.

    Example:
      >>> fields = {"batch_size": 64, "seed": 0, "reached": True, "diverged": False, "step_seconds": None}
      >>> pair = [MeasuredRun(rate=rate, updates=updates, **fields) for rate, updates in ((0.1, 100), (0.2, 120))]
      >>> round(100 * math.exp(luck_of(pair, 0.36)[64])), luck_of(pair[:1], 0.36)
      (106, {64: 0.0})

    Source: Efron and Morris, "Stein's Estimation Rule and Its Competitors: An Empirical Bayes Approach", 1973.
    """
    logs: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.reached:
            logs[run.batch_size][run.rate].append(math.log(run.updates))
    luck: dict[int, float] = {}
    for size, rates in logs.items():
        most = max(map(len, rates.values()))
        means = [statistics.mean(values) for values in rates.values() if len(values) == most]
        near = [mean for mean in means if mean - min(means) <= NEAR_LOG]
        # Rates are run with the same seeds, so that what a seed does to all of them sets none apart.
        by_seeds = (1 - SEED_CORRELATION) * spread**2 / most
        luck[size] = by_seeds / (by_seeds + RATE_LOG_SD**2) * (statistics.mean(near) - min(near))
    return luck


class SeedSpread(NamedTuple):
    """How far apart the updates of one setting are by their seeds.

    Attributes:
      deviation: the standard deviation of their logarithm.
      freedom: the number of differences between runs that it rests on, those of usual problems included.
      number: how many seeds there are, at least one.
    """

    deviation: float
    freedom: int = SEED_LOG_SD_WEIGHT
    number: int = 1


def seed_spread(runs: Sequence[MeasuredRun]) -> SeedSpread:
    """Returns how far apart the updates of a setting are by their seeds, in this problem and in usual ones.

    Example:
      >>> fields = {"batch_size": 64, "rate": 0.1, "reached": True, "diverged": False, "step_seconds": None}
      >>> alike = [MeasuredRun(seed=seed, updates=100, **fields) for seed in range(13)]
      >>> seed_spread([]).deviation, round(seed_spread(alike).deviation, 2)
      (0.36, 0.18)
    """
    squares, freedom = SEED_LOG_SD_WEIGHT * SEED_LOG_SD**2, SEED_LOG_SD_WEIGHT
    logs: dict[tuple[int, float], list[float]] = defaultdict(list)
    for run in runs:
        if run.reached:
            logs[run.batch_size, run.rate].append(math.log(run.updates))
    for values in logs.values():
        squares += len(values) * statistics.pvariance(values)
        freedom += len(values) - 1
    return SeedSpread(math.sqrt(squares / freedom), freedom, max(1, len({run.seed for run in runs if run.reached})))


def _is_wide(run: MeasuredRun) -> bool:
    """Returns whether the evaluations on both sides of the target are so far apart that only they are known."""
    low, high = run.between or (run.updates, run.updates)
    return high >= WIDE * max(low, 1)


def curves_of(evidence: Evidence) -> Curves | None:
    """Returns the curves that follow from the measurements; None: the measurements are too few for curves."""
    points = evidence.step_time
    if len(points) < 3 or len({point.batch_size for point in points}) < 2:
        return None
    time = fit_step_time(*zip(*points, strict=True), seed=TIME_SEED)
    chosen = best_runs(evidence.runs)
    prior = prior_of(evidence.noise)
    sizes = {run.batch_size for run in chosen if run.reached}
    if prior is None and not sizes:
        return None
    source = "runs" if len(sizes) > 1 else "usual" if prior is None else "noise"
    seeds = seed_spread(evidence.runs)
    steps = steps_by(prior, chosen, seeds.deviation)
    luck = luck_of(evidence.runs, seeds.deviation)
    return Curves(steps, time, source, bool(sizes), settings_of(chosen), seeds, luck)


def noise_over(measured: Sequence[Sequence[float]]) -> Noise:
    """Returns the noise scale over a run: the median of its measurements, since the scale grows along the run.

    (The median is taken over ratios of single measurements, which are too high where the scale is far above the number
    of examples in a measurement. The ratio of pooled measurements, as in `noise_scale_interval`, would be dominated
    by the first measurements, whose gradients are largest.)

    Args:
      measured: one entry per measurement: step, loss, squared norm of the gradient, trace of its covariance.

    Returns:
      The scale in examples, the interval of the median, and the number of measurements. An end of the interval is None
      if the measurements are too few, or too noisy, to bound it.

    Example:
      >>> found = noise_over([(step, 1.0, 1.0, 100.0 + step) for step in range(9)])
      >>> found.scale, found.interval, found.measurements
      (104.0, (101.0, 107.0), 9)
    """
    # Where the gradient cannot be told from its noise, the scale is infinite: no batch is large enough.
    scales = [trace / norm2 if norm2 > 0 else math.inf for _, _, norm2, trace in measured]
    low, high = scipy.stats.quantile_test(scales, p=0.5).confidence_interval(CONFIDENCE)
    return Noise(
        scale=finite(statistics.median(scales)), interval=(finite(low), finite(high)), measurements=len(scales)
    )


def prior_of(noise: Noise | None) -> NoisePrior | None:
    """Returns the measured noise scale; None: it was not measured, or is less certain than the usual value."""
    if noise is None:
        return None
    scale, (low, high) = noise.scale, noise.interval
    if scale is None or low is None or high is None or not (scale > 0 and 0 < low <= high < math.inf):
        return None
    spread = math.log(high / low) / (2 * statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2))
    return NoisePrior(scale, spread) if spread < USUAL_LOG_SD else None


def steps_by(
    prior: NoisePrior | None, runs: Sequence[MeasuredRun], spread: float = SEED_LOG_SD, seed: int = STEPS_SEED
) -> np.ndarray:
    """Infers least updates and least examples to a target, S(B) = S_min + E_min / B, from few runs and the noise scale.

    The inference is by Bayes' rule. The prior of log(E_min / S_min) is normal: about the usual value and, if the noise
    scale is known, also about a fraction of it. The prior of log S_min is flat. The mean log S of the runs of a batch
    size is normal about the curve, and that of a single run known to lie between two evaluations. A run that did not
    reach the target implies that its S is larger than its updates; that evidence is weaker at a batch size where no
    rate reached the target.

    Args:
      prior: the gradient noise scale; None: not known.
      runs: the runs at a good rate of each batch size. If none reached the target, S_min is 1.
      spread: the standard deviation of log S between seeds.
      seed: the seed of the draws.

    Returns:
      S_min and E_min: the most likely values, then draws; shape (1 + draws, 2).

    Example:
      >>> # The runs lie on 100 + 10,000 / B. The usual value and the noise scale pull the result away a little.
      >>> fields = {"rate": 0.1, "seed": 0, "reached": True, "diverged": False, "step_seconds": None}
      >>> points = ((50, 300), (200, 150), (800, 112))
      >>> runs = [MeasuredRun(batch_size=b, updates=s, **fields) for b, s in points]
      >>> (least, examples), *draws = steps_by(NoisePrior(350.0, spread=0.2), runs)
      >>> round(float(least)), round(float(examples), -2)
      (92, 11400.0)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, section 2, for the
    curve, for its ratio E_min / S_min, which equals the noise scale in theory, and for the deviation in practice.
    """
    middle, wide = math.log(USUAL_CRITICAL_EXAMPLES), USUAL_LOG_SD
    if prior is not None:
        about_noise = math.hypot(NOISE_LOG_SD, prior.spread)
        share = wide**2 / (wide**2 + about_noise**2)
        middle += share * (math.log(prior.scale / NOISE_OVER_CRITICAL) - middle)
        wide = about_noise * math.sqrt(share)
    # The log of the ratio E_min / S_min, shape (values, 1).
    ratio = middle + wide * np.linspace(-GRID_SDS, GRID_SDS, CRITICAL_VALUES)[:, None]
    weight = -((ratio - middle) ** 2) / (2 * wide**2)
    reached = [run for run in runs if run.reached]
    tuned = {run.batch_size for run in reached}
    least = np.zeros_like(ratio)
    if reached:
        # The grid of log S_min, centred at each ratio on the mean that the runs that reached the target imply; shape
        # (values, offsets).
        alone = [math.log(run.updates) - np.log1p(np.exp(ratio) / run.batch_size) for run in reached]
        one = math.hypot(SETTING_LOG_SD, spread)
        least = np.mean(alone, axis=0) + one * np.linspace(-GRID_SDS, GRID_SDS, STEPS_VALUES)
        for size, found in settings_of(runs).items():
            off = (found.mean - least - np.log1p(np.exp(ratio) / size)) / found.spread(spread)
            weight = weight - off**2 / 2
        for run in runs:
            if not run.reached or _is_wide(run):
                expected = least + np.log1p(np.exp(ratio) / run.batch_size)
                untuned = 0.0 if run.batch_size in tuned else UNTUNED_LOG_SD
                weight = weight + _log_likelihood(run, expected, math.hypot(one, untuned))
    probability = np.exp(weight - weight.max()).ravel()
    drawn = np.random.default_rng(seed).choice(probability.size, DRAWS, p=probability / probability.sum())
    row, column = np.unravel_index(np.append(np.argmax(probability), drawn), weight.shape)
    first = np.exp(least[row, column])
    return np.stack([first, first * np.exp(ratio[row, 0])], axis=1)


def _log_likelihood(run: MeasuredRun, expected: np.ndarray, spread: float) -> np.ndarray:
    """Returns the logarithm of the likelihood of a run, by the expected logarithms of its updates.

    Args:
      run: a run that did not reach the target, or reached it between evaluations that are far apart.
      expected: the expected logarithms, an array of any shape.
      spread: the standard deviation of the logarithm of the updates about what is expected.
    """
    if not run.reached:
        return scipy.special.log_ndtr((expected - math.log(run.updates)) / spread)
    low, high = run.between or (run.updates, run.updates)
    below = (math.log(high) - expected) / spread
    if low == 0:
        return scipy.special.log_ndtr(below)
    above = (math.log(low) - expected) / spread
    # The difference of two probabilities, in the tail in which it loses no digits.
    mirrored = above > 0
    below, above = np.where(mirrored, -above, below), np.where(mirrored, -below, above)
    larger, smaller = scipy.special.log_ndtr(below), scipy.special.log_ndtr(above)
    return larger + np.log1p(-np.exp(smaller - larger))


def best_runs(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Returns the runs at the best rate of each batch size.

    That is the rate with the most seeds at which the target was reached, since the better ones are run with more; among
    several the one with the least updates in the mean of their logarithms. At a size where no run reached the target,
    only the run with the most updates is returned.
    """
    chosen = []
    ended = [run for run in runs if not run.diverged]
    for size in sorted({run.batch_size for run in ended}):
        there = [run for run in ended if run.batch_size == size]
        reached: dict[float, list[float]] = defaultdict(list)
        for run in there:
            if run.reached:
                reached[run.rate].append(math.log(run.updates))
        if reached:
            rate = min(reached, key=lambda rate: (-len(reached[rate]), statistics.mean(reached[rate])))
            chosen += [run for run in there if run.rate == rate]
        else:
            chosen.append(max(there, key=lambda run: run.updates))
    return chosen
