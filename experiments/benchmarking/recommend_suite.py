"""Recommendations beside exhaustive grids: how near the best they come, at what cost, and how well they predict.

Of each problem there are a grid of batch sizes and rates, each cell a run to the target; a recommendation with a tenth
of the grid's time; and the best cell and the recommended setting again, with seeds that neither has seen. All are kept
as they end, and the rows of the table follow from what is kept.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments import _files, records
from experiments._errors import UsageError
from experiments._shapes import every, record, whole
from experiments.benchmarking.recommend_table import table
from experiments.studies import jobs
from experiments.studies.convergence import CONFIDENCE, Setting, grid_jobs, tuned_job, updates_to_target
from experiments.studies.jobs import Runner
from experiments.studies.recommending.curves import best_runs
from experiments.studies.recommending.run import FILE, recommend
from experiments.studies.recommending.target import step_seconds
from experiments.studies.settings import with_held_out

PEERS = ()
GRID, RECOMMENDATION, AGAIN = "grid", "recommendation", "again"
# Of the time of the grid, what a recommendation may take.
SHARE = 0.1
FRESH_SEEDS = (11, 12, 13, 14, 15, 16)
# Of the most epochs of a grid's cell, how many a run with a fresh seed may take.
PATIENCE = 2


class Problem(NamedTuple):
    """What is to be reached, and the grid.

    Attributes:
      options: of `TrainConfig`: data set, model, norm.
      target: accuracy.
      batch_sizes: of the grid.
      rates: of the grid.
      max_epochs: after which a cell counts as not having reached the target.
      seeds: of every cell.
    """

    options: dict[str, Any]
    target: float
    batch_sizes: tuple[int, ...]
    rates: tuple[float, ...]
    max_epochs: int
    seeds: tuple[int, ...] = (0, 1)


class Cell(NamedTuple):
    """A batch size and a rate.

    Attributes:
      batch_size: global.
      rate: constant.
    """

    batch_size: int
    rate: float


_SIZES = (32, 64, 128, 256, 512)
PROBLEMS = {
    "mnist": Problem({"dataset": "mnist", "norm": "batch"}, 0.988, _SIZES, (0.01, 0.02, 0.04, 0.08, 0.16), 5),
    "mnist_no_norm": Problem({"dataset": "mnist", "norm": "none"}, 0.985, _SIZES, (0.005, 0.01, 0.02, 0.04, 0.08), 5),
    "digits": Problem({"dataset": "digits", "norm": "none"}, 0.96, _SIZES, (0.005, 0.01, 0.02, 0.04, 0.08), 5),
}
PARTS = tuple(PROBLEMS)
# What is read here of a run.
_ROW = every(
    records.study_row,
    record(
        {"options": record({"batch_size": whole(1), "learning_rate": records.POSITIVE, "seed": whole(0)})},
        {
            "summary": record(
                {
                    "updates": whole(1),
                    "seconds": record(dict.fromkeys(("compute", "in all"), records.SHARE)),
                    "target": record({}),
                }
            )
        },
    ),
)


def run(parts: Sequence[str], *, folder: Path, data_dir: str | None = None) -> list[dict[str, Any]]:
    """Measures problems; what the folder holds already is not run again, and a problem that is done needs no data.

    Args:
      parts: names from `PARTS`.
      folder: with a folder for each.
      data_dir: of TFDS; None: its own.

    Returns:
      A row a problem, from `tabulate`.
    """
    rows = []
    for name in parts:
        if not _is_done(PROBLEMS[name], folder / name):
            measure(PROBLEMS[name], folder / name, data_dir)
        rows.append({"problem": name, **tabulate(PROBLEMS[name], folder / name)})
        print("\n".join([*table(rows[-1:]), ""]), flush=True)
    if len(rows) > 1:
        print("\n".join(table(rows)))
    return rows


def measure(problem: Problem, folder: Path, data_dir: str | None = None) -> None:
    """Runs what a problem lacks: its grid, then the recommendation, then both settings with fresh seeds."""
    # Of another problem it is refused before a row is added.
    result = _result(problem, folder)
    options = problem.options | ({"data_dir": data_dir} if data_dir else {})
    data = with_held_out(options)
    setting = Setting(problem.target, (), problem.batch_sizes, problem.rates, problem.max_epochs, problem.seeds)
    with Runner(folder / GRID) as runner:
        grid = runner.run_all(grid_jobs(data, setting))
    place = folder / RECOMMENDATION
    if result is None:
        # From nothing, in one go and with all of its compilation, so that its cost is all there.
        shutil.rmtree(place, ignore_errors=True)
        with (
            tempfile.TemporaryDirectory() as compiled,
            _environment(JAX_COMPILATION_CACHE_DIR=compiled, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3"),
        ):
            result = recommend(options, target=problem.target, minutes=SHARE * _cost(grid) / 60, folder=place)
    with Runner(folder / AGAIN) as runner:
        for cell in _compared(grid, result["advice"]).values():
            longer = dataclasses.replace(setting, max_epochs=PATIENCE * setting.max_epochs)
            runner.run_all(tuned_job(data, longer, cell.batch_size, cell.rate, seed) for seed in FRESH_SEEDS)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Of processes that are started here."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tabulate(problem: Problem, folder: Path) -> dict[str, Any]:
    """The row of a problem, from the files of its folder."""
    grid, again = _rows(problem, folder / GRID), _rows(problem, folder / AGAIN)
    result = _result(problem, folder)
    if result is None:
        raise UsageError(f"{folder / RECOMMENDATION} holds no {FILE}")
    cells = _compared(grid, result["advice"])
    fresh = {which: [row for row in again if _cell(row) == cell] for which, cell in cells.items()}
    found = compare(cells, fresh)
    if advice := result["advice"]:
        of_it = next((p for p in advice["candidates"] if p["batch_size"] == advice["batch_size"]), None)
        if of_it is None:
            path, size = folder / RECOMMENDATION / FILE, advice["batch_size"]
            raise UsageError(f"{path} has no candidate of the size it recommends, {size}; remove it to make it again")
        found["recommended"]["predicted"] = of_it["seconds"]
    return {
        "target": problem.target,
        "grid": {"cells": len(_cells(grid)), "runs": len(grid), "seconds": _cost(grid)},
        "recommendation": {"seconds": result["seconds"], "not_measured": result["evidence"]["not_measured"]},
        **found,
        "predictions": predictions(result, grid),
    }


def _is_done(problem: Problem, folder: Path) -> bool:
    grid = _rows(problem, folder / GRID)
    cells = {Cell(*pair) for pair in itertools.product(problem.batch_sizes, problem.rates)}
    if not set(itertools.product(cells, problem.seeds)) <= _seeds(grid):
        return False
    result = _result(problem, folder)
    if result is None:
        return False
    compared = _compared(grid, result["advice"]).values()
    return set(itertools.product(compared, FRESH_SEEDS)) <= _seeds(_rows(problem, folder / AGAIN))


def _seeds(rows: Sequence[dict[str, Any]]) -> set[tuple[Cell, int]]:
    return {(_cell(row), row["options"]["seed"]) for row in rows}


def _rows(problem: Problem, folder: Path) -> list[dict[str, Any]]:
    """The problem's runs of a folder that ended, if only by a loss that diverged."""
    asked = {**problem.options, "target_accuracy": problem.target}.items()
    rows = {row["key"]: row for row in _files.read_rows(folder / jobs.FILE, _ROW)[0]}
    ended = [row for row in rows.values() if "summary" in row or row.get("diverged")]
    return [row for row in ended if asked <= row["options"].items()]


def _result(problem: Problem, folder: Path) -> dict[str, Any] | None:
    """The recommendation that a folder holds."""
    path = folder / RECOMMENDATION / FILE
    if not os.path.lexists(path):
        return None
    result = _files.read_json(path, records.RECOMMENDATION)
    evidence = result["evidence"]
    if evidence["target"] != problem.target or not problem.options.items() <= evidence["options"].items():
        raise UsageError(
            f"{path} is of another problem, with the target {evidence['target']} and {evidence['options']}; "
            "take another --workdir, or remove it"
        )
    return result


def _compared(grid: Sequence[dict[str, Any]], advice: dict[str, Any] | None) -> dict[str, Cell]:
    """The best cell of the grid, and the setting that is recommended if there is one."""
    cells = {"best": best_cell(grid, _step_seconds(grid))}
    return cells | ({"recommended": Cell(advice["batch_size"], advice["learning_rate"])} if advice else {})


def _cost(grid: Sequence[dict[str, Any]]) -> float:
    """Seconds of all runs, with compilation and evaluation."""
    return sum(row["summary"]["seconds"]["in all"] for row in grid if "summary" in row)


def _cell(row: dict[str, Any]) -> Cell:
    return Cell(row["options"]["batch_size"], row["options"]["learning_rate"])


def _cells(grid: Sequence[dict[str, Any]]) -> dict[Cell, list[float]]:
    """The updates to the target of every cell, by seed; infinite where it was not reached."""
    cells: dict[Cell, list[float]] = defaultdict(list)
    for row in grid:
        reached = updates_to_target(row)
        cells[_cell(row)].append(math.inf if reached is None else reached)
    return cells


def _step_seconds(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Seconds of computing of an update by batch size: the median of the runs, so that no moment decides."""
    seconds = defaultdict(list)
    for row in rows:
        if "summary" in row:
            seconds[row["options"]["batch_size"]].append(step_seconds(row))
    return {size: statistics.median(values) for size, values in seconds.items()}


def best_cell(grid: Sequence[dict[str, Any]], seconds: dict[int, float]) -> Cell:
    """The cell with the least time to the target, the mean of its seeds' updates times the median time of an update."""
    return min(
        _cells(grid).items(), key=lambda item: statistics.mean(item[1]) * seconds.get(item[0].batch_size, math.inf)
    )[0]


def compare(cells: dict[str, Cell], again: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The cells with their updates and times to the target, and the ratio of recommended to best with its interval.

    The ratio is that of geometric means; its interval is Welch's, of the logarithms of the updates. The time of an
    update is the median of the runs that are compared, for those of the grid may be of another hour.
    """
    seconds = _step_seconds([row for rows in again.values() for row in rows])
    found: dict[str, Any] = {}
    logs = {}
    for which, cell in cells.items():
        reached = [updates_to_target(row) for row in again[which]]
        # None: all of its runs diverged.
        step = seconds.get(cell.batch_size)
        found[which] = {**cell._asdict(), "updates": reached, "step_seconds": step, "seconds": None}
        if step is not None and None not in reached:
            logs[which] = np.log(np.array(reached, float) * step)
            found[which]["seconds"] = float(np.exp(logs[which].mean()))
    if len(logs) < 2:
        return {**found, "ratio": None}
    if cells["best"] == cells["recommended"]:
        return {**found, "ratio": [1.0, 1.0, 1.0]}
    test: Any = stats.ttest_ind(logs["recommended"], logs["best"], equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    ratio = logs["recommended"].mean() - logs["best"].mean()
    # Without any spread there is no interval.
    ends = (low, high) if np.isfinite(low) else (ratio, ratio)
    return {**found, "ratio": [float(np.exp(value)) for value in (ratio, *ends)]}


def predictions(result: dict[str, Any], grid: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The updates that a recommendation predicts at batch sizes that it has not tried, beside those of the grid.

    Those of the grid are at the rate that is best there by all seeds but one, of that one; and the mean of these, one
    after the other. (At the rate that is best by all of them the least of some noisy numbers would be taken.)
    """
    advice = result["advice"]
    if not advice:
        return []
    tried = {run["batch_size"] for run in best_runs(result["evidence"]["runs"])}
    by_size: dict[int, list[list[float]]] = defaultdict(list)
    for cell, updates in _cells(grid).items():
        by_size[cell.batch_size].append(updates)
    best = {size: _at_the_best_rate(rates) for size, rates in by_size.items()}
    found = []
    for prediction in advice["candidates"]:
        size = prediction["batch_size"]
        if prediction["updates"] is None or size in tried or not math.isfinite(best.get(size, math.inf)):
            continue
        off = prediction["updates"][0] / best[size] - 1
        found.append({"batch_size": size, "predicted": prediction["updates"], "measured": best[size], "off": off})
    return found


def _at_the_best_rate(rates: list[list[float]]) -> float:
    """The updates at the best of some rates, given by rate and seed."""
    seeds = range(min(map(len, rates)))
    if len(seeds) == 1:
        return min(updates[0] for updates in rates)

    def left_out(seed: int) -> float:
        return min(rates, key=lambda updates: sum(updates[s] for s in seeds if s != seed))[seed]

    return statistics.mean(map(left_out, seeds))
