"""The sentences of the batch-size study's report, from results that are made up."""

import itertools
import math
import re

import pytest
from msgspec.structs import replace

from experiments import _files
from experiments.records.questions.convergence import Analysis, BestRate, StepsFit, StepsIntervals
from experiments.records.questions.smoothness import Analysis as Smoothness
from experiments.records.questions.smoothness import NoiseWindow, SizeSwing
from experiments.records.questions.time import Neighbour
from experiments.records.studies import Analysis as Keys
from experiments.reporting import critical, study_sections, style
from experiments.reporting.questions import convergence, smoothness, time
from experiments.studies import jobs
from tests import made


def convergence_of(tuned, fit=None, factor=2.0):
    entries = [
        BestRate(batch_size=size, rate=rate, reached=rate is not None, on_edge=on_edge) for size, rate, on_edge in tuned
    ]
    return Analysis(
        keys=[],
        target=0.985,
        seeds=[0, 1],
        confidence=0.95,
        tuned=entries,
        factor=factor,
        fit=fit,
        no_fit="too few",
    )


def fit_of(critical, low, high):
    intervals = StepsIntervals(critical_batch_size=(low, high), min_steps=(90, 110), min_examples=(1, 2))
    return StepsFit(min_steps=100.0, min_examples=100 * critical, critical_batch_size=critical, intervals=intervals)


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        ([(16, 0.01, False), (1024, 0.64, False)], "power 1.00 .* fits the linear rule"),
        ([(16, 0.01, False), (1024, 0.08, False)], "power 0.50 .* fits the square-root rule"),
        ([(16, 0.01, False), (1024, 0.02, False)], "neither the linear nor the square-root rule"),
        ([(64, 0.01, False), (256, 0.02, False)], "both the linear and the square-root rule"),
        ([(16, 0.01, False), (1024, 0.64, True)], r"edge of their grids \(at 1,024\) leave open"),
        ([(16, 0.01, False), (1024, None, False)], "nothing to compare"),
    ],
)
def test_the_rule_of_the_rate_is_told_as_finely_as_the_search_knows_it(tuned, said):
    assert re.search(said, convergence.rate_answer(convergence_of(tuned)))


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (fit_of(300.0, 200.0, 500.0), r"^At 300 examples \(200 to 500, 95%\): .*buys nothing\.$"),
        (fit_of(5000.0, 800.0, math.inf), r"^At 5,000 examples \(at least 800, 95%\).* It may lie above 1,024, beyond"),
        (fit_of(0.0, 0.0, 20.0), "at 0 .*may lie below 16"),
        (fit_of(math.inf, 0.0, math.inf), "gives none .*no bounds.* below 16 or above 1,024"),
        (None, "There is no fit: too few"),
    ],
)
def test_the_critical_batch_size_is_not_claimed_beyond_what_was_tried(fit, said):
    found = convergence_of([(16, 0.01, False), (1024, 0.1, False)], fit)
    assert re.search(said, critical.critical_answer(found))


def test_one_window_of_noise_is_not_said_to_change():
    sizes = [SizeSwing(batch_size=size, losses=[1.0, 2.0], loss=1.5, swing=0.5) for size in (4, 16)]
    window = NoiseWindow(update=100, loss=0.25, scale=118.0, interval=(77.0, 187.0))
    found = Smoothness(keys=[], sizes=sizes, power=-0.5, noise=[window], noise_batch_size=16, confidence=0.95)
    one = smoothness.answer(found)
    assert one.endswith("The noise scale is 118 (77 to 187) examples at a loss of 0.25; too few measurements to tell "
                        "how it changes.")  # fmt: skip
    two = smoothness.answer(replace(found, noise=[window, replace(window, scale=236.0)]))
    assert "goes from 118 (77 to 187) to 236" in two


def test_sizes_that_do_not_reach_the_target_are_named():
    def row(kind, size, updates, seed):
        options = {"batch_size": size, "learning_rate": 0.1, "seed": seed}
        return made.row(f"{kind}-b{size}-seed{seed}", options, summary=made.summary(reached=updates))

    rows = [row("fixed", *run) for run in ((16, 10, 0), (16, 10, 1), (64, 10, 0), (64, None, 1))]
    options = {"batch_size": 256, "learning_rate": 0.1, "seed": 0}
    rows.append(made.row("fixed-b256-seed0", options, error="nan", diverged=True))
    text = convergence.target_answer(convergence_of([]), rows)
    assert text == (
        "At one rate for all, 98.5% takes 2 epochs at a batch of 16, and it is not reached, by half of the runs or "
        "more, at 64 and 256."
    )


def test_sizes_beside_powers_of_two_differ_only_where_every_round_says_so():
    def beside(*ratios):
        return time.beside([Neighbour(batch_size=60, kind="neither", power=64, throughput=list(r)) for r in ratios])

    assert "Too few rounds" in beside((0.8, 0.9))
    assert "No size" in beside((0.9, 1.1, 0.9, 0.9, 0.9), (1.1, 0.9, 1.2, 1.0, 1.3))
    said = beside((0.9, 0.8, 0.9, 0.9, 0.9), (1.1, 1.2, 1.1, 1.1, 1.3))
    assert said.startswith("Slower than the power of two beside it in every round: 60 (0.90 of 64); Faster")


def test_runs_that_are_not_finite_stay_in_the_ladder(tmp_path):
    def row(key, label, accuracy):
        ended = {"error": "the loss is nan", "diverged": True}
        if accuracy is not None:
            ended = {"summary": made.summary(accuracy, updates=5, seconds={"compute": 2.0})}
        return made.row(f"{key}-seed0", {"batch_size": 64, "seed": 0}, label=label, **ended)

    ladder = [row("ladder-00", "naive", None), row("ladder-01", "+ warmup", 0.9), row("ladder-02", "LARS", 0.5)]
    ladder.append(row("ladder-03", "Nesterov again", 0.905))
    backwards = [row("backwards-a", "SGD, rate x10", None), row("backwards-b", "SGD, 10 updates a forward pass", 0.8)]
    (tmp_path / jobs.FILE).write_bytes(b"".join(map(_files.line, [*ladder, *backwards])))
    for part, rows in (("ladder", ladder), ("backwards", backwards)):
        _files.write_json(tmp_path / f"{part}.json", Keys(keys=[r.key for r in rows]))
    # What warmup is worth beside a loss that is not finite is no number, so that there is no claim.
    five, six = study_sections(tmp_path)
    assert five.answer == "With SGD, 10 updates a forward pass: 80.00% and rate x10: not finite."
    assert "from 0.00% (naive) to 90.50% (Nesterov again)" in six.answer and "“warmup”, +90.00 points" in six.answer
    assert "not finite" in "".join(six.parts)


@pytest.mark.parametrize(("low", "high"), [(0.03, 1.3), (150, 1_600), (1e-6, 10), (1e-9, 1e9)])
def test_a_logarithmic_axis_has_room_for_its_labels(low, high):
    drawing, (axes,) = style.canvas()
    axes.plot([1, 2], [low, high])
    style.logarithmic(axes, "loss")
    ends = axes.get_ylim()
    labelled = [tick for tick in axes.get_yticks() if ends[0] <= tick <= ends[1]]
    assert 3 <= len(labelled) <= 12
    drawing.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
    assert all(a.y1 <= b.y0 for a, b in itertools.pairwise(boxes))
