"""Fits of the updates to a target, and of the time of an update, by batch size.

Both are a constant and a part in proportion, with noise that is relative to the value:

    y = (a + c x) exp(noise),   a, c >= 0,   noise ~ Normal(0, sigma)

For updates y = S and x = 1/B; for the time of an update y = t and x = B. So one fit serves both. Where the measurements
do not tell a constant from none, a is 0, or c is, and what is a ratio of the two is 0 or infinite.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from batchnorm_jax.batch_size._censored import fit_curves

# Draws of the bootstrap. One less than a round number: the bounds of 95% are then the 25th from either end.
DRAWS = 999
# The numbers of the draws that are fitted at a time, which bounds the memory.
_FITTED_AT_A_TIME = 2**18
# The fewest points: the curve has two parameters, and the noise needs one more.
_LEAST = 3


class ScalingFit(NamedTuple):
    """The updates to a target, S(B) = min_steps + min_examples / B.

    Attributes:
      min_steps: S_min, the updates that no batch size gets below; 0 if it can't be told from none.
      min_examples: E_min, the examples that no batch size gets below; 0 if it can't be told from none.
      critical_batch_size: E_min / S_min, where both are twice their least; infinite if `min_steps` is 0.
      intervals: (low, high) of each of the three by name. A bound may be 0 or infinite.
      draws: results of the draws of the bootstrap, by the same names, shape (draws,), for intervals of what follows.
    """

    min_steps: float
    min_examples: float
    critical_batch_size: float
    intervals: dict[str, tuple[float, float]]
    draws: dict[str, np.ndarray]


class StepTimeFit(NamedTuple):
    """The time of an update, t(B) = overhead + B / throughput.

    Attributes:
      overhead: t0, in seconds; 0 if it can't be told from none.
      throughput: R, in examples per second; infinite if the time does not grow with the batch.
      knee: R t0, the batch size at which half of the time is overhead.
      intervals: (low, high) of each of the three by name. A bound may be 0 or infinite.
      draws: see `ScalingFit`.
    """

    overhead: float
    throughput: float
    knee: float
    intervals: dict[str, tuple[float, float]]
    draws: dict[str, np.ndarray]


def fit_steps_to_target(
    batch_sizes: ArrayLike,
    steps: ArrayLike,
    *,
    censored: ArrayLike | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> ScalingFit:
    """Fits the updates to a target by batch size; runs that did not reach it are censored, not left out.

        S(B) = S_min (1 + B_crit / B),   E(B) = S B,   E_min = S_min B_crit

    By maximum likelihood, log S normal about the curve: a run that reached the target adds the density at its log S,
    another the probability of a larger one. The learning rate should have been tuned anew at each batch size.

    Intervals are those of a parametric bootstrap: noise is drawn about the fitted curve, cut by the budget where a run
    was, and fitted again. The scale of the noise is drawn too, sigma sqrt(n / chi^2) with n - 2 degrees of freedom for
    n runs that reached the target, as in Student's t: with one scale the intervals of few runs are far too narrow. The
    budget of a run that reached the target is taken to be the largest among those of its batch size that did not.

    Args:
      batch_sizes: shape (runs,), in examples; several runs, such as seeds, may share one.
      steps: shape (runs,), updates until the target was reached, or made in vain.
      censored: shape (runs,), True where the target was not reached. By default all were.
      confidence: the confidence level of each interval.
      seed: the seed of the bootstrap.

    Returns:
      A `ScalingFit`. Where all batches are small, `min_examples` is well determined, and the critical batch size has no
      upper bound; where all are large, `min_steps` is, and it has no lower bound but 0.

    Raises:
      ValueError: the lengths differ, fewer than three runs or two batch sizes reached the target, a number is not
        positive and finite, or `confidence` is out of range.

    Example:
      >>> fit = fit_steps_to_target([64, 256, 1024, 4096], [2600, 1070, 640, 500], censored=[0, 0, 0, 1])
      >>> round(fit.min_steps), round(fit.critical_batch_size)
      (515, 263)

    Source: the curve, McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, section
    2; steps to a target, tuned at each batch size, Shallue et al., "Measuring the Effects of Data Parallelism on Neural
    Network Training", arXiv 1811.03600, 2018; the likelihood, Tobin, "Estimation of Relationships for Limited Dependent
    Variables", Econometrica, 1958.
    """
    call = "fit_steps_to_target"
    sizes, counts = _points(call, batch_sizes=batch_sizes, steps=steps)
    unreached = np.zeros(len(sizes), bool) if censored is None else np.asarray(censored, bool)
    if unreached.shape != sizes.shape:
        raise ValueError(f"{call}: censored has shape {unreached.shape} and steps {sizes.shape}; give one value a run")
    if not _enough(sizes, unreached):
        raise ValueError(
            f"{call}: at least {_LEAST} runs of at least 2 batch sizes must reach the target, and "
            f"{np.sum(~unreached)} of {len(sizes)} did, of {len(set(sizes[~unreached]))}; add runs, train for longer "
            "or lower the target"
        )
    constant, slope = _bootstrap(call, -np.log(sizes), np.log(counts), unreached, confidence, seed)
    return ScalingFit(
        *_summary(confidence, min_steps=constant, min_examples=slope, critical_batch_size=slope - constant)
    )


def predict_steps(fit: ScalingFit, batch_size: float) -> float:
    """Returns the updates to the target at a batch size, S_min + E_min / B.

    Example:
      >>> fit = fit_steps_to_target([100, 200, 400], [3000, 2000, 1500])
      >>> round(predict_steps(fit, 1000))
      1200
    """
    return fit.min_steps + fit.min_examples / _size("predict_steps", batch_size)


def predict_steps_interval(fit: ScalingFit, batch_size: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the interval of `predict_steps`: of the curve, not of a run to come, which has noise of its own.

    Raises:
      ValueError: the batch size is not positive and finite, or `confidence` is out of range.
    """
    size = _size("predict_steps_interval", batch_size)
    values = fit.draws["min_steps"] + fit.draws["min_examples"] / size
    return interval_of(values, _checked("predict_steps_interval", confidence, len(values)))


def fit_step_time(
    batch_sizes: ArrayLike, seconds: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> StepTimeFit:
    """Fits the time of an update, by batch size: an overhead, and a time for each example.

        t(B) = t0 + B / R,   B_knee = R t0

    By least squares of log t, since the noise of a time grows with it; intervals as in `fit_steps_to_target`.

    Args:
      batch_sizes: shape (measurements,), in examples.
      seconds: shape (measurements,), of an update.
      confidence: the confidence level of each interval.
      seed: the seed of the bootstrap.

    Returns:
      A `StepTimeFit`.

    Raises:
      ValueError: the lengths differ, there are fewer than three measurements or two batch sizes, a number is not
        positive and finite, or `confidence` is out of range.

    Example:
      >>> fit = fit_step_time([100, 200, 400], [0.3, 0.5, 0.9])
      >>> round(fit.overhead, 3), round(fit.throughput), round(fit.knee)
      (0.1, 500, 50)
    """
    call = "fit_step_time"
    sizes, times = _points(call, batch_sizes=batch_sizes, seconds=seconds)
    none = np.zeros(len(sizes), bool)
    if not _enough(sizes, none):
        raise ValueError(
            f"{call}: at least {_LEAST} measurements of at least 2 batch sizes are needed, and {len(sizes)} came, of "
            f"{len(set(sizes))}; measure more"
        )
    constant, slope = _bootstrap(call, np.log(sizes), np.log(times), none, confidence, seed)
    return StepTimeFit(*_summary(confidence, overhead=constant, throughput=-slope, knee=constant - slope))


def best_batch_size(critical_batch_size: float, knee: float) -> float:
    """Returns the batch size with the least time to the target, sqrt(B_crit B_knee).

        T(B) = S(B) t(B) = S_min (1 + B_crit / B) (t0 + B / R) = S_min (t0 + B_crit / R + B / R + B_crit t0 / B)

    whose last two terms are equal at the minimum. Memory and data may allow less.

    Raises:
      ValueError: a number is negative or not one, or one is 0 and the other infinite: every batch size is as good.

    Example:
      >>> best_batch_size(400.0, 100.0)
      200.0
    """
    product = critical_batch_size * knee
    if not (critical_batch_size >= 0 and knee >= 0 and product >= 0):
        raise ValueError(
            f"best_batch_size: critical_batch_size={critical_batch_size:g} and knee={knee:g} must not be negative, nor "
            "one 0 and the other infinite; measure at more batch sizes"
        )
    return math.sqrt(product)


def _points(call: str, **columns: ArrayLike) -> list[np.ndarray]:
    arrays = {name: np.asarray(values, float) for name, values in columns.items()}
    (first, sizes), (second, values) = arrays.items()
    if sizes.ndim != 1 or sizes.shape != values.shape:
        raise ValueError(
            f"{call}: {first} has shape {sizes.shape} and {second} {values.shape}; give one of each a run, in two lists"
        )
    for name, array in arrays.items():
        if (wrong := array[~((array > 0) & np.isfinite(array))]).size:
            raise ValueError(f"{call}: {name} must be positive and finite, and {wrong[0]:g} came; leave that run out")
    return list(arrays.values())


def _size(call: str, batch_size: float) -> float:
    if not 0 < batch_size < math.inf:
        raise ValueError(f"{call}: batch_size must be positive and finite, not {batch_size:g}")
    return batch_size


def _checked(call: str, confidence: float, draws: int) -> float:
    most = 1 - 2 / (draws + 1)
    if not 0 < confidence <= most:
        raise ValueError(
            f"{call}: confidence={confidence:g} must be above 0 and at most {most:g}, for {draws} draws; 0.95 is usual"
        )
    return confidence


def _enough(sizes: np.ndarray, censored: np.ndarray) -> np.ndarray:
    """Says whether the runs that are not censored, along the last axis, determine a curve and its noise."""
    least = np.where(censored, np.inf, sizes).min(-1, initial=np.inf)
    most = np.where(censored, -np.inf, sizes).max(-1, initial=-np.inf)
    return (np.sum(~censored, -1) >= _LEAST) & (least < most)


def _summary(confidence: float, **logs: np.ndarray) -> tuple:
    """Returns the fields of a fit from the logs of its numbers, each of shape (1 + draws,), the fit first."""
    with np.errstate(over="ignore"):
        values = {name: np.exp(log) for name, log in logs.items()}
    intervals = {name: interval_of(value[1:], confidence) for name, value in values.items()}
    return *(float(value[0]) for value in values.values()), intervals, {name: v[1:] for name, v in values.items()}


def interval_of(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Returns the ends of the middle share of draws: two draws, not interpolated, since some may be infinite.

    Example:
      >>> interval_of(np.arange(999.0), 0.95)
      (24.0, 974.0)
    """
    rank = max(1, round((len(values) + 1) * (1 - confidence) / 2))
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def _bootstrap(
    call: str, log_x: np.ndarray, log_y: np.ndarray, censored: np.ndarray, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logs of a and c, shape (1 + DRAWS,): the fit to the measurements, then those to the draws."""
    _checked(call, confidence, DRAWS)
    constant, slope, noise = fit_curves(log_x, log_y[None], censored[None])
    curve = np.logaddexp(constant, slope + log_x)
    there = np.where((log_x[:, None] == log_x) & censored, log_y, -np.inf).max(-1)
    limits = np.where(censored, log_y, np.where(there >= log_y, there, np.inf))
    rng = np.random.default_rng(seed)
    reached = np.sum(~censored)
    draws = np.empty((DRAWS, len(log_x)))
    left = np.arange(DRAWS)
    # Like the measurements, a draw must determine a curve; if it does not, it is drawn anew.
    while left.size:
        scale = noise * np.sqrt(reached / rng.chisquare(reached - 2, (left.size, 1)))
        draws[left] = curve + scale * rng.standard_normal((left.size, len(log_x)))
        left = left[~_enough(log_x, draws[left] > limits)]
    cut, missed = np.minimum(draws, limits), draws > limits
    # Some at a time: with thousands of runs, all of them would take gigabytes.
    parts = np.array_split(np.arange(DRAWS), max(1, draws.size // _FITTED_AT_A_TIME))
    again = [fit_curves(log_x, cut[part], missed[part])[:2] for part in parts]
    constants, slopes = (np.concatenate(found) for found in zip(*again, strict=True))
    return np.append(constant, constants), np.append(slope, slopes)
