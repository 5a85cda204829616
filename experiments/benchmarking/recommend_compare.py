"""Comparison of a recommendation with an exhaustive grid: the ratio of times to the target, and checked predictions."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import scipy

from ..records.comparison import CheckedPrediction, ComparedSetting
from ..records.fields import Bounded
from ..records.recommendation import Advice, Recommendation
from ..records.studies import StudyRow
from ..studies.convergence import CONFIDENCE, updates_to_target
from ..studies.recommending.curves import best_runs
from ..studies.recommending.runs import step_seconds

RESAMPLES = 999


class Cell(NamedTuple):
    """A setting of a grid.

    Attributes:
      batch_size: examples per update.
      rate: the constant learning rate.
    """

    batch_size: int
    rate: float


def cell_of(row: StudyRow) -> Cell:
    """Returns the setting of a run."""
    return Cell(row.batch_size, row.learning_rate)


def recommended_cell(advice: Advice | None) -> Cell | None:
    """Returns the recommended setting; None: there is no advice."""
    return None if advice is None else Cell(advice.batch_size, advice.learning_rate)


def cost(grid: Sequence[StudyRow]) -> float:
    """Returns the wall-clock seconds of all runs, including compilation and evaluation."""
    return sum(row.summary.seconds["in all"] for row in grid if row.summary is not None)


def cells(grid: Sequence[StudyRow]) -> dict[Cell, list[float]]:
    """Returns the updates to the target by cell, one number per seed; infinite if the run did not reach the target."""
    found: dict[Cell, list[float]] = defaultdict(list)
    for row in grid:
        reached = updates_to_target(row)
        found[cell_of(row)].append(math.inf if reached is None else reached)
    return found


def median_step_seconds(rows: Sequence[StudyRow]) -> dict[int, float]:
    """Returns the compute time per update by batch size: the median over the runs, so that no single moment decides."""
    seconds = defaultdict(list)
    for row in rows:
        if row.summary is not None:
            seconds[row.batch_size].append(step_seconds(row))
    return {size: statistics.median(values) for size, values in seconds.items()}


def best_cell(grid: Sequence[StudyRow]) -> Cell:
    """Returns the cell with the least time to the target: mean updates of its seeds times median time per update."""
    seconds = median_step_seconds(grid)
    return min(
        cells(grid).items(), key=lambda item: statistics.mean(item[1]) * seconds.get(item[0].batch_size, math.inf)
    )[0]


def best_rates(grid: Sequence[StudyRow]) -> dict[int, float]:
    """Returns the rate with the fewest updates to the target by batch size, where all seeds at a rate reached it."""
    found: dict[int, tuple[float, float]] = {}
    for cell, updates in cells(grid).items():
        least = found.get(cell.batch_size, (math.inf, 0.0))
        found[cell.batch_size] = min(least, (statistics.mean(updates), cell.rate))
    return {size: rate for size, (updates, rate) in sorted(found.items()) if math.isfinite(updates)}


def checked_cells(result: Recommendation, grid: Sequence[StudyRow]) -> list[Cell]:
    """Returns where a prediction can be checked: batch sizes of the grid that the recommendation has not tried.

    The rate of each is the best of the grid.
    """
    if result.advice is None:
        return []
    tried = {run.batch_size for run in best_runs(result.evidence.runs)}
    predicted = {one.batch_size for one in result.advice.candidates if one.updates is not None}
    return [Cell(size, rate) for size, rate in best_rates(grid).items() if size in predicted - tried]


def compare(
    best: Cell, recommended: Cell | None, again: Sequence[StudyRow]
) -> tuple[ComparedSetting, ComparedSetting | None, Bounded | None]:
    """Compares the recommended setting with the best of a grid, by runs of both with the same fresh seeds.

    A seed gives both settings the same initial weights and the same order of examples, and a seed that is slow at one
    setting tends to be slow at the other. The ratio is therefore taken seed by seed: the geometric mean of the ratios,
    with Student's interval; where some runs missed the target, their median, with a bootstrap's. The time per update is
    the median over the compared runs, because the machine may have been faster or slower when the grid ran.

    Args:
      best: the best setting of the grid.
      recommended: the recommended setting; None: nothing is recommended.
      again: the runs with fresh seeds; runs at other settings are ignored.

    Returns:
      Both settings with their updates and times to the target, and the ratio of recommended to best with its interval;
      None: half of the seeds or more say nothing of it.
    """
    fresh = {
        cell: sorted((row for row in again if cell_of(row) == cell), key=lambda row: row.seed)
        for cell in (best, recommended)
        if cell is not None
    }
    seconds = median_step_seconds([row for rows in fresh.values() for row in rows])
    settings = {cell: _setting(cell, rows, seconds.get(cell.batch_size)) for cell, rows in fresh.items()}
    if recommended is None:
        return settings[best], None, None
    if recommended == best:
        return settings[best], settings[recommended], (1.0, 1.0, 1.0)
    logs = [
        dict(zip([row.seed for row in fresh[cell]], _log_seconds(settings[cell]), strict=True))
        for cell in (recommended, best)
    ]
    return settings[best], settings[recommended], _ratio(*logs)


def _setting(cell: Cell, rows: Sequence[StudyRow], step: float | None) -> ComparedSetting:
    """Returns a setting with the results of its runs."""
    updates = [updates_to_target(row) for row in rows]
    setting = ComparedSetting(**cell._asdict(), updates=updates, step_seconds=step, seconds=None)
    middle = _bounded(_log_seconds(setting))
    return setting if middle is None else msgspec.structs.replace(setting, seconds=middle[0])


def _log_seconds(setting: ComparedSetting) -> np.ndarray:
    """Returns the logarithms of the times to the target, one per seed; infinite: the run missed it."""
    updates = [math.inf if count is None else count for count in setting.updates]
    # Where all runs diverged, there is no time per update, and no run reached the target.
    return np.log(np.array(updates, float) * (setting.step_seconds or 1.0))


def _ratio(recommended: Mapping[int, float], best: Mapping[int, float]) -> Bounded | None:
    """Returns the middle of the ratios of two settings with its interval, from logarithms of the times by seed."""
    seeds = [seed for seed in recommended if seed in best]
    # A seed with which both missed the target says nothing of the ratio.
    there = [seed for seed in seeds if math.isfinite(min(recommended[seed], best[seed]))]
    if 2 * len(there) <= len(seeds):
        return None
    return _bounded(np.array([recommended[seed] - best[seed] for seed in there]))


def _bounded(logs: np.ndarray) -> Bounded | None:
    """Returns the number that logarithms have in their middle, with its interval; None: half or more are infinite.

    The interval is Student's, for the mean; where some are infinite, it is a bootstrap's, for the median.
    """
    if not len(logs):
        return None
    if np.isfinite(logs).all():
        middle = float(np.mean(logs))
        ends = [middle] * 2
        if len(logs) > 1 and logs.std():
            ends = scipy.stats.t.interval(CONFIDENCE, len(logs) - 1, middle, scipy.stats.sem(logs))
    else:
        middle = float(np.median(logs))
        drawn = np.random.default_rng(0).choice(logs, (RESAMPLES, len(logs)))
        # No number lies between two of which one is infinite, and none is known between two infinities.
        with np.errstate(invalid="ignore"):
            medians = np.median(drawn, axis=1)
            ends = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="nearest")
    if not math.isfinite(middle):
        return None
    low, high = (float(np.exp(end)) if math.isfinite(end) else None for end in ends)
    return math.exp(middle), low, high


def mean_ratio(ratios: Sequence[Bounded]) -> Bounded:
    """Returns the geometric mean of independent ratios, with its interval.

    Each interval is taken for that of a normal logarithm. Without a bound of one there is none of the mean.

    Args:
      ratios: each with its interval of 95%.

    Example:
      >>> [round(value, 2) for value in mean_ratio([(0.5, 0.4, 0.625), (2.0, 1.6, 2.5)])]
      [1.0, 0.85, 1.17]
    """
    middle = statistics.mean(math.log(ratio) for ratio, _, _ in ratios)

    def half(ends: Sequence[float | None]) -> float:
        """Returns the half of the interval of the logarithm on one side; infinite: there is no bound."""
        logs = [math.inf if end is None else math.log(end / one[0]) for one, end in zip(ratios, ends, strict=True)]
        return math.hypot(*logs) / len(ratios)

    ends = middle - half([low for _, low, _ in ratios]), middle + half([high for _, _, high in ratios])
    low, high = (math.exp(end) if math.isfinite(end) else None for end in ends)
    return math.exp(middle), low, high


def check_predictions(
    result: Recommendation, grid: Sequence[StudyRow], again: Sequence[StudyRow]
) -> list[CheckedPrediction]:
    """Compares predicted updates with those of fresh seeds, at batch sizes that the recommendation has not tried.

    The rate of each size is the best of the grid, which has other seeds, so that no least of several noisy numbers is
    taken for a measurement.

    Args:
      result: the recommendation.
      grid: its runs.
      again: the runs with fresh seeds; runs at other settings are ignored.
    """
    advice, found = result.advice, []
    for cell in checked_cells(result, grid):
        assert advice is not None
        reached = [updates_to_target(row) for row in again if cell_of(row) == cell]
        predicted = next(one.updates for one in advice.candidates if one.batch_size == cell.batch_size)
        measured = _bounded(np.log([math.inf if count is None else count for count in reached]))
        if predicted is None or not reached:
            continue
        off = None if measured is None else predicted[0] / measured[0] - 1
        found.append(CheckedPrediction(batch_size=cell.batch_size, predicted=predicted, measured=measured, off=off))
    return found


def at_the_best_rate(rates: list[list[float]]) -> float:
    """Returns the updates at the best rate, averaged over seeds, each with the rate that is best by the others.

    Where all seeds reached the target at some rate, those rates alone count.

    Args:
      rates: the updates of each seed, one list per rate; infinite: the seed did not reach the target.

    Example:
      >>> at_the_best_rate([[300.0, 310.0], [200.0, math.inf]])
      305.0
    """
    rates = [updates for updates in rates if all(map(math.isfinite, updates))] or rates
    seeds = range(min(map(len, rates)))
    if len(seeds) == 1:
        return min(updates[0] for updates in rates)

    def left_out(seed: int) -> float:
        return min(rates, key=lambda updates: sum(updates[s] for s in seeds if s != seed))[seed]

    return statistics.mean(map(left_out, seeds))
