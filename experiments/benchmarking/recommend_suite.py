"""The recommend suite: the quality, the cost and the predictions of recommendations beside exhaustive grids.

Each problem has three steps: a grid of batch sizes and rates, whose cells are runs to the target; a recommendation with
a tenth of the grid's time; and further runs with fresh seeds, at the best cell, at the recommended setting, and at
batch sizes of the grid that the recommendation has not tried. Each result is stored as soon as its run ends, and the
rows of the table follow from the stored results.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from .. import _files, _workdirs
from .._commands import PACKAGE
from .._errors import UsageError
from ..records.comparison import ComparedRow, Comparison, GridCost, RecommendationCost
from ..records.fields import Options
from ..records.recommendation import Advice, Recommendation
from ..records.studies import StudyRow
from ..studies import jobs
from ..studies.convergence import PAST_TARGET, Setting, grid_jobs, tuned_job
from ..studies.driver import Runner
from ..studies.executing.local import Local
from ..studies.executing.task import Executor
from ..studies.jobs import Job
from ..studies.recommending.run import FILE, recommend
from ..studies.settings import with_held_out
from .recommend_compare import (
    Cell,
    best_cell,
    cell_of,
    cells,
    check_predictions,
    checked_cells,
    compare,
    cost,
    recommended_cell,
)
from .recommend_table import table
from .suite import Keep, forget

PEERS = ()
GRID, RECOMMENDATION, AGAIN = "grid", "recommendation", "again"
# The time limit of a recommendation, as a share of the grid's time: useful only if far cheaper than the grid. It is to
# cost a tenth at most, and its last run may take longer than expected.
BUDGET_SHARE = 0.095
# The seeds with which two settings are compared, and the fewer with which a prediction is checked.
FRESH_SEEDS = tuple(range(11, 23))
CHECKING_SEEDS = FRESH_SEEDS[:6]
# Where runs take a moment; and where several of twelve miss the target, which leaves the interval of the ratio open.
MANY_SEEDS = tuple(range(11, 35))
# The epoch limit of a run with a fresh seed, in multiples of the grid's limit: a slow seed should still reach the
# target, since one seed that does not leaves the comparison without a ratio.
PATIENCE_FACTOR = 2


class Problem(NamedTuple):
    """A target and the grid that searches for the fastest way to it.

    Attributes:
      name: the name of the problem and of its folder.
      options: the options of `TrainConfig`: data set, model and norm, or a problem.
      target: the accuracy or the loss to reach.
      batch_sizes: the batch sizes of the grid.
      rates: the learning rates of the grid.
      max_epochs: the number of epochs after which a run counts as not having reached the target.
      seeds: the seeds of every cell.
      goal: the kind of the target.
      fresh_seeds: the seeds of the runs at the settings that are compared.
      checking_seeds: the seeds of the runs where predictions are checked.
    """

    name: str
    options: Options
    target: float
    batch_sizes: tuple[int, ...]
    rates: tuple[float, ...]
    max_epochs: int
    seeds: tuple[int, ...] = (0, 1)
    goal: Literal["accuracy", "loss"] = "accuracy"
    fresh_seeds: tuple[int, ...] = FRESH_SEEDS
    checking_seeds: tuple[int, ...] = CHECKING_SEEDS

    def setting(self, epochs_factor: int = 1) -> Setting:
        """Returns the grid as a setting of the batch-size study, with the epoch limit multiplied by a factor."""
        return Setting(
            target=self.target,
            fixed_sizes=(),
            tuned_sizes=self.batch_sizes,
            rates=self.rates,
            max_epochs=epochs_factor * self.max_epochs,
            seeds=self.seeds,
        )


_PROBLEMS = f"{PACKAGE}.problems"
_SIZES = (32, 64, 128, 256, 512)
# Of problems whose runs take a moment.
_SMALLER, _WIDE = (4, 8, 16, 32, 64, 128), (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
_FEW, _OF_ADAM = (16, 32, 64, 128), (0.002, 0.004, 0.008, 0.016)
# An average of the weights passes a target near what a model can reach sooner, and less by chance.
_AVERAGE = {"average_weights": 30_000}
_HIGHER, _LOWER = (0.01, 0.02, 0.04, 0.08, 0.16), (0.005, 0.01, 0.02, 0.04, 0.08)
PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("mnist", {"dataset": "mnist", "norm": "batch", **_AVERAGE}, 0.988, _SIZES, _HIGHER, 10),
        Problem("mnist_no_norm", {"dataset": "mnist", "norm": "none", **_AVERAGE}, 0.985, _SIZES, _LOWER, 10),
        Problem(
            "digits",
            {"dataset": "digits", "norm": "none", **_AVERAGE},
            0.96,
            _SIZES,
            _LOWER,
            10,
            fresh_seeds=MANY_SEEDS,
        ),
        Problem(
            "mlp",
            {"problem": f"{_PROBLEMS}.mlp:problem"},
            0.96,
            _SMALLER,
            _WIDE,
            20,
            (0, 1, 2),
            fresh_seeds=MANY_SEEDS,
            checking_seeds=MANY_SEEDS,
        ),
        Problem(
            "classifier",
            {"problem": f"{_PROBLEMS}.classifier:problem"},
            0.1,
            _SMALLER,
            _WIDE,
            40,
            (0, 1, 2),
            goal="loss",
            fresh_seeds=MANY_SEEDS,
            checking_seeds=MANY_SEEDS,
        ),
        Problem(
            "transformer",
            {"problem": f"{_PROBLEMS}.transformer:problem"},
            1.8,
            _FEW,
            _OF_ADAM,
            6,
            goal="loss",
            fresh_seeds=FRESH_SEEDS[:4],
            checking_seeds=FRESH_SEEDS[:4],
        ),
    )
}
PARTS = tuple(PROBLEMS)


def run(
    parts: Sequence[str],
    *,
    folder: Path,
    data_dir: str | None = None,
    keep: Keep = forget,
    executor: Callable[[Path], Executor] = Local,
) -> list[Comparison]:
    """Measures problems; stored runs are reused, and a finished problem needs no data.

    Args:
      parts: names from `PARTS`.
      folder: the parent of one folder per problem.
      data_dir: the data directory of TFDS; None: TFDS's own.
      keep: a function that is given the rows so far after each problem.
      executor: returns what runs the jobs of the grids and those that check predictions, given their folder. What is
        timed is run on this machine alone.

    Returns:
      One row per problem, from `tabulate`.
    """
    rows = []
    for problem in (PROBLEMS[name] for name in parts):
        place = folder / problem.name
        if not _is_done(problem, place):
            measure(problem, place, data_dir, executor)
        rows.append(tabulate(problem, place))
        keep(rows)
        print("\n".join([*table(rows[-1:]), ""]), flush=True)
    if len(rows) > 1:
        print("\n".join(table(rows)))
    return rows


def measure(
    problem: Problem, folder: Path, data_dir: str | None = None, executor: Callable[[Path], Executor] = Local
) -> None:
    """Makes the missing runs of a problem: the grid, then the recommendation, then both settings with fresh seeds."""
    # Read first: a recommendation of another problem must be refused before a row is added.
    result = _result(problem, folder)
    of_data = "dataset" in problem.options
    options = problem.options | ({"data_dir": data_dir} if data_dir and of_data else {})
    # The parts of a problem have locks of their own, and one is removed and made anew.
    with _workdirs.driving(folder):
        _measure(problem, folder, options, result, executor)


def _measure(
    problem: Problem,
    folder: Path,
    options: Options,
    result: Recommendation | None,
    executor: Callable[[Path], Executor],
) -> None:
    data = with_held_out(options)
    with Runner(folder / GRID, executor) as runner:
        grid = runner.run_all(grid_jobs(data, problem.setting(), is_smoothed=True))
    if failed := runner.failed():
        raise UsageError(
            f"{len(failed)} runs of the grid in {folder / GRID} failed: {', '.join(failed):.300}; the budget of the "
            "recommendation follows from all of them; run the same command again to retry them"
        )
    place = folder / RECOMMENDATION
    if result is None:
        # Start from an empty folder and an empty compilation cache, so that the measured cost is complete.
        shutil.rmtree(place, ignore_errors=True)
        with (
            tempfile.TemporaryDirectory() as compiled,
            _environment(JAX_COMPILATION_CACHE_DIR=compiled, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3"),
        ):
            minutes = BUDGET_SHARE * cost(grid) / 60
            result = recommend(options, target=problem.target, goal=problem.goal, minutes=minutes, folder=place)
    longer = problem.setting(PATIENCE_FACTOR)

    def again(cells: Sequence[Cell], seeds: Sequence[int]) -> list[Job]:
        return [
            tuned_job(data, longer, cell.batch_size, cell.rate, seed, is_smoothed=True)
            for cell in cells
            for seed in seeds
        ]

    with Runner(folder / AGAIN) as runner:
        runner.run_all(again(_compared(grid, result.advice), problem.fresh_seeds))
    with Runner(folder / AGAIN, executor) as runner:
        runner.run_all(again(checked_cells(result, grid), problem.checking_seeds))


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets environment variables for the processes that are started inside this context."""
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


def tabulate(problem: Problem, folder: Path) -> Comparison:
    """Reads the files of a problem's folder and returns its row of the table.

    Raises:
      UsageError: the folder holds no recommendation, or a damaged one.
    """
    grid, again = rows_of(problem, folder / GRID), rows_of(problem, folder / AGAIN)
    path = folder / RECOMMENDATION / FILE
    result = _result(problem, folder)
    if result is None:
        raise UsageError(f"{path.parent} holds no {FILE}")
    best, recommended, ratio = compare(best_cell(grid), recommended_cell(result.advice), again)
    if result.advice is not None and recommended is not None:
        try:
            predicted = result.advice.chosen.seconds
        except LookupError as error:
            size = result.advice.batch_size
            raise UsageError(
                f"{path} has no candidate of the size it recommends, {size}; remove it to make it again"
            ) from error
        recommended = msgspec.structs.replace(recommended, predicted=predicted)
    return Comparison(
        problem=problem.name,
        target=problem.target,
        goal=problem.goal,
        grid=GridCost(cells=len(cells(grid)), runs=len(grid), seconds=cost(grid)),
        recommendation=RecommendationCost(seconds=result.seconds, not_measured=result.evidence.not_measured),
        best=best,
        recommended=recommended,
        ratio=ratio,
        predictions=check_predictions(result, grid, again),
    )


def _is_done(problem: Problem, folder: Path) -> bool:
    grid = rows_of(problem, folder / GRID)
    asked = {Cell(*pair) for pair in itertools.product(problem.batch_sizes, problem.rates)}
    if not set(itertools.product(asked, problem.seeds)) <= _seeds(grid):
        return False
    result = _result(problem, folder)
    if result is None:
        return False
    wanted = {
        *itertools.product(_compared(grid, result.advice), problem.fresh_seeds),
        *itertools.product(checked_cells(result, grid), problem.checking_seeds),
    }
    return wanted <= _seeds(rows_of(problem, folder / AGAIN))


def _seeds(rows: Sequence[StudyRow]) -> set[tuple[Cell, int]]:
    return {(cell_of(row), row.seed) for row in rows}


def _compared(grid: Sequence[StudyRow], advice: Advice | None) -> list[Cell]:
    """Returns the best cell of the grid, and the recommended setting if there is one."""
    return [cell for cell in (best_cell(grid), recommended_cell(advice)) if cell is not None]


def rows_of(problem: Problem, folder: Path) -> list[ComparedRow]:
    """Returns the runs in a folder that belong to the problem and have ended or diverged.

    Their target counts as it does in a recommendation.
    """
    asked = {**problem.options, f"target_{problem.goal}": problem.target, "past_target": PAST_TARGET}.items()
    rows = {row.key: row for row in _files.read_rows(folder / jobs.FILE, ComparedRow)[0]}
    return [row for row in rows.values() if row.is_result and asked <= row.options.items()]


def _result(problem: Problem, folder: Path) -> Recommendation | None:
    """Returns the recommendation in a folder; None: there is none yet.

    Raises:
      UsageError: the recommendation belongs to another problem, or its file is damaged.
    """
    path = folder / RECOMMENDATION / FILE
    if not os.path.lexists(path):
        return None
    result = _files.read_json(path, Recommendation)
    evidence = result.evidence
    target = (evidence.target, evidence.goal)
    if target != (problem.target, problem.goal) or not problem.options.items() <= evidence.options.items():
        raise UsageError(
            f"{path} is of another problem, with the target {evidence.target} and {evidence.options}; "
            "take another --workdir, or remove it"
        )
    return result
