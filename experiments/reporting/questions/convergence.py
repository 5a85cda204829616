"""Questions 3, 4 and 8: updates to a target, the best rates and the critical batch size, from the files alone."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from ...records.questions.convergence import Analysis, BestRate
from ...records.runs import Summary
from ...records.studies import StudyRow
from ..critical import convergence_figure, critical_sections
from ..document import figure, table
from ..question import Report
from ..section import Section
from ..study_files import Source, StudyFiles
from ..style import COLOUR, GREY, canvas, legend, logarithmic, number, sizes_axis
from ..to_target import WAYS, Kind, dots, reached_target, read, runs, target_of


def epochs_figure(study: Source) -> Figure:
    """Draws epochs to the target against batch size, at one rate for all and with the rate tuned: every run.

    Runs that did not reach the target are open triangles at the epochs that they were given.

    Args:
      study: the study, or its folder.

    Raises:
      UsageError: the part `convergence` of the study has not been run.
    """
    found, rows = read(study)
    drawing, (axes,) = canvas()
    sizes = []
    for way in WAYS:
        shown = runs(rows, way.kind, found)
        sizes += [row.batch_size for row in shown]
        dots(axes, shown, "epochs", way)
    sizes_axis(axes, sizes)
    logarithmic(axes, f"epochs to {target_of(found)}")
    legend(axes)
    return drawing


def rate_figure(study: Source) -> Figure:
    """Draws the best rate against batch size, with the power that was found, the linear and the square-root rule.

    Args:
      study: the study, or its folder.

    Raises:
      UsageError: the part `convergence` of the study has not been run.
    """
    found, rows = read(study)
    tuned = _reached(found)
    drawing, (axes,) = canvas()
    sizes, rates = [t.batch_size for t, _ in tuned], [rate for _, rate in tuned]
    tried = [row for row in rows if row.kind == "tuned"]
    for reached, mark, label in ((True, ".", "tried: reached the target"), (False, "x", "tried: did not")):
        shown = [row for row in tried if reached_target(row) == reached]
        if shown:
            at = [row.batch_size for row in shown], [row.learning_rate for row in shown]
            axes.plot(*at, mark, color=GREY, markersize=4, label=label)
    rules = [(1.0, "linear rule", ":", GREY), (0.5, "square-root rule", "--", GREY)]
    if len(tuned) > 1:
        found_power = _power(tuned)
        rules.append((found_power, f"found: power {found_power:.2f}", "-", COLOUR))
    for power, name, style, colour in rules:
        # Through the middle of all best rates: none of them alone is known well enough for a line to start from.
        middle = [math.log(rate / size**power) for size, rate in zip(sizes, rates, strict=True)]
        at_one = math.exp(statistics.mean(middle)) if middle else math.nan
        axes.plot(sizes, [at_one * size**power for size in sizes], style, color=colour, linewidth=1.2, label=name)
    for on_edge, face, label in ((False, COLOUR, "best rate"), (True, "none", "best, on the edge of its grid")):
        points = [(t.batch_size, rate) for t, rate in tuned if t.on_edge == on_edge]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=COLOUR, markerfacecolor=face, label=label)
    sizes_axis(axes, [row.batch_size for row in tried])
    logarithmic(axes, "learning rate")
    legend(axes)
    return drawing


def target_and_rate_sections(study: StudyFiles) -> list[Section]:
    """Returns the sections of questions 3 and 4, if the part was run."""
    if study.analysis("convergence", Analysis) is None:
        return []
    found, rows = read(study)
    parts = [
        figure(
            epochs_figure(study),
            "Each mark is a run. One that did not reach the target stands at the epochs that it was given; one whose "
            "loss was not finite, at the top.",
        )
    ]
    for way in WAYS:
        if shown := runs(rows, way.kind, found):
            head = ("batch size", "rate", "runs", "reached", "updates", "epochs", "seconds", "computing, s")
            parts += [f"<p>{way.label[:1].upper()}{way.label[1:]}, medians:</p>", table(head, _table(shown))]
    parts.append(
        f"<p>Of the {_split(rows)} split. Seconds are in all, with start, compilation and the evaluations, and of the "
        "compiled updates alone.</p>"
    )
    title = f"How many updates, epochs and seconds to {target_of(found)}?"
    sections = [Section(3, title, target_answer(found, rows), parts)]
    caption = "Lines go through the middle of the best rates. The search has one seed."
    rates = [
        figure(rate_figure(study), caption),
        table(("batch size", "best rate", "target reached", "on the edge of its grid"), _rates(found)),
    ]
    title = "Which rate is best at each batch size: linear, square root or neither?"
    sections.append(Section(4, title, rate_answer(found), rates))
    return sections


def _split(rows: Sequence[StudyRow]) -> str:
    """Returns the name of the split that the target is of."""
    return next((next(iter(row.summary.results)) for row in rows if row.summary is not None), "test")


def _reached(found: Analysis) -> list[tuple[BestRate, float]]:
    """Returns the sizes that reached the target, each with its best rate."""
    if any(tuned.reached and tuned.rate is None for tuned in found.tuned):
        raise ValueError("a size reached the target without a rate")
    return [(tuned, tuned.rate) for tuned in found.tuned if tuned.reached and tuned.rate is not None]


def _medians(shown: Sequence[StudyRow]) -> dict[int, float]:
    """Returns median epochs by batch size; infinite where half of the runs or more did not reach the target."""
    groups = defaultdict(list)
    for row in shown:
        epochs = math.inf
        if row.summary is not None and reached_target(row):
            epochs = row.summary.share_to_target * row.summary.epochs
        groups[row.batch_size].append(epochs)
    return {size: statistics.median(values) for size, values in sorted(groups.items())}


def target_answer(found: Analysis, rows: Sequence[StudyRow]) -> str:
    """Returns how many epochs the target takes at the smallest and the largest batch size that reach it."""
    sentences = []
    kinds: tuple[tuple[Kind, str], ...] = (
        ("fixed", "at one rate for all"),
        ("tuned", "with the rate tuned at each size"),
    )
    for kind, words in kinds:
        medians = _medians(runs(rows, kind, found))
        reached = {size: epochs for size, epochs in medians.items() if math.isfinite(epochs)}
        never = [f"{size:,}" for size in medians if size not in reached]
        said = []
        if reached:
            ends = sorted({min(reached), max(reached)})
            takes = " and ".join(f"{_epochs(reached[size])} at a batch of {size:,}" for size in ends)
            said.append(f"{target_of(found)} takes {takes}")
        if never:
            said.append(f"it is not reached, by half of the runs or more, at {' and '.join(never)}")
        if said:
            sentences.append(f"{words}, " + ", and ".join(said))
    text = "; ".join(sentences) or "nothing has been run"
    return text[:1].upper() + text[1:] + "."


def _epochs(count: float) -> str:
    return f"{number(count)} epoch{'' if number(count) == '1' else 's'}"


def rate_answer(found: Analysis) -> str:
    """Returns the power of the batch size in the best rate, and the rule that fits it."""
    tuned = _reached(found)
    if len(tuned) < 2:
        return "Fewer than two batch sizes reached the target, so there is nothing to compare."

    first, last = tuned[0][0].batch_size, tuned[-1][0].batch_size
    whole = _power(tuned)
    # A best rate is known to one step of its grid.
    known_to = math.log(found.factor) / math.log(last / first)
    rules = [(1.0, "linear"), (0.5, "square-root")]
    fitting = [name for at, name in rules if abs(whole - at) <= known_to]
    edges = [f"{t.batch_size:,}" for t, _ in tuned if t.on_edge]
    if edges:
        verdict = f"best rates on the edge of their grids (at {', '.join(edges)}) leave open which rule fits"
    elif len(fitting) > 1:
        verdict = "which fits both the linear and the square-root rule"
    else:
        verdict = (
            f"which fits the {fitting[0]} rule" if fitting else "which fits neither the linear nor the square-root rule"
        )
    return (
        f"From {first:,} to {last:,} the best rate changes with the power {whole:.2f} of the batch size, known to "
        f"{known_to:.2f} by the steps of the search: {verdict}."
    )


def _power(tuned: Sequence[tuple[BestRate, float]]) -> float:
    """Returns the power of the batch size in the best rate, between the first and the last size."""
    (first, first_rate), (last, last_rate) = tuned[0], tuned[-1]
    return math.log(last_rate / first_rate) / math.log(last.batch_size / first.batch_size)


def _table(rows: Sequence[StudyRow]) -> list[tuple[str, ...]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row.batch_size].append(row)
    cells = []
    for size, group in sorted(groups.items()):
        reached = sum(map(reached_target, group))
        ended = [row.summary for row in group if row.summary is not None]
        # With half of the runs or more cut short the median is not known, but to be more than what was spent.
        shown = [row.ended for row in group if reached_target(row)] if 2 * reached > len(group) else ended
        mark = "" if 2 * reached > len(group) else "> "
        values: list[tuple[Callable[[Summary], float], str]] = [
            (lambda s: s.share_to_target * s.updates, ",.0f"),
            (lambda s: s.share_to_target * s.epochs, ".2f"),
            (lambda s: s.seconds["in all"], ".0f"),
            (lambda s: s.share_to_target * s.seconds["compute"], ".1f"),
        ]
        spent = [
            mark + format(statistics.median(map(of, shown)), form) if shown else "not finite" for of, form in values
        ]
        cells.append((f"{size:,}", f"{group[0].learning_rate:g}", str(len(group)), str(reached), *spent))
    return cells


def _rates(found: Analysis) -> list[tuple[str, ...]]:
    return [
        (
            f"{t.batch_size:,}",
            "none" if t.rate is None else f"{t.rate:g}",
            "yes" if t.reached else "no",
            "yes" if t.on_edge else "no",
        )
        for t in found.tuned
    ]


REPORT = Report(
    order=30,
    sections=(target_and_rate_sections, critical_sections),
    pictures={"updates.svg": convergence_figure, "epochs.svg": epochs_figure},
)
