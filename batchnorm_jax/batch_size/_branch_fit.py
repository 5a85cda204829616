"""The critical batch size that follows from branches of a training run."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from batchnorm_jax.batch_size._branching import Branch

# The share of a branch, at its end, whose losses are compared with those of the original for the tolerance.
LAST_SHARE = 0.25
# The share of a branch, at its end, that the fit uses: the loss jumps just after the rate has changed.
FITTED_SHARE = 0.5
# How far beyond the batch sizes that were tried the fit looks. Further away they say nothing.
REACH = 30.0


class BranchFit(NamedTuple):
    """The critical batch size, and the efficiency of each batch size, from branches of a run.

    Attributes:
      critical_batch_size: B_crit; infinite if the branches do not tell it from infinity, 0 if not from 0.
      interval: (low, high) of it, from the differences between seeds; None: there is only one seed.
      efficiency: by batch size, the share of its examples that the original needs for the same loss.
      learning_rates: the best rate by batch size, of those that were tried.
      within_tolerance: the largest batch size up to which every one ends within the tolerance.
      beyond_tolerance: the next larger batch size, which does not; None: there is none.
    """

    critical_batch_size: float
    interval: tuple[float, float] | None
    efficiency: dict[int, float]
    learning_rates: dict[int, float]
    within_tolerance: int
    beyond_tolerance: int | None


def fit_branches(branches: Sequence[Branch], *, tolerance: float = 0.01, confidence: float = 0.95) -> BranchFit:
    """Finds the critical batch size from branches.

    A branch with too large a batch B wastes examples. It ends at the loss that the original, with batch size B_0, had
    after a share of the examples,

        efficiency(B) = (B_0 + B_crit) / (B + B_crit)

    since the examples to a loss are E_min (1 + B / B_crit). B_crit is fitted by least squares to the second half of all
    branches at once, each at its best rate. If the rates were tuned, this is the critical batch size of
    `fit_steps_to_target` for this stretch of the run. `within_tolerance` is what the source calls critical: the largest
    batch size that comes back to the original's loss.

    Args:
      branches: from `train_branches`, with the original, which has the smallest batch size. The losses of several seeds
        are averaged.
      tolerance: by how much the loss, averaged over the last quarter, may end above the original's.
      confidence: the confidence level of the interval, which is that of the jackknife over seeds.

    Raises:
      ValueError: there is only one batch size, seeds lack branches that others have, the loss of the original does not
        fall, or an argument is out of range.

    Example:
      >>> examples = np.linspace(0, 640, 17)
      >>> curve = lambda size: np.exp(-examples / 500 * (8 + 64) / (size + 64))
      >>> fit = fit_branches([Branch(size, 0.1, 0, examples, curve(size)) for size in (8, 16, 32, 64)])
      >>> round(fit.critical_batch_size), round(fit.efficiency[64], 2), fit.within_tolerance, fit.beyond_tolerance
      (64, 0.56, 8, 16)

    Source: the branches and the tolerance, Merrill et al., "Critical Batch Size Revisited", arXiv 2505.23971, 2025; the
    efficiency, McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018.
    """
    caller = "fit_branches"
    if not tolerance >= 0:
        raise ValueError(f"{caller}: tolerance must be at least 0, not {tolerance!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"{caller}: confidence={confidence!r} must be between 0 and 1; 0.95 is usual")
    curves = _curves(caller, branches)
    best = _best(curves, range(len(next(iter(curves.values()))[1])))
    log_critical, efficiency = _fit(caller, best)
    seeds = len({branch.seed for branch in branches})
    interval = None
    if seeds > 1:
        # Which rate is best is part of the estimate, so each time it is chosen anew.
        left_out = [_fit(caller, _best(curves, [i for i in range(seeds) if i != out]))[0] for out in range(seeds)]
        interval = _jackknife(log_critical, np.array(left_out), confidence)
    within, beyond = _tolerated(best, tolerance)
    return BranchFit(
        critical_batch_size=_unbounded(log_critical, best),
        interval=None if interval is None else (_unbounded(interval[0], best), _unbounded(interval[1], best)),
        efficiency=efficiency,
        learning_rates={curve.batch_size: curve.learning_rate for curve in best},
        within_tolerance=within,
        beyond_tolerance=beyond,
    )


class _Curve(NamedTuple):
    """The losses of a batch size and a rate, averaged over seeds."""

    batch_size: int
    learning_rate: float
    examples: np.ndarray
    losses: np.ndarray


# By batch size and rate: the examples of the evaluations, and the losses, one row per seed.
_Curves = dict[tuple[int, float], tuple[np.ndarray, np.ndarray]]


def _curves(caller: str, branches: Sequence[Branch]) -> _Curves:
    found: dict[tuple[int, float], dict[int, Branch]] = {}
    for branch in branches:
        found.setdefault((branch.batch_size, branch.learning_rate), {})[branch.seed] = branch
    seeds = sorted({branch.seed for branch in branches})
    sizes = sorted({size for size, _ in found})
    if len(sizes) < 2:
        raise ValueError(f"{caller}: branches of at least two batch sizes are needed, and the sizes are {sizes}")
    for (size, rate), by_seed in found.items():
        if sorted(by_seed) != seeds:
            raise ValueError(
                f"{caller}: every batch size and rate needs the seeds {seeds}; {size} at {rate:g} has {sorted(by_seed)}"
            )
    return {
        key: (np.asarray(by_seed[seeds[0]].examples, float), np.stack([by_seed[seed].losses for seed in seeds]))
        for key, by_seed in sorted(found.items())
    }


def _best(curves: _Curves, seeds: Sequence[int] | range) -> list[_Curve]:
    """Returns the curve of the best rate of each batch size, averaged over some of the seeds, the original first."""
    best: dict[int, _Curve] = {}
    for (size, rate), (examples, losses) in curves.items():
        curve = _Curve(size, rate, examples, losses[list(seeds)].mean(axis=0))
        if size not in best or _end(curve) < _end(best[size]):
            best[size] = curve
    return list(best.values())


def _last(curve: _Curve, share: float) -> np.ndarray:
    """Returns which evaluations belong to the last share of the examples; always the last one."""
    return curve.examples >= (1 - share) * curve.examples[-1]


def _end(curve: _Curve) -> float:
    return float(np.mean(curve.losses[_last(curve, LAST_SHARE)]))


def _fit(caller: str, curves: Sequence[_Curve]) -> tuple[float, dict[int, float]]:
    """Returns the log of the critical batch size, and the efficiency of each batch size on its own."""
    original, others = curves[0], curves[1:]
    # Noise would make the original's loss rise here and there, and a loss then has no single place on it.
    finite = np.all(np.isfinite(original.losses))
    falling = -scipy.optimize.isotonic_regression(-original.losses).x if finite else original.losses
    if not finite or not falling[-1] < falling[0]:
        first, last = original.losses[[0, -1]]
        raise ValueError(
            f"{caller}: the loss of the original must fall; it went from {first:g} to {last:g}. Give more examples, "
            "branch earlier, or use a lower rate"
        )

    expected = scipy.interpolate.PchipInterpolator(original.examples, falling)

    def error(curve: _Curve, efficiency: np.ndarray) -> np.ndarray:
        chosen = _last(curve, FITTED_SHARE)
        # A branch that diverged is as bad as one that has learnt nothing.
        losses = np.minimum(curve.losses[chosen], falling[0])
        return np.mean((losses - expected(curve.examples[chosen] * efficiency[..., None])) ** 2, axis=-1)

    def shared(log_critical: np.ndarray) -> np.ndarray:
        return sum((error(curve, _efficiency(log_critical, original, curve)) for curve in others), np.zeros(()))

    efficiency = {curve.batch_size: _least(lambda share, c=curve: error(c, share), 0.0, 1.0) for curve in others}
    return _least(shared, *_limits(curves)), {original.batch_size: 1.0, **efficiency}


def _efficiency(log_critical: np.ndarray, original: _Curve, curve: _Curve) -> np.ndarray:
    critical = np.exp(log_critical)
    return (original.batch_size + critical) / (curve.batch_size + critical)


def _limits(curves: Sequence[_Curve]) -> tuple[float, float]:
    return math.log(curves[0].batch_size / REACH), math.log(curves[-1].batch_size * REACH)


def _least(function: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """Returns where a function of one number is least, also if it has several minima."""
    grid = np.linspace(low, high, 201)
    values = function(grid)
    index = int(np.argmin(values))
    around = grid[max(0, index - 1)], grid[min(len(grid) - 1, index + 1)]
    found = scipy.optimize.minimize_scalar(lambda x: float(function(np.asarray(x))), bounds=around, method="bounded")
    # The search stops short of a bound, where the least value may be.
    return float(found.x if found.fun < values[index] else grid[index])


def _unbounded(log_critical: float, curves: Sequence[_Curve]) -> float:
    """Returns a critical batch size, 0 or infinite if it is at the limits of what the branches can tell."""
    low, high = _limits(curves)
    if log_critical <= low:
        return 0.0
    return math.inf if log_critical >= high else math.exp(log_critical)


def _jackknife(estimate: float, left_out: np.ndarray, confidence: float) -> tuple[float, float]:
    seeds = len(left_out)
    error = math.sqrt((seeds - 1) / seeds * float(np.sum((left_out - left_out.mean()) ** 2)))
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, seeds - 1)) * error
    return estimate - half, estimate + half


def _tolerated(curves: Sequence[_Curve], tolerance: float) -> tuple[int, int | None]:
    """Returns the largest batch size up to which all are within the tolerance, and the next one."""
    original = curves[0]
    within = original.batch_size
    for curve in curves[1:]:
        chosen = _last(curve, LAST_SHARE)
        expected = np.interp(curve.examples[chosen], original.examples, original.losses)
        if not np.mean(curve.losses[chosen] - expected) <= tolerance:
            return within, curve.batch_size
        within = curve.batch_size
    return within, None
