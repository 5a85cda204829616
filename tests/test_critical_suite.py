"""The critical suite: noise, branches and a fit, and the updates to a target that follow from each."""

import math

import msgspec
import pytest

from experiments import _files
from experiments._errors import UsageError
from experiments.benchmarking import critical_suite, recommend_suite
from experiments.benchmarking.critical_suite import compare, grid_of, table, updates_ratio
from experiments.records.benchmarks.critical import CriticalFile
from experiments.records.branching import Branching, BranchPoint
from experiments.studies import branching, jobs
from experiments.studies.convergence import PAST_TARGET
from tests import made

SIZES, RATES = (4, 16, 64, 256), (0.1, 0.2)
LEAST, CRITICAL = 100.0, 60.0
OPTIONS = {"problem": "experiments.problems.mlp:problem"}
PROBLEM = recommend_suite.Problem("mlp", OPTIONS, 0.9, SIZES, RATES, 10)


def updates(size):
    return LEAST * (1 + CRITICAL / size)


@pytest.fixture
def grid(tmp_path):
    """The folder of a problem, with a grid whose runs follow the curve; the larger rate takes a tenth longer."""
    folder = tmp_path / PROBLEM.name
    (folder / recommend_suite.GRID).mkdir(parents=True)
    for size in SIZES:
        for rate, slower in zip(RATES, (1.0, 1.1), strict=True):
            for seed in (0, 1):
                count = round(slower * updates(size))
                seconds = {"compute": 1.0, "in all": 2.0}
                summary = made.summary(reached=count, updates=count, seconds=seconds)
                options = {
                    **OPTIONS, "batch_size": size, "learning_rate": rate, "seed": seed, "target_accuracy": 0.9,
                    "past_target": PAST_TARGET,
                }  # fmt: skip
                row = made.row(f"tuned-b{size}-r{rate}-seed{seed}", options, summary=summary)
                _files.add_row(folder / recommend_suite.GRID / jobs.FILE, row)
    return folder


def made_later(row):
    """The run with twice the updates to its target."""
    count = 2 * row.summary.reached_after
    return msgspec.structs.replace(row, summary=made.summary(reached=count, updates=count, seconds=row.summary.seconds))


def points(**values):
    return [
        BranchPoint(point=point, loss=0.5, **{name: given[place] for name, given in values.items()})
        for place, point in enumerate((1_600, 3_200))
    ]


def answer(**values):
    return Branching(
        problem=OPTIONS["problem"], goal="accuracy", batch_size=4, learning_rate=0.1, tolerance=0.01,
        points=points(**values),
    )  # fmt: skip


def test_who_knows_the_critical_batch_size_predicts_the_updates(grid):
    measured = grid_of(PROBLEM, grid)
    assert (measured.batch_size, measured.rate) == (4, 0.1)
    noise, branches, fit = compare(
        measured,
        answer(
            noise_scale=(4 * CRITICAL, 4 * CRITICAL),
            noise_interval=((200.0, 300.0), (200.0, 300.0)),
            critical_batch_size=(CRITICAL, CRITICAL),
            interval=((50.0, 70.0), (None, None)),
        ),
    )
    assert branches.factor == pytest.approx(1, abs=0.01) and fit.factor == pytest.approx(1, abs=0.01)
    # A noise scale that is four times as large promises too much.
    assert noise.factor > 1.3 and all(p.predicted < p.measured for p in noise.predictions)
    assert fit.points[0].value == pytest.approx(CRITICAL, rel=0.05)
    assert [p.batch_size for p in branches.predictions] == [16, 64, 256]
    # Seven branches of a seed at each point, and three seeds.
    length = [max(point, branching.LEAST_UPDATES * 256) for point in (1_600, 3_200)]
    assert branches.runs == pytest.approx(1 + (3_200 + 3 * 7 * sum(length)) / measured.examples)
    text = "\n".join(table([noise, branches, fit]))
    assert "60 (50 to 70), then 60" in text and "mlp | fit" in text
    near = sum(p.predicted > 0.8 * p.measured for p in noise.predictions)
    assert near < 3 and f"| {noise.factor:.2f}x | {near} of 3 | 0 |" in text
    assert "| branches | 1 | 1.00x | 3 of 3 |" in text


def test_a_size_without_bound_lets_updates_fall_in_proportion():
    assert updates_ratio([math.inf, math.inf], 4, 16) == 0.25
    assert updates_ratio([0.0], 4, 16) == 1
    assert updates_ratio([4.0, math.inf], 4, 8) == pytest.approx((0.75 + 0.5) / 2)


def test_what_has_no_answer_says_why(grid):
    measured = grid_of(PROBLEM, grid)
    noise, branches, _ = compare(measured, answer(why_not=("the loss must fall", "the loss must fall")))
    assert noise.why_not == "the noise was not measured" and branches.why_not == "the loss must fall"
    assert noise.factor is None and branches.predictions == []
    assert "none: the loss must fall" in "\n".join(table([branches]))


def test_without_a_grid_the_suite_that_makes_it_is_named(tmp_path):
    with pytest.raises(UsageError, match="--suite=recommend --parts=mlp"):
        grid_of(PROBLEM, tmp_path)


def test_the_suite_trains_the_branches_once_and_keeps_the_rows(grid, monkeypatch, tmp_path):
    monkeypatch.setitem(critical_suite.PROBLEMS, "mlp", PROBLEM)
    monkeypatch.setattr(critical_suite, "SEEDS", (0,))
    monkeypatch.setattr(critical_suite, "POINTS", (0.25,))
    rows = critical_suite.run(["mlp"], folder=grid.parent)
    assert [row.method for row in rows] == ["noise", "branches", "fit"]
    assert rows[0].points[0].value > 0
    trained = []
    train = branching.Study.run
    monkeypatch.setattr(branching.Study, "run", lambda *args: trained.append(args) or train(*args))
    assert critical_suite.run(["mlp"], folder=grid.parent) == rows and not trained
    # Where the target is later, a quarter of the run is too.
    path = grid / recommend_suite.GRID / jobs.FILE
    later = [made_later(row) for row in jobs.read(path)]
    path.unlink()
    for row in later:
        _files.add_row(path, row)
    (point,) = critical_suite.points_of(grid_of(PROBLEM, grid))
    assert critical_suite.run(["mlp"], folder=grid.parent)[0].points[0].examples == point
    assert len(trained) == 1
    path = tmp_path / "critical.json"
    _files.write_json(path, CriticalFile(rows=rows))
    assert _files.read_json(path, CriticalFile).rows == rows
