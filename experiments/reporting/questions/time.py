"""Question 1: how long an epoch takes, from the study's files alone."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ...records.questions.time import Analysis, Neighbour, SizeTime
from ..document import figure, table
from ..question import Report
from ..section import Section, interval
from ..study_files import Source, StudyFiles, opened
from ..style import (
    COLOUR,
    GREY,
    MISSED,
    MISSED_LABEL,
    SECOND,
    canvas,
    legend,
    logarithmic,
    number,
    sizes_axis,
)

# The fewest rounds that tell two sizes apart: by chance all of five lie on one side once in sixteen times.
LEAST_ROUNDS = 5


def time_figure(study: Source) -> Figure:
    """Draws seconds of an epoch against batch size, in all and computing only, with the fitted curve and the knee.

    Args:
      study: the study, or its folder.

    Raises:
      UsageError: the part `time` of the study has not been run.
    """
    found = opened(study).needed("time", Analysis)
    drawing, (axes,) = canvas()
    sizes = [entry.batch_size for entry in found.sizes]
    for values, colour, marker, label in (
        ([entry.epoch_in_all for entry in found.sizes], GREY, "s", "in all"),
        ([entry.epoch_computing for entry in found.sizes], COLOUR, "o", "computing only"),
    ):
        axes.plot(sizes, values, marker, color=colour, markersize=4, alpha=0.8, label=label)
    if fit := found.fit:
        low, high = min(sizes), max(sizes)
        grid = [low * (high / low) ** (i / 60) for i in range(61)]
        curve = [found.train_size * (fit.overhead / b + 1 / fit.throughput) for b in grid]
        label = "fit: time per update + time per example"
        axes.plot(grid, curve, "-", color=SECOND, linewidth=1.2, label=label)
        if wrong := missed(found):
            style: dict[str, Any] = MISSED
            values = [entry.epoch_computing for entry in wrong]
            axes.plot([entry.batch_size for entry in wrong], values, **style, label=MISSED_LABEL)
        if low < fit.knee < high:
            label = f"knee: {number(fit.knee)}"
            axes.axvline(fit.knee, color="black", linewidth=1, linestyle="--", label=label)
    sizes_axis(axes, sizes)
    logarithmic(axes, "seconds of an epoch")
    legend(axes)
    return drawing


def missed(found: Analysis) -> list[SizeTime]:
    """Returns the sizes whose median time of an update is further from the fit than its interval reaches.

    The interval at a size is taken to be as wide as those of overhead and throughput together, which is generous.
    """
    fit = found.fit
    if not fit:
        return []
    (low, high), (slow, fast) = fit.intervals.overhead, fit.intervals.throughput
    return [
        entry
        for entry in found.sizes
        if not low + entry.batch_size / fast <= statistics.median(entry.computing) <= high + entry.batch_size / slow
    ]


def _misfit(found: Analysis) -> str:
    """Returns the caption's words on a fit that misses points, and where it misses by most."""
    wrong, fit = missed(found), found.fit
    if fit is None or not wrong:
        return ""

    def factor(entry: SizeTime) -> float:
        fitted = fit.overhead + entry.batch_size / fit.throughput
        return statistics.median(entry.computing) / fitted

    worst = max(wrong, key=lambda entry: abs(math.log(factor(entry))))
    ratio = factor(worst)
    times = f"{max(ratio, 1 / ratio):.2g} times {'longer' if ratio > 1 else 'shorter'}"
    return (
        f" At {len(wrong)} of {len(found.sizes)} sizes the fit misses the measured time by more than its interval, "
        f"most at {worst.batch_size:,}, where an update is {times} than fitted."
    )


def time_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if the part was run."""
    found = study.analysis("time", Analysis)
    if found is None or not found.sizes:
        return []
    rows = [
        (
            f"{entry.batch_size:,}",
            entry.kind,
            entry.devices.split()[0],
            number(1000 * statistics.median(entry.computing)),
            f"{number(1000 * min(entry.computing))} to {number(1000 * max(entry.computing))}",
            number(entry.epoch_computing),
            number(entry.epoch_in_all),
            number(entry.batch_size / statistics.median(entry.computing)),
        )
        for entry in found.sizes
    ]
    head = ("batch size", "kind", "devices", "ms an update", "rounds", "epoch, s", "in all, s", "examples/s")
    parts = [
        figure(
            time_figure(study),
            "Medians over the rounds. In all: with the input and logging that the compiled step does not hide, without "
            "start, compilation and evaluation." + _misfit(found),
        ),
        table(head, rows),
    ]
    if found.neighbours:
        parts += [
            "<p>Throughput of a size over that of the power of two beside it, in the same round:</p>",
            table(
                ("batch size", "kind", "beside", "median", "rounds"),
                [
                    (
                        f"{entry.batch_size:,}",
                        entry.kind,
                        f"{entry.power:,}",
                        f"{statistics.median(entry.throughput):.2f}",
                        f"{min(entry.throughput):.2f} to {max(entry.throughput):.2f}",
                    )
                    for entry in found.neighbours
                ],
            ),
        ]
    title = "How long is an epoch, and where does a larger batch stop helping?"
    return [Section(1, title, _answer(found), parts)]


def _answer(found: Analysis) -> str:
    first, best = found.sizes[0], min(found.sizes, key=lambda entry: entry.epoch_computing)
    text = (
        f"An epoch takes {number(first.epoch_computing)} s of computing at a batch of {first.batch_size:,} and "
        f"{number(best.epoch_computing)} s, the least, at {best.batch_size:,}. "
    )
    if fit := found.fit:
        ends, last = interval(fit.intervals.knee), found.sizes[-1].batch_size
        if first.batch_size <= fit.knee <= last:
            text += (
                f"Half of an update is overhead at a batch of {number(fit.knee)} ({ends}), and well beyond that "
                "a larger batch does not make an epoch faster. "
            )
        else:
            where = "below" if fit.knee < first.batch_size else "above"
            text += f"Where half of an update is overhead lies {where} the sizes that were timed ({ends}). "
    return text + beside(found.neighbours)


def beside(neighbours: Sequence[Neighbour]) -> str:
    """Returns which sizes are slower or faster than the power of two beside them: those that are so in every round."""
    if not neighbours:
        return ""
    if min(len(entry.throughput) for entry in neighbours) < LEAST_ROUNDS:
        return f"Too few rounds to tell sizes beside a power of two from it: {LEAST_ROUNDS} are needed."

    def named(entries: list[Neighbour]) -> str:
        return ", ".join(f"{e.batch_size:,} ({statistics.median(e.throughput):.2f} of {e.power:,})" for e in entries)

    slower = [entry for entry in neighbours if max(entry.throughput) < 1]
    faster = [entry for entry in neighbours if min(entry.throughput) > 1]
    if not slower and not faster:
        return "No size beside a power of two was faster or slower than it in every round."
    said = [
        f"{word} than the power of two beside it in every round: {named(e)}"
        for word, e in (("Slower", slower), ("Faster", faster))
        if e
    ]
    return "; ".join(said) + f"; of {len(neighbours)} that were compared."


REPORT = Report(order=10, sections=(time_sections,))
