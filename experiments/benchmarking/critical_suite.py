"""The critical suite: gradient noise, branches and a fit of runs, and which predicts the updates to a target.

The problems, their grids and their targets are those of the recommend suite. From a run at the smallest batch size the
noise scale is measured at two points, and branches with the other batch sizes of the grid are trained. Either gives the
critical batch size along the run, and from the updates of that run those at every other batch size follow. The fit
predicts each size from the runs at the others. All are compared with the grid.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from batchnorm_jax.batch_size import fit_steps_to_target, predict_steps

from .. import _files
from .._commands import PACKAGE
from .._errors import UsageError
from ..problems import loading
from ..problems.problem import Problem as Program
from ..records.benchmarks.critical import CriticalFile, CriticalPoint, CriticalRow, Method, PredictedUpdates
from ..records.branching import Branching
from ..records.fields import finite
from ..records.studies import StudyRow
from ..studies import branching
from ..studies.settings import with_held_out
from ..training.as_problem import as_problem
from ..training.config.options import TrainConfig
from . import recommend_suite
from .recommend_compare import at_the_best_rate, best_rates, cells
from .recommend_suite import GRID, PROBLEMS, Problem
from .recommend_table import NEAR, markdown
from .suite import Keep, Suite, forget

PARTS = tuple(PROBLEMS)
BRANCHES = "branches"
# The points of the run, as shares of the examples to the target. A branch is as long as the run before it, so that the
# branches cover most of the run.
POINTS = (0.25, 0.5)
SEEDS = (0, 1, 2)
METHODS = (
    "method",
    "problems",
    "off by, in the geometric mean",
    f"within {NEAR:.0%}",
    "nearest of the three",
    "cost, median",
)
HEAD = ("problem", "method", "critical batch size", "updates, predicted and measured, by batch size", "off by", "cost")


class Measured(NamedTuple):
    """The grid of a problem.

    Attributes:
      problem: the problem.
      rows: the runs.
      updates: the updates to the target by batch size, at the best rate; infinite where it was not reached.
      batch_size: the smallest batch size.
      rate: the best rate there.
    """

    problem: Problem
    rows: Sequence[StudyRow]
    updates: dict[int, float]
    batch_size: int
    rate: float

    @property
    def examples(self) -> float:
        """The examples to the target of a run at the smallest batch size."""
        return self.updates[self.batch_size] * self.batch_size


def run(parts: Sequence[str], *, folder: Path, data_dir: str | None = None, keep: Keep = forget) -> list[CriticalRow]:
    """Trains the branches that are missing, and compares the three methods.

    Args:
      parts: names from `PARTS`.
      folder: the parent of one folder per problem, each with a grid.
      data_dir: the data directory of TFDS; None: TFDS's own.
      keep: a function that is given the rows so far after each problem.

    Raises:
      UsageError: a problem has no grid.
    """
    rows: list[CriticalRow] = []
    for name in parts:
        measured = grid_of(PROBLEMS[name], folder / name)
        answer = _branching(measured, folder / name / BRANCHES, data_dir)
        rows += compare(measured, answer)
        keep(rows)
        print("\n".join([*markdown(HEAD, [_cells(row) for row in rows[-3:]]), ""]), flush=True)
    if len(parts) > 1:
        print("\n".join(table(rows)))
    return rows


def grid_of(problem: Problem, folder: Path) -> Measured:
    """Reads the grid of a problem.

    Raises:
      UsageError: there is none, or none of its runs at the smallest batch size reached the target.
    """
    rows = recommend_suite.rows_of(problem, folder / GRID)
    found = cells(rows)
    updates = {
        size: at_the_best_rate([counts for cell, counts in found.items() if cell.batch_size == size])
        for size in sorted({cell.batch_size for cell in found})
    }
    size = min(updates, default=0)
    if not math.isfinite(updates.get(size, math.inf)) or len(updates) < 2:
        raise UsageError(
            f"{folder / GRID} has no runs to the target at two batch sizes or more; make them with --suite=recommend "
            f"--parts={problem.name}"
        )
    return Measured(problem, rows, updates, size, best_rates(rows)[size])


def _branching(measured: Measured, folder: Path, data_dir: str | None) -> Branching:
    """Returns the answers of branches in a folder, which are trained if they are not there."""
    problem = measured.problem
    request = branching.Request(
        problem=str(problem.options.get("problem", problem.name)),
        batch_size=measured.batch_size,
        learning_rate=measured.rate,
        branch_points=points_of(measured),
        multiples=tuple(size // measured.batch_size for size in measured.updates if size > measured.batch_size),
        seeds=SEEDS,
        workdir=str(folder),
    )
    path = folder / branching.RESULT
    if path.exists():
        found = _files.read_json(path, Branching)
        made = found.problem, found.batch_size, found.learning_rate, tuple(point.point for point in found.points)
        # Another grid may have another best rate, or another number of examples to the target.
        if made == (request.problem, request.batch_size, request.learning_rate, points_of(measured)):
            return found
    folder.mkdir(parents=True, exist_ok=True)
    return branching.Study(request, _program(problem, measured, data_dir)).run(
        f"python -m {PACKAGE}.benchmark --suite={SUITE.name} --parts={problem.name}"
    )


def points_of(measured: Measured) -> tuple[int, ...]:
    """Returns the examples after which the run at the smallest batch size is branched."""
    return tuple(branching.whole_updates(round(share * measured.examples), measured.batch_size) for share in POINTS)


def _program(problem: Problem, measured: Measured, data_dir: str | None) -> Program:
    """Returns the training of a problem's grid as five functions."""
    name = problem.options.get("problem")
    if name is not None:
        return loading.load("problem", str(name))
    options: dict[str, Any] = {**problem.options, "data_dir": data_dir}
    data = with_held_out(options)
    return as_problem(
        TrainConfig(**options, **data.constant, batch_size=measured.batch_size, learning_rate=measured.rate)
    )


def compare(measured: Measured, answer: Branching) -> list[CriticalRow]:
    """Returns a row per method.

    Args:
      measured: the grid.
      answer: the branches of a run at its smallest batch size, with the noise scale at each point.
    """
    run = measured.examples
    last = answer.points[-1].point
    branched = sum(_branch_examples(measured, point.point) for point in answer.points)
    noise = [
        CriticalPoint(examples=point.point, value=point.noise_scale, interval=point.noise_interval)
        for point in answer.points
    ]
    branches = [
        CriticalPoint(examples=point.point, value=point.critical_batch_size, interval=point.interval)
        for point in answer.points
        if point.why_not is None
    ]
    measuring = len(answer.points) * branching.NOISE_BATCHES * branching.NOISE_SHARDS * branching.SHARD_EXAMPLES
    known = any(point.noise_interval != (None, None) or point.noise_scale is not None for point in answer.points)
    return [
        _of_points(measured, "noise", noise if known else [], 1 + measuring / run, "the noise was not measured"),
        _of_points(
            measured,
            "branches",
            branches,
            1 + (last + len(SEEDS) * branched) / run,
            next((point.why_not for point in answer.points if point.why_not is not None), None),
        ),
        _of_fit(measured),
    ]


def _branch_examples(measured: Measured, point: int) -> int:
    """Returns the examples of the branches of a seed at a point: the original, and each rate at each other size."""
    branches = 1 + (len(measured.updates) - 1) * len(branching.Request.rate_factors)
    return branches * branching.usual_length(point, max(measured.updates))


def updates_ratio(critical: Sequence[float], batch_size: float, other: float) -> float:
    """Returns by what factor the updates to a target change with the batch size.

    A stretch of a run takes updates in proportion to 1 + B_crit / B, with its own critical batch size. Each value
    stands for an equal part of the run.

    Args:
      critical: the critical batch size along the run; infinite: the updates fall in proportion.
      batch_size: the batch size of the run.
      other: another batch size.

    Example:
      >>> updates_ratio([100.0], 100, 50), updates_ratio([float("inf")], 100, 50)
      (1.5, 2.0)
    """

    def ratio(value: float) -> float:
        return batch_size / other if math.isinf(value) else (1 + value / other) / (1 + value / batch_size)

    return statistics.mean(map(ratio, critical))


def _of_points(
    measured: Measured, method: Method, points: list[CriticalPoint], runs: float, why_not: str | None
) -> CriticalRow:
    """Returns the row of a method that finds the critical batch size at points of the run."""
    critical = [math.inf if point.value is None else point.value for point in points]
    start = measured.updates[measured.batch_size]
    return _row(
        measured,
        method,
        points,
        lambda size: start * updates_ratio(critical, measured.batch_size, size),
        runs,
        why_not=None if points else why_not,
    )


def _of_fit(measured: Measured) -> CriticalRow:
    """Returns the row of the fit of runs: each size is predicted from the runs at the others."""
    best = _best_runs(measured)
    fit = _fit(best)
    low, high = fit.intervals["critical_batch_size"]
    whole = CriticalPoint(examples=None, value=finite(fit.critical_batch_size), interval=(finite(low), finite(high)))
    spent = sum(row.summary.updates * row.batch_size for row in measured.rows if row.summary is not None)
    return _row(
        measured,
        "fit",
        [whole],
        lambda size: predict_steps(_fit({other: runs for other, runs in best.items() if other != size}), size),
        spent / measured.examples,
    )


def _best_runs(measured: Measured) -> dict[int, list[tuple[float, bool]]]:
    """Returns, by batch size, the updates of each run at the best rate, and whether it reached the target."""
    by_cell: dict[int, dict[float, list[tuple[float, bool]]]] = {}
    for row in measured.rows:
        if row.summary is None:
            continue
        reached = row.summary.reached_after
        run = (row.summary.updates, False) if reached is None else (reached, True)
        by_cell.setdefault(row.batch_size, {}).setdefault(row.learning_rate, []).append(run)
    return {
        size: min(rates.values(), key=lambda runs: (sum(not ok for _, ok in runs), sum(updates for updates, _ in runs)))
        for size, rates in by_cell.items()
    }


def _fit(best: dict[int, list[tuple[float, bool]]]) -> Any:
    runs = [(size, *run) for size, there in best.items() for run in there]
    sizes, updates, reached = zip(*runs, strict=True)
    return fit_steps_to_target(sizes, updates, censored=[not ok for ok in reached])


def _row(
    measured: Measured,
    method: Method,
    points: list[CriticalPoint],
    predict: Callable[[int], float],
    runs: float,
    why_not: str | None = None,
) -> CriticalRow:
    predictions = [
        PredictedUpdates(batch_size=size, predicted=predict(size), measured=updates)
        for size, updates in measured.updates.items()
        if points and size != measured.batch_size and math.isfinite(updates)
    ]
    off = [abs(math.log(p.predicted / p.measured)) for p in predictions]
    return CriticalRow(
        problem=measured.problem.name,
        method=method,
        batch_size=measured.batch_size,
        points=points,
        predictions=predictions,
        factor=math.exp(statistics.mean(off)) if off else None,
        runs=runs,
        why_not=why_not,
    )


def table(rows: Sequence[CriticalRow]) -> list[str]:
    """Returns two tables in Markdown: a line per method, and one per problem and method."""
    by_problem: dict[str, dict[Method, float]] = {}
    for row in rows:
        if row.factor is not None:
            by_problem.setdefault(row.problem, {})[row.method] = row.factor
    nearest = [min(found, key=lambda method: found[method]) for found in by_problem.values()]
    methods: list[Method] = list(dict.fromkeys(row.method for row in rows))
    return [
        *markdown(METHODS, [_of_method(method, rows, nearest.count(method)) for method in methods]),
        "",
        *markdown(HEAD, [_cells(row) for row in rows]),
    ]


def _of_method(method: Method, rows: Sequence[CriticalRow], nearest: int) -> tuple[str, ...]:
    """Returns the cells of a method, over all problems."""
    factors = [row.factor for row in rows if row.method == method and row.factor is not None]
    off = f"{statistics.geometric_mean(factors):.2f}x" if factors else ""
    predictions = [p for row in rows if row.method == method for p in row.predictions]
    near = sum(abs(p.predicted / p.measured - 1) <= NEAR for p in predictions)
    runs = statistics.median(row.runs for row in rows if row.method == method)
    return method, f"{len(factors)}", off, f"{near} of {len(predictions)}", f"{nearest}", f"{runs:.3g} runs"


def _cells(row: CriticalRow) -> tuple[str, ...]:
    if row.why_not is not None:
        return row.problem, row.method, f"none: {row.why_not}", "", "", f"{row.runs:.3g} runs"
    return (
        row.problem,
        row.method,
        ", then ".join(_critical(point) for point in row.points),
        "; ".join(f"{p.batch_size}: {p.predicted:,.0f} for {p.measured:,.0f}" for p in row.predictions),
        "" if row.factor is None else f"{row.factor:.2f}x",
        f"{row.runs:.3g} runs",
    )


def _critical(point: CriticalPoint) -> str:
    low, high = point.interval
    value = "no bound" if point.value is None else _rough(point.value)
    if (low, high) == (None, None):
        return value
    return f"{value} ({_rough(low or 0)} to {'no bound' if high is None else _rough(high)})"


def _rough(value: float) -> str:
    """Returns a number to three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.6g}"


SUITE = Suite(
    name="critical",
    help="three measures of the critical batch size, beside the grids of the recommend suite: about half an hour",
    parts=PARTS,
    measure=lambda chosen, options, keep: run(
        chosen.parts, folder=options.folder, data_dir=options.data_dir, keep=keep
    ),
    file=CriticalFile,
)
