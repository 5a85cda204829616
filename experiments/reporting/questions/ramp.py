"""Question 9: a batch that grows with the gradient noise; from the study's files alone."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ...records.questions.ramp import Course, RampRow
from ...records.studies import StudyRow
from ..document import figure, table
from ..question import Report
from ..section import Section
from ..study_files import Source, StudyFiles, opened
from ..style import COLOUR, GREY, SECOND, canvas, legend, logarithmic

# Wide under narrow, so that lines that lie upon each other are all seen.
_STYLES = ((GREY, "-", 3.0), (SECOND, "--", 1.6), (COLOUR, "-", 1.2))
# The words for a label that is a flag.
_WAYS = {"--batch_ramp=auto": "batch follows the noise scale"}


class _Run(NamedTuple):
    """A run whose course was noted, and that course."""

    row: RampRow
    course: Course

    def batch_size_at(self, step: int) -> int:
        """Returns the batch size of the update that leads to a step."""
        begun = [size for first, size in self.course.batch_sizes if first < step]
        return begun[-1] if begun else self.row.batch_size


def ramp_figure(study: Source) -> Figure:
    """Draws test error by update, and batch size by epoch, of the ways to let the noise fall, with a line per seed.

    Args:
      study: the study, or its folder.
    """
    groups = _ways(opened(study).rows_of("ramp"))
    drawing, (error, size) = canvas(3.1, panels=2)
    for (colour, style, width), (label, runs) in zip(_STYLES, groups.items(), strict=False):
        for number, run in enumerate(runs):
            name = None if number else label
            updates, accuracy, _ = zip(*run.course.evaluations, strict=True)
            epochs = range(1, len(updates) + 1)
            look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": width}
            error.plot(updates, [100 * (1 - a) for a in accuracy], label=name, **look)
            size.step([0, *epochs], [run.batch_size_at(step) for step in (1, *updates)], label=name, **look)
    error.set(xlabel="updates")
    logarithmic(error, "test error (%)")
    legend(error, "Test error by update")
    size.set(xlabel="epochs")
    logarithmic(size, "global batch size")
    legend(size, "Batch size by epoch")
    return drawing


def ramp_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if the part was run."""
    groups = _ways(study.rows_of("ramp"))
    if not groups:
        return []
    cells = [_cells(label, runs) for label, runs in groups.items()]
    head = ("", "seeds", "mean accuracy", "least", "greatest", "updates", "computing, s", "last batch")
    parts = [figure(ramp_figure(study), "Each line is a seed."), table(head, cells)]
    title = "Does a batch that grows with the noise scale do what a falling rate does?"
    return [Section(9, title, _answer(cells), parts)]


class RampAndDecay(NamedTuple):
    """A batch that grows with the noise beside a rate that falls.

    Attributes:
      ramp: mean accuracy in percent of the batch that grows.
      decay: that of the rate that falls.
      ramp_updates: median updates of the batch that grows.
      decay_updates: those of the rate that falls.
      spread: how far the seeds of either lie apart, at most.
      seeds: the number of seeds of the one that has fewer.
    """

    ramp: float
    decay: float
    ramp_updates: float
    decay_updates: float
    spread: float
    seeds: int


def ramp_and_decay(study: StudyFiles) -> RampAndDecay | None:
    """Returns the two ways to let the noise fall; None: the part was not run."""
    groups = _ways(study.rows_of("ramp"))
    grows, falls = (groups.get(label) for label in ("batch follows the noise scale", "fixed batch, step schedule"))
    if not grows or not falls:
        return None
    ramp, decay = ([100 * run.course.evaluations[-1][1] for run in way] for way in (grows, falls))
    return RampAndDecay(
        statistics.mean(ramp),
        statistics.mean(decay),
        statistics.median(run.row.ended.updates for run in grows),
        statistics.median(run.row.ended.updates for run in falls),
        max(max(values) - min(values) for values in (ramp, decay)),
        min(len(ramp), len(decay)),
    )


def _cells(label: str, runs: Sequence[_Run]) -> tuple[str, ...]:
    accuracies = [100 * run.course.evaluations[-1][1] for run in runs]
    spread = [f"{value:.2f}" for value in (statistics.mean(accuracies), min(accuracies), max(accuracies))]
    updates = statistics.median(run.row.ended.updates for run in runs)
    computing = statistics.median(run.row.ended.seconds["compute"] for run in runs)
    sizes = sorted({run.batch_size_at(run.row.ended.updates) for run in runs})
    last = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    return label, str(len(runs)), *spread, f"{updates:,.0f}", f"{computing:.0f}", last


def _answer(cells: Sequence[tuple[str, ...]]) -> str:
    found = [
        f"{label}: {mean}% after {updates} updates and {seconds} s of computing"
        for label, _, mean, _, _, updates, seconds, _ in cells
    ]
    return f"In the same number of epochs, {'; '.join(found)}."


def _ways(rows: Sequence[StudyRow]) -> dict[str, list[_Run]]:
    """Returns the runs whose course was noted, by what they are called."""
    groups = defaultdict(list)
    for row in rows:
        if isinstance(row, RampRow) and row.course is not None:
            groups[_WAYS.get(row.label, row.label)].append(_Run(row, row.course))
    return dict(groups)


REPORT = Report(order=90, sections=(ramp_sections,), pictures={"ramp.svg": ramp_figure})
