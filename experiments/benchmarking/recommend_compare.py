"""Comparison of a recommendation with the rows of an exhaustive grid: ratio of times, and predictions checked."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from scipy import stats

from experiments.records.comparison import CheckedPrediction, ComparedSetting
from experiments.records.recommendation import Advice, Recommendation
from experiments.records.studies import StudyRow
from experiments.studies.convergence import CONFIDENCE
from experiments.studies.recommending.curves import best_runs
from experiments.studies.recommending.runs import step_seconds, updates_to_target

Ratio = tuple[float, float, float]


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
    """Returns the setting that is recommended; None: none is."""
    return None if advice is None else Cell(advice.batch_size, advice.learning_rate)


def cost(grid: Sequence[StudyRow]) -> float:
    """Returns the seconds of all runs, with compilation and evaluation."""
    return sum(row.summary.seconds["in all"] for row in grid if row.summary is not None)


def cells(grid: Sequence[StudyRow]) -> dict[Cell, list[float]]:
    """Returns the updates to the target of every cell, one per seed; infinite where the target was not reached."""
    found: dict[Cell, list[float]] = defaultdict(list)
    for row in grid:
        reached = updates_to_target(row)
        found[cell_of(row)].append(math.inf if reached is None else reached)
    return found


def median_step_seconds(rows: Sequence[StudyRow]) -> dict[int, float]:
    """Returns seconds of computing per update by batch size: the median of the runs, so that no moment decides."""
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


def compare(
    best: Cell, recommended: Cell | None, again: Sequence[StudyRow]
) -> tuple[ComparedSetting, ComparedSetting | None, Ratio | None]:
    """Compares the recommended setting with the best of a grid, by runs of both with fresh seeds.

    The ratio is that of geometric means; its interval is Welch's, of the logarithms of the updates. The time per update
    is the median of the runs that are compared, because those of the grid may be of another hour.

    Args:
      best: the best setting of the grid.
      recommended: None: none is.
      again: runs, of which those of these settings count.

    Returns:
      Both settings with their updates and times to the target, and the ratio of recommended to best with its interval.
    """
    fresh = {cell: [row for row in again if cell_of(row) == cell] for cell in (best, recommended) if cell is not None}
    seconds = median_step_seconds([row for rows in fresh.values() for row in rows])
    settings = {cell: _setting(cell, rows, seconds.get(cell.batch_size)) for cell, rows in fresh.items()}
    if recommended is None:
        return settings[best], None, None
    logs = [_log_seconds(settings[cell]) for cell in (recommended, best)]
    return settings[best], settings[recommended], _ratio(*logs, is_same=best == recommended)


def _setting(cell: Cell, rows: Sequence[StudyRow], step: float | None) -> ComparedSetting:
    """Returns a setting with the outcome of its runs."""
    updates = [updates_to_target(row) for row in rows]
    setting = ComparedSetting(**cell._asdict(), updates=updates, step_seconds=step, seconds=None)
    logs = _log_seconds(setting)
    return setting if logs is None else msgspec.structs.replace(setting, seconds=float(np.exp(logs.mean())))


def _log_seconds(setting: ComparedSetting) -> np.ndarray | None:
    """Returns the logarithms of the seconds to the target, one per seed; None: some seed did not reach it."""
    if setting.step_seconds is None or not setting.updates or None in setting.updates:
        return None
    return np.log(np.array(setting.updates, float) * setting.step_seconds)


def _ratio(recommended: np.ndarray | None, best: np.ndarray | None, *, is_same: bool) -> Ratio | None:
    """Returns the ratio of geometric means, with its interval."""
    if recommended is None or best is None:
        return None
    if is_same:
        return 1.0, 1.0, 1.0
    test: Any = stats.ttest_ind(recommended, best, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    ratio = recommended.mean() - best.mean()
    # Without any spread there is no interval.
    ends = (low, high) if np.isfinite(low) else (ratio, ratio)
    return float(np.exp(ratio)), float(np.exp(ends[0])), float(np.exp(ends[1]))


def check_predictions(result: Recommendation, grid: Sequence[StudyRow]) -> list[CheckedPrediction]:
    """Compares the updates that a recommendation predicts at batch sizes that it has not tried with those of the grid.

    Updates of the grid are those of one seed, at the rate that is best there by all other seeds; and the mean of these
    over the seeds. (At the rate that is best by all seeds the least of some noisy numbers would be taken.)
    """
    if result.advice is None:
        return []
    tried = {run.batch_size for run in best_runs(result.evidence.runs)}
    by_size: dict[int, list[list[float]]] = defaultdict(list)
    for cell, updates in cells(grid).items():
        by_size[cell.batch_size].append(updates)
    best = {size: _at_the_best_rate(rates) for size, rates in by_size.items()}
    found = []
    for prediction in result.advice.candidates:
        size = prediction.batch_size
        if prediction.updates is None or size in tried or not math.isfinite(best.get(size, math.inf)):
            continue
        off = prediction.updates[0] / best[size] - 1
        found.append(CheckedPrediction(batch_size=size, predicted=prediction.updates, measured=best[size], off=off))
    return found


def _at_the_best_rate(rates: list[list[float]]) -> float:
    """Returns the updates at the best of some rates, given by rate and seed."""
    seeds = range(min(map(len, rates)))
    if len(seeds) == 1:
        return min(updates[0] for updates in rates)

    def left_out(seed: int) -> float:
        return min(rates, key=lambda updates: sum(updates[s] for s in seeds if s != seed))[seed]

    return statistics.mean(map(left_out, seeds))
