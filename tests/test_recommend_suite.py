"""The table of recommendations beside grids, from files of a problem whose answer is known."""

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from experiments import _files
from experiments._errors import UsageError
from experiments.benchmarking import recommend_compare, recommend_suite, recommend_table
from experiments.benchmarking.recommend_compare import Cell
from experiments.benchmarking.recommend_suite import AGAIN, GRID, RECOMMENDATION, Problem
from experiments.records.comparison import GridCost
from experiments.records.evidence import MeasuredRun
from experiments.records.recommendation import Recommendation
from experiments.records.runs import Target
from experiments.studies import jobs
from experiments.studies.convergence import PAST_TARGET
from experiments.studies.question import Data
from experiments.studies.recommending.run import FILE
from tests import made
from tests.executors import Stub

ROOT = Path(__file__).parent.parent
# One that was made, whose numbers are replaced.
WHOLE = _files.read_json(ROOT / "docs/results/recommend/mnist/recommendation/recommendation.json", Recommendation)
SEEDS, ORDER = (11, 12, 13, 14, 15, 16), (12, 11, 13, 16, 14, 15)
PROBLEM = Problem(
    "known", {"dataset": "mnist", "norm": "batch"}, 0.98, (32, 64, 128), (0.01, 0.02), 5, fresh_seeds=SEEDS
)


def updates(batch_size, rate, seed=0):
    """1000 (1 + 64 / B) at the rate 0.02, twice that at 0.01; a tenth more with each seed, in another order at 128."""
    later = ORDER.index(seed) + 1 if batch_size == 128 and seed in SEEDS else seed % 10
    return round(1000 * (1 + 64 / batch_size) * (1 if rate == 0.02 else 2) * (1 + 0.1 * later))


def row(batch_size, rate, seed, *, slower=1, reached=True, **options):
    """A run to the target; `slower` says how much longer it took than alone."""
    count = updates(batch_size, rate, seed)
    options = {
        "dataset": "mnist",
        "norm": "batch",
        "data_dir": None,
        "target_accuracy": 0.98,
        "batch_size": batch_size,
        "learning_rate": rate,
        "seed": seed,
        "past_target": PAST_TARGET,
        **options,
    }
    seconds = {"compute": slower * count * (batch_size + 64) / 1e4, "in all": 10.0}
    summary = made.summary(0.98, split="validation", reached=count if reached else None, updates=count, seconds=seconds)
    return made.row(f"tuned-b{batch_size}-r{rate}-seed{seed}", options, summary=summary)


def prediction(batch_size, value):
    def ends(middle):
        return None if value is None else (middle, 0.5 * middle, 2.0 * middle)

    return msgspec.structs.replace(
        WHOLE.advice.candidates[0], batch_size=batch_size, updates=ends(value), seconds=ends(0.02 * (value or 0))
    )


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / jobs.FILE).write_bytes(b"".join(map(_files.line, rows)))


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "known"
    # On another day the machine was busy, at times very busy.
    settings = [(size, rate, seed) for seed in (0, 1) for size in (32, 64, 128) for rate in (0.01, 0.02)]
    grid = [row(*one, slower=slower) for one, slower in zip(settings, (2, 10, 2, 2, 3, 2) * 2, strict=True)]
    # Runs to another target, without a norm, or to the first evaluation at the target, are not the problem's.
    for options in ({"target_accuracy": 0.5}, {"norm": "none"}, {"past_target": None}):
        other = row(32, 0.01, 0, **options)
        sooner = msgspec.structs.replace(other.summary, target=Target(reached_after_updates=1))
        grid.append(msgspec.structs.replace(other, key=f"other-{options}", summary=sooner))
    write(place / GRID, grid)
    write(place / AGAIN, [row(size, rate, seed) for size, rate in ((64, 0.02), (128, 0.01)) for seed in SEEDS])
    tried = MeasuredRun(
        batch_size=128, seed=100, rate=0.01, updates=3000, reached=True, diverged=False, step_seconds=0.02
    )
    result = msgspec.structs.replace(
        WHOLE,
        seconds=6.0,
        evidence=msgspec.structs.replace(
            WHOLE.evidence,
            runs=[tried],
            not_measured=[],
            target=0.98,
            options={"dataset": "mnist", "norm": "batch"},
        ),
        advice=msgspec.structs.replace(
            WHOLE.advice,
            batch_size=128,
            learning_rate=0.01,
            candidates=[prediction(64, 2100.0), prediction(128, 3000.0), prediction(32, None), prediction(16, 9.0)],
        ),
    )
    (place / RECOMMENDATION).mkdir()
    _files.write_json(place / RECOMMENDATION / FILE, result)
    return place


def test_the_best_cell_and_the_ratio_are_those_of_the_law(folder):
    found = recommend_suite.tabulate(PROBLEM, folder)
    # Times are as 4 (1 + 64 / B) (B + 64): least at the batch size of 64.
    assert Cell(found.best.batch_size, found.best.rate) == Cell(64, 0.02)
    assert found.recommended.batch_size == 128 and found.recommended.rate == 0.01
    assert found.best.step_seconds == pytest.approx(128 / 1e4)
    expected = 2 * (1 + 64 / 128) * (128 + 64) / ((1 + 64 / 64) * 128)
    ratio, low, high = found.ratio
    assert ratio == pytest.approx(expected, rel=1e-3) and low < ratio < high
    # Seed by seed, Student's t of five degrees of freedom.
    ratios = np.log([1.2, 1.1, 1.3, 1.5, 1.6, 1.4]) - np.log([1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
    half = 2.571 * np.std(ratios, ddof=1) / math.sqrt(6)
    assert (math.log(high / ratio), math.log(ratio / low)) == pytest.approx((half, half), rel=0.01)
    assert found.grid == GridCost(cells=6, runs=12, seconds=120.0)


def test_predictions_are_compared_where_nothing_was_tried(folder):
    found = recommend_suite.tabulate(PROBLEM, folder).predictions
    # 128 was tried, 32 has no prediction, and 16 is not in the grid.
    assert [p.batch_size for p in found] == [64]
    # At 64 and the better rate six fresh seeds take 2000 times 1.1 to 1.6: Student's t of five degrees of freedom.
    logs = np.log(2000 * np.array([1.1, 1.2, 1.3, 1.4, 1.5, 1.6]))
    half = 2.571 * np.std(logs, ddof=1) / math.sqrt(6)
    assert found[0].measured == pytest.approx(
        tuple(np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])), 1e-3
    )
    assert found[0].off == pytest.approx(2100 / np.exp(logs.mean()) - 1)


@pytest.mark.parametrize(("missed", "bounds"), [(1, (True, False)), (2, (True, False)), (4, None)])
def test_a_prediction_is_checked_by_the_median_where_fresh_seeds_missed(missed, bounds, folder):
    """Without a number for what half of the runs or more do not reach, and without a bound for what few show."""
    rows = [row(64, 0.02, seed, reached=place >= missed) for place, seed in enumerate(SEEDS)]
    write(folder / AGAIN, rows)
    compared = recommend_suite.tabulate(PROBLEM, folder)
    (found,) = compared.predictions
    lines = recommend_table.table([compared])
    if bounds is None:
        assert found.measured is None and found.off is None
        assert lines[-3].endswith(" | missed by half of the seeds or more |  |")
        assert lines[-1] == "Predictions within 20% of what was measured: 0 of 1. Intervals that hold it: 0 of 1."
        return
    middle, *ends = found.measured
    # Between the third and the fourth of 1.1 to 1.6 without the first, and so many that are infinite.
    assert middle == pytest.approx(2000 * math.sqrt((1.3 + 0.1 * missed) * (1.4 + 0.1 * missed)))
    assert tuple(end is not None for end in ends) == bounds
    near = int(abs(2100 / middle - 1) <= 0.2)
    assert lines[-1] == f"Predictions within 20% of what was measured: {near} of 1. Intervals that hold it: 1 of 1."


@pytest.mark.parametrize("part", [GRID, AGAIN])
def test_a_run_whose_target_counts_otherwise_is_made_again(part, folder):
    assert recommend_suite._is_done(PROBLEM, folder)
    first, *others = jobs.read(folder / part / jobs.FILE)
    first_hit = msgspec.structs.replace(first, options={**first.options, "past_target": None})
    write(folder / part, [first_hit, *others])
    assert not recommend_suite._is_done(PROBLEM, folder)


def test_predictions_are_checked_with_all_seeds_before_a_problem_is_done(folder):
    problem = PROBLEM._replace(checking_seeds=SEEDS[:3])
    best = msgspec.structs.replace(_files.read_json(folder / RECOMMENDATION / FILE, Recommendation))
    advice = msgspec.structs.replace(best.advice, candidates=[*best.advice.candidates[:2], prediction(32, 4000.0)])
    _files.write_json(folder / RECOMMENDATION / FILE, msgspec.structs.replace(best, advice=advice))
    assert not recommend_suite._is_done(problem, folder)
    assert [p.batch_size for p in recommend_suite.tabulate(problem, folder).predictions] == [64]
    rows = jobs.read(folder / AGAIN / jobs.FILE)
    write(folder / AGAIN, [*rows, *(row(32, 0.02, seed) for seed in SEEDS[:3])])
    assert recommend_suite._is_done(problem, folder)
    assert [p.batch_size for p in recommend_suite.tabulate(problem, folder).predictions] == [32, 64]


def test_the_table_is_made_without_running_anything(folder, capsys, monkeypatch):
    monkeypatch.setitem(recommend_suite.PROBLEMS, "known", PROBLEM)
    monkeypatch.setattr(recommend_suite, "measure", lambda *_: pytest.fail("it runs something"))
    (found,) = recommend_suite.run(["known"], folder=folder.parent)
    said = capsys.readouterr().out
    # Geometric means: of 2000 times 1.1 to 1.6, and of 3000.
    assert (
        "| known, 98.0% | 64 at 0.02: 34.3 s, 2,678 updates of 12.8 ms | 128 at 0.01: 77.1 s, 4,017 updates of" in said
    )
    assert "| 60 s (30 to 120) |" in said
    assert "| 6 s of 120 s, 5.0% |" in said and "| known | 64 | 2,100 (1,050 to 4,200) | 2,678 (" in said
    assert "| {:.2f} ({:.2f} to {:.2f}) |".format(*found.ratio) in said
    # At 57.6 s times 1.1 to 1.6 all are between 30 and 120.
    inside = (
        "Of the 6 single runs of the recommended settings {} end inside the predicted interval, {}; {} of the others"
    )
    assert inside.format(6, "100%", 0) in said
    # The first two are at 1.2 and 1.1, and of the others one is missing.
    write(folder / AGAIN, [row(*one, seed, reached=seed != 16) for one in ((64, 0.02), (128, 0.01)) for seed in SEEDS])
    found = recommend_suite.tabulate(PROBLEM, folder)
    narrow = msgspec.structs.replace(found.recommended, predicted=(70.0, 70.0, None))
    said = "\n".join(recommend_table.table([msgspec.structs.replace(found, recommended=narrow)]))
    assert inside.format(3, "50%", 1) in said
    (folder / AGAIN / jobs.FILE).write_text("")
    with pytest.raises(pytest.fail.Exception, match="it runs something"):
        recommend_suite.run(["known"], folder=folder.parent)


def of_seeds(*logs):
    return dict(enumerate(logs))


def test_with_many_seeds_a_miss_leaves_the_median_of_the_ratios():
    best = np.linspace(1.0, 2.0, 25)
    faster = best + np.log(np.linspace(0.4, 0.6, 25))
    # With one seed the best missed, with another the recommended setting, with a third both, which says nothing.
    best[3] = faster[20] = best[7] = faster[7] = math.inf
    ratio, low, high = recommend_compare._ratio(of_seeds(*faster), of_seeds(*best))
    assert 0.48 < ratio < 0.52 and 0.42 < low < ratio < high < 0.58


def test_a_ratio_needs_more_than_half_of_the_seeds():
    missed = math.inf
    assert recommend_compare._ratio(of_seeds(1, 2, missed, missed), of_seeds(1, 1, missed, missed)) is None
    assert recommend_compare._ratio(of_seeds(1, missed, missed), of_seeds(1, 1, 1)) is None
    # Of three ratios, 2, 3 and infinity, the median is 3, and there is no bound.
    ratio, _, high = recommend_compare._ratio(of_seeds(*np.log([2, 3, missed])), of_seeds(0, 0, 0))
    assert ratio == pytest.approx(3) and high is None


def test_the_mean_of_ratios_has_the_bounds_that_all_have():
    assert recommend_compare.mean_ratio([(1.0, 0.5, 2.0), (4.0, 2.0, None)]) == pytest.approx(
        (2.0, 2.0 / 2 ** math.sqrt(0.5), None)
    )


def test_what_is_not_reached_and_what_is_not_recommended_stay_in_the_table(folder):
    rows = jobs.read(folder / AGAIN / jobs.FILE)

    def missed(count):
        kept, others = rows[:-count], rows[-count:]
        missing = [row(r.batch_size, r.learning_rate, r.seed, reached=False) for r in others]
        write(folder / AGAIN, [*kept, *missing])
        found = recommend_suite.tabulate(PROBLEM, folder)
        return found, "\n".join(recommend_table.table([found]))

    # Of six, 1.1, 1.2, 1.3, 1.5, 1.6 and a miss, the median is a number; the time per update is that of all twelve.
    found, said = missed(1)
    assert found.recommended.seconds == pytest.approx(found.recommended.step_seconds * math.sqrt(1.3 * 1.5) * 3000)
    assert "(medians: 1 of 6 runs missed the target)" in said
    # One in twenty draws of six such ratios has an infinite median.
    assert found.ratio[2] is None and "to no bound) |" in said
    found, said = missed(3)
    assert found.ratio is None and found.recommended.seconds is None and found.best.seconds
    assert "missed by half of the seeds or more" in said
    path = folder / RECOMMENDATION / FILE
    result = _files.read_json(path, Recommendation)
    evidence = msgspec.structs.replace(result.evidence, runs=[], not_measured=["all: too little time is left"])
    _files.write_json(path, msgspec.structs.replace(result, advice=None, evidence=evidence))
    found = recommend_suite.tabulate(PROBLEM, folder)
    assert found.recommended is None and found.predictions == []
    said = "\n".join(recommend_table.table([found]))
    assert "| none; not measured: all: too little time is left" in said


def test_a_prediction_without_a_bound_is_in_the_table(folder):
    path = folder / RECOMMENDATION / FILE
    result = _files.read_json(path, Recommendation)
    first, *others = result.advice.candidates
    unbounded = msgspec.structs.replace(first, updates=(2100.0, 1050.0, None))
    advice = msgspec.structs.replace(result.advice, candidates=[unbounded, *others])
    _files.write_json(path, msgspec.structs.replace(result, advice=advice))
    said = "\n".join(recommend_table.table([recommend_suite.tabulate(PROBLEM, folder)]))
    assert "| known | 64 | 2,100 (1,050 to no bound) | 2,678 (" in said


def _of_size(whole, size):
    result = json.loads(whole)
    return json.dumps({**result, "advice": result["advice"] | {"batch_size": size}})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: whole[:40], "cannot be read: it is not JSON"),
        (
            lambda whole: whole.replace('"seed": 100', '"seed": null'),
            r"cannot be read: evidence.runs\[0\].seed: expected `int`, got `null`",
        ),
        (lambda whole: _of_size(whole, 7), "it recommends, 7;"),
    ],
)
def test_a_damaged_recommendation_is_named(folder, damage, said):
    path = folder / RECOMMENDATION / FILE
    path.write_text(damage(path.read_text()))
    grid = folder / GRID / jobs.FILE
    grid.write_text(grid.read_text().replace('"seed": 1', '"seed": null', 1))
    with pytest.raises(UsageError, match=rf"{FILE} .*{said}"):
        recommend_suite.tabulate(PROBLEM, folder)


def test_a_recommendation_of_another_problem_is_not_taken_for_this_one(folder, monkeypatch):
    with pytest.raises(UsageError, match=r"of another problem, with the target 0.98 .* take another --workdir"):
        recommend_suite.tabulate(PROBLEM._replace(target=0.97), folder)
    rows = (folder / GRID / jobs.FILE).read_text()
    monkeypatch.setattr(recommend_suite, "Runner", lambda *_: pytest.fail("it runs something"))
    with pytest.raises(UsageError, match="of another problem"):
        recommend_suite.measure(PROBLEM._replace(target=0.97), folder)
    assert (folder / GRID / jobs.FILE).read_text() == rows


def test_a_grid_with_failures_is_no_budget_for_a_recommendation(tmp_path, monkeypatch):
    failing = Stub(lambda task: {"error": "no memory", "diverged": False}, slots=4)
    monkeypatch.setattr(recommend_suite, "with_held_out", lambda options: Data(options, 1_000, 0))
    monkeypatch.setattr(recommend_suite, "recommend", lambda *_, **__: pytest.fail("it recommends something"))
    with pytest.raises(UsageError, match=r"12 runs of the grid in .* failed: tuned-b128-r0\.01-seed0"):
        recommend_suite.measure(PROBLEM, tmp_path / "known", executor=lambda folder: failing)
    assert failing.most == 4
