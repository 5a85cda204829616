"""Questions 3 and 4: updates to a target and the best rates, from the study's files alone."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.document import figure, table
from experiments.reporting.section import Section, analysis, needed, rows_of
from experiments.reporting.style import (
    COLOUR,
    GREY,
    SECOND,
    canvas,
    legend,
    logarithmic,
    number,
    sizes_axis,
)

_KINDS = (("tuned", COLOUR, "o", "rate tuned at each size"), ("fixed", SECOND, "s", "one rate for all"))


def runs(rows: Sequence[dict[str, Any]], kind: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs to show, those that ended without a finite loss too: at one rate, or at the best rate of each size."""
    best = {(t["batch_size"], t["rate"]) for t in found["tuned"]}
    return [
        row
        for row in rows
        if row["key"].startswith(f"{kind}-")
        and ("summary" in row or row.get("diverged"))
        and row["options"]["seed"] in found["seeds"]
        and (kind == "fixed" or (row["options"]["batch_size"], row["options"]["learning_rate"]) in best)
    ]


def reached_target(row: dict[str, Any]) -> bool:
    """Whether a run ended because it reached the target."""
    return "summary" in row and row["summary"]["target"]["reached_after_updates"] is not None


def epochs_figure(folder: str | Path) -> Figure:
    """Epochs to the target against batch size, at one rate for all and with the rate tuned: every run.

    Runs that did not reach the target are open triangles at the epochs that they were given.

    Raises:
      UsageError: the part `convergence` of the study has not been run.
    """
    found, rows = read_convergence(folder)
    drawing, (axes,) = canvas()
    sizes = []
    for kind, colour, marker, label in _KINDS:
        shown = runs(rows, kind, found)
        sizes += [row["options"]["batch_size"] for row in shown]
        dots(axes, shown, "epochs", colour, marker, label)
    sizes_axis(axes, sizes)
    logarithmic(axes, f"epochs to {target_of(found)}")
    legend(axes)
    return drawing


def rate_figure(folder: str | Path) -> Figure:
    """The best rate against batch size, with the power that was found, the linear and the square-root rule.

    Raises:
      UsageError: the part `convergence` of the study has not been run.
    """
    found, rows = read_convergence(folder)
    tuned = [t for t in found["tuned"] if t["reached"]]
    drawing, (axes,) = canvas()
    sizes, rates = [t["batch_size"] for t in tuned], [t["rate"] for t in tuned]
    tried = [row for row in rows if row["key"].startswith("tuned-")]
    for reached, mark, label in ((True, ".", "tried: reached the target"), (False, "x", "tried: did not")):
        shown = [row["options"] for row in tried if reached_target(row) == reached]
        if shown:
            at = zip(*((options["batch_size"], options["learning_rate"]) for options in shown), strict=True)
            axes.plot(*at, mark, color=GREY, markersize=4, label=label)
    rules = [(1.0, "linear rule", ":", GREY), (0.5, "square-root rule", "--", GREY)]
    if len(tuned) > 1:
        found_power = _power(tuned[0], tuned[-1])
        rules.append((found_power, f"found: power {found_power:.2f}", "-", COLOUR))
    for power, name, style, colour in rules:
        # Through the middle of all best rates: none of them alone is known well enough for a line to start from.
        middle = [math.log(rate / size**power) for size, rate in zip(sizes, rates, strict=True)]
        at_one = math.exp(statistics.mean(middle)) if middle else math.nan
        axes.plot(sizes, [at_one * size**power for size in sizes], style, color=colour, linewidth=1.2, label=name)
    for on_edge, face, label in ((False, COLOUR, "best rate"), (True, "none", "best, on the edge of its grid")):
        points = [(t["batch_size"], t["rate"]) for t in tuned if t["on_edge"] == on_edge]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=COLOUR, markerfacecolor=face, label=label)
    sizes_axis(axes, [row["options"]["batch_size"] for row in tried])
    logarithmic(axes, "learning rate")
    legend(axes)
    return drawing


def convergence_sections(folder: str | Path) -> list[Section]:
    """The two sections, if the part was run."""
    if analysis(folder, "convergence") is None:
        return []
    found, rows = read_convergence(folder)
    parts = [
        figure(
            epochs_figure(folder),
            "Each mark is a run. One that did not reach the target stands at the epochs that it was given; one whose "
            "loss was not finite, at the top.",
        )
    ]
    for kind, _, _, title in _KINDS:
        if shown := runs(rows, kind, found):
            head = ("batch size", "rate", "runs", "reached", "updates", "epochs", "seconds", "computing, s")
            parts += [f"<p>{title[:1].upper()}{title[1:]}, medians:</p>", table(head, _table(shown))]
    parts.append(
        f"<p>Of the {_split(rows)} split. Seconds are in all, with start, compilation and the evaluations, and of the "
        "compiled updates alone.</p>"
    )
    title = f"How many updates, epochs and seconds to {target_of(found)}?"
    sections = [Section(3, title, _target_answer(found, rows), parts)]
    caption = "Lines go through the middle of the best rates. The search has one seed."
    rates = [
        figure(rate_figure(folder), caption),
        table(("batch size", "best rate", "target reached", "on the edge of its grid"), _rates(found)),
    ]
    title = "Which rate is best at each batch size: linear, square root or neither?"
    sections.append(Section(4, title, _rate_answer(found), rates))
    return sections


def read_convergence(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the part left for its report, and its rows.

    Raises:
      UsageError: it has not been run.
    """
    return needed(folder, "convergence"), rows_of(folder, "convergence")


def _split(rows: Sequence[dict[str, Any]]) -> str:
    """The split that targets are of."""
    return next((next(iter(row["summary"]["results"])) for row in rows if "summary" in row), "test")


def dots(axes: Axes, shown: Sequence[dict[str, Any]], unit: str, colour: str, marker: str, label: str) -> None:
    """A mark for each run: a triangle if it did not reach the target, a cross at the top if its loss is not finite."""
    ended = [row for row in shown if "summary" in row]
    top = axes.get_xaxis_transform()
    style: dict[str, Any] = {"color": colour, "linestyle": "none"}
    looks: tuple[tuple[bool, str, dict[str, Any]], ...] = (
        (True, label, {"marker": marker, "alpha": 0.7, "markersize": 5}),
        (False, f"{label}: target not reached", {"marker": "^", "markerfacecolor": "none"}),
    )
    for reached, named, look in looks:
        if rows := [row for row in ended if reached_target(row) == reached]:
            sizes = [row["options"]["batch_size"] for row in rows]
            axes.plot(sizes, [row["summary"][unit] for row in rows], label=named, **style, **look)
    if failed := [row["options"]["batch_size"] for row in shown if "summary" not in row]:
        named = f"{label}: loss not finite"
        axes.plot(failed, [0.97] * len(failed), marker="x", transform=top, label=named, **style)


def target_of(found: dict[str, Any]) -> str:
    """The target in percent."""
    return f"{100 * found['target']:g}%"


def _medians(shown: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Median epochs by batch size; infinite where half of the runs or more did not reach the target."""
    groups = defaultdict(list)
    for row in shown:
        groups[row["options"]["batch_size"]].append(row["summary"]["epochs"] if reached_target(row) else math.inf)
    return {size: statistics.median(values) for size, values in sorted(groups.items())}


def _target_answer(found: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    sentences = []
    for kind, words in (("fixed", "at one rate for all"), ("tuned", "with the rate tuned at each size")):
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


def _rate_answer(found: dict[str, Any]) -> str:
    tuned = [t for t in found["tuned"] if t["reached"]]
    if len(tuned) < 2:
        return "Fewer than two batch sizes reached the target, so there is nothing to compare."

    first, last = tuned[0]["batch_size"], tuned[-1]["batch_size"]
    whole = _power(tuned[0], tuned[-1])
    # A best rate is known to one step of its grid.
    known_to = math.log(found["factor"]) / math.log(last / first)
    rules = [(1.0, "linear"), (0.5, "square-root")]
    fitting = [name for at, name in rules if abs(whole - at) <= known_to]
    edges = [f"{t['batch_size']:,}" for t in tuned if t["on_edge"]]
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


def _power(a: dict[str, Any], b: dict[str, Any]) -> float:
    """With which power of the batch size the best rate changes between two."""
    return math.log(b["rate"] / a["rate"]) / math.log(b["batch_size"] / a["batch_size"])


def _table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["options"]["batch_size"]].append(row)
    cells = []
    for size, group in sorted(groups.items()):
        reached = sum(map(reached_target, group))
        ended = [row["summary"] for row in group if "summary" in row]
        # With half of the runs or more cut short the median is not known, but to be more than what was spent.
        shown = [row["summary"] for row in group if reached_target(row)] if 2 * reached > len(group) else ended
        mark = "" if 2 * reached > len(group) else "> "
        values = [
            (lambda s: s["updates"], ",.0f"),
            (lambda s: s["epochs"], ".2f"),
            (lambda s: s["seconds"]["in all"], ".0f"),
            (lambda s: s["seconds"]["compute"], ".1f"),
        ]
        spent = [
            mark + format(statistics.median(map(of, shown)), form) if shown else "not finite" for of, form in values
        ]
        rate = f"{group[0]['options']['learning_rate']:g}"
        cells.append((f"{size:,}", rate, str(len(group)), str(reached), *spent))
    return cells


def _rates(found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            f"{t['batch_size']:,}",
            "none" if t["rate"] is None else f"{t['rate']:g}",
            "yes" if t["reached"] else "no",
            "yes" if t["on_edge"] else "no",
        )
        for t in found["tuned"]
    ]
