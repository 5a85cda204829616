"""Question 7: whether large batches generalise worse and end in sharper minima, from the study's files alone."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from ...records.questions.generalisation import Analysis, SizeMinima
from ..document import figure, table
from ..question import Report
from ..section import Section
from ..study_files import Source, StudyFiles, opened
from ..style import (
    COLOUR,
    SECOND,
    TEXT,
    canvas,
    legend,
    logarithmic,
    number,
    sizes_axis,
)

_BUDGETS = (("epochs", "equal epochs", COLOUR, "o"), ("steps", "equal updates", SECOND, "s"))


def generalisation_figure(study: Source) -> Figure:
    """Draws training minus test accuracy, and the largest eigenvalue of the Hessian, against batch size.

    Args:
      study: the study, or its folder.

    Raises:
      UsageError: the part `generalisation` of the study has not been run.
    """
    found = opened(study).needed("generalisation", Analysis)
    drawing, (gap, sharp) = canvas(3.0, panels=2)
    sizes = sorted({run.batch_size for run in found.runs})
    for budget, label, colour, marker in _BUDGETS:
        runs = [run for run in found.runs if run.budget == budget]
        if not runs:
            continue
        at = [run.batch_size for run in runs]
        for axes, measured, factor in (
            (gap, [run.gap for run in runs], 100),
            (sharp, [run.eigenvalue for run in runs], 1),
        ):
            points = [(size, factor * value) for size, values in zip(at, measured, strict=True) for value in values]
            axes.plot(
                *zip(*points, strict=True), marker, color=colour, alpha=0.5, markersize=4, label=f"{label}, a seed"
            )
            means = [factor * statistics.mean(values) for values in measured]
            axes.plot(at, means, "-", color=colour, linewidth=1.5, label=f"{label}, mean")
    for axes in (gap, sharp):
        sizes_axis(axes, sizes)
    gap.set_ylabel("training - test\naccuracy (points)", fontsize=TEXT)
    gap.axhline(0, color="black", linewidth=0.6)
    logarithmic(sharp, "largest eigenvalue")
    legend(gap, "How far training is ahead")
    legend(sharp, "How sharp the minimum is")
    return drawing


def generalisation_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if the part was run."""
    found = study.analysis("generalisation", Analysis)
    if found is None or not found.runs:
        return []
    epsilons = list(found.runs[0].sharpness)
    head = (
        "batch size",
        "budget",
        "rate",
        "updates",
        "training",
        "test",
        "gap",
        "eigenvalue",
        "x rate",
        *(f"sharpness {epsilon}" for epsilon in epsilons),
    )
    names = {budget: label for budget, label, *_ in _BUDGETS}
    rows = [
        (
            f"{run.batch_size:,}",
            names[run.budget],
            f"{run.rate:g}",
            f"{run.updates:,}",
            _percent(run.train),
            _percent(run.test),
            _percent(run.gap),
            number(statistics.mean(run.eigenvalue)),
            number(statistics.mean(run.eigenvalue_times_rate)),
            *(number(statistics.mean(run.sharpness[epsilon])) for epsilon in epsilons),
        )
        for run in found.runs
    ]
    parts = [
        figure(
            generalisation_figure(study),
            "Each mark is a seed, the lines join their means. The Hessian is that of the cross-entropy of at most "
            "1,000 training images, without decay; a norm would use its running statistics.",
        ),
        table(head, rows),
        "<p>Accuracies in %, means over the seeds. Sharpness: the rise of the loss in a box about the minimum, "
        "100 (max f - f) / (1 + f), of a width relative to each parameter (Keskar et al., arXiv 1609.04836, metric "
        "2.1). For networks of their own they report 1.23 for a small batch and 205 for a large one (F1), and 28.6 and "
        "707 (C1), at 1e-3 (quoted at second hand).</p>",
    ]
    title = "Does a large batch generalise worse, and are its minima sharper?"
    return [Section(7, title, _answer(found.runs), parts)]


def _answer(runs: Sequence[SizeMinima]) -> str:
    sentences = []
    for budget, label, *_ in _BUDGETS:
        of_budget = [run for run in runs if run.budget == budget]
        if not of_budget:
            continue
        small, large = of_budget[0], of_budget[-1]
        sentences.append(
            f"at {label} test accuracy is {_percent(small.test)}% at {small.batch_size:,} and "
            f"{_percent(large.test)}% at {large.batch_size:,}, training is ahead of it by "
            f"{_percent(small.gap)} and {_percent(large.gap)} points, and the largest eigenvalue is "
            f"{number(statistics.mean(small.eigenvalue))} and {number(statistics.mean(large.eigenvalue))}"
        )
    text = "; ".join(sentences)
    few = " One seed each, so differences of a tenth of a point say little." if len(runs[0].test) == 1 else ""
    return text[:1].upper() + text[1:] + "." + few


def _percent(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.2f}"


REPORT = Report(order=70, sections=(generalisation_sections,))
