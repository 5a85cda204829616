"""The report of the norm study, from its rows alone."""

import html
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from experiments import _commands
from experiments.reporting.curves import read_study, rows_left_out
from experiments.reporting.document import commands, figure, made_on, table
from experiments.reporting.section import moments_of, write_report
from experiments.reporting.style import canvas, dress, legend

CONFIDENCE = 0.95
REFERENCE, LOCAL = "synchronised", "local"
# Told apart by people who are colour-blind, by the marker as well.
COLOURS = {
    REFERENCE: "#0072b2",
    LOCAL: "#d55e00",
    "span16": "#56b4e9",
    "span32": "#3787c8",
    "span64": "#1b4f8a",
    "renorm": "#009e73",
    "group": "#cc79a7",
    "frozen": "#5a6475",
}
MARKERS = {"span16": "v", "span32": "^", "span64": "D", "local": "s", "renorm": "P", "group": "*", "frozen": "X"}
WHY_NOT_WORSE = {
    "segmentation": "Local statistics lose less here than in a classification: an image has 48x48 positions at the "
    "first level of fcn and 12x12 at the last, so that the statistics of one image are not far from those of several."
}
METRICS = {"classification": "test accuracy (%)", "segmentation": "mean IoU (%)"}


class Cell(NamedTuple):
    """The runs of a norm at a per-device batch size, over seeds.

    Attributes:
      scores: of the runs that ended, in percent.
      failed: how many had a loss that is not finite.
      milliseconds: of computing an update, of each run that ended.
    """

    scores: tuple[float, ...]
    failed: int
    milliseconds: tuple[float, ...]


def half_width(values: Sequence[float]) -> float:
    """Half the width of Student's confidence interval of the mean, of 95%; infinite for one value.

    Example:
      >>> round(half_width([1.0, 2.0, 3.0]), 3)
      2.484
    """
    if len(values) < 2:
        return math.inf
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def read(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The results of a study by key: runs that ended, and those whose loss is not finite.

    Raises:
      UsageError: the folder holds no rows.
    """
    return {key: row for key, row in read_study(folder).items() if "summary" in row or row.get("diverged")}


def grid(rows: dict[str, dict[str, Any]], task: str) -> dict[tuple[str, int], Cell]:
    """The cells of a task by norm and per-device batch size."""
    groups = defaultdict(list)
    for key, row in rows.items():
        kind, *place = key.split("-")
        if kind == "grid" and place[0] == task:
            groups[place[1], int(place[2].removeprefix("p"))].append(row)
    return {place: _cell(group) for place, group in groups.items()}


def _cell(group: Sequence[dict[str, Any]]) -> Cell:
    ended = [row["summary"] for row in group if "summary" in row]
    return Cell(
        tuple(_score(summary) for summary in ended),
        len(group) - len(ended),
        tuple(1000 * summary["seconds"]["compute"] / summary["updates"] for summary in ended),
    )


def _score(summary: dict[str, Any]) -> float:
    result = next(iter(summary["results"].values()))
    return 100 * result.get("mean_iou", result["accuracy"])


def norm_study_figure(folder: str | Path) -> Figure:
    """Accuracy and mean IoU against the per-device batch size, a line for each norm: every seed, and their mean."""
    rows = read(folder)
    tasks = [task for task in METRICS if grid(rows, task)]
    drawing = Figure(figsize=(4.6 * max(1, len(tasks)), 4.4), layout="constrained")
    for axes, task in zip(drawing.subplots(1, max(1, len(tasks)), squeeze=False)[0], tasks, strict=False):
        _draw(axes, grid(rows, task), task)
    return drawing


def task_figures(folder: str | Path) -> list[Figure]:
    """The panels of `norm_study_figure`, each a figure of its own, which a page arranges by its width."""
    rows, drawings = read(folder), []
    for task in METRICS:
        if cells := grid(rows, task):
            drawing, (axes,) = canvas(4.4)
            _draw(axes, cells, task)
            drawings.append(drawing)
    return drawings


def _draw(axes: Axes, cells: dict[tuple[str, int], Cell], task: str) -> None:
    sizes = sorted({size for _, size in cells})
    norms = [norm for norm in COLOURS if any(name == norm for name, _ in cells)]
    several = any(len(cell.scores) > 1 for cell in cells.values())
    for place, norm in enumerate(norms):
        there = [(size, cells[norm, size].scores) for size in sizes if (norm, size) in cells]
        # Beside each other, so that no bar and no marker hides another's.
        beside = (place - (len(norms) - 1) / 2) * 0.05
        there = [(sizes.index(size) + beside, scores) for size, scores in there if scores]
        if not there:
            continue
        bold = norm in (REFERENCE, LOCAL)
        axes.plot(
            [at for at, _ in there],
            [statistics.mean(scores) for _, scores in there],
            color=COLOURS[norm],
            marker=MARKERS.get(norm, "o"),
            linewidth=2.4 if bold else 1.2,
            linestyle="-" if bold else "--",
            markersize=5,
            label=_name(norm),
            zorder=3 if bold else 2,
        )
        for at, scores in there:
            axes.vlines(at, min(scores), max(scores), color=COLOURS[norm], linewidth=1, zorder=1)
    if several:
        axes.vlines([], [], [], color="black", linewidth=1, label="worst to best seed")
    dress(axes)
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set(xlabel="examples per device", ylabel=METRICS[task], ylim=(0, None))
    legend(axes, task.capitalize(), columns=3)


def write_norm_study_page(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a study.

    Raises:
      UsageError: the folder holds no rows, or rows that do not fit together.
    """
    return write_report(folder, lambda: _page(folder))


def _page(folder: str | Path) -> tuple[str, list[str]]:
    """Title and body of the page."""
    rows = read(folder)
    parts: list[str] = [made_on(moments_of(rows.values()))]
    if lines := rows_left_out(folder):
        parts.append(f"<p>{lines} lines of results.jsonl are no whole rows and are left out.</p>")
    tasks = [task for task in METRICS if grid(rows, task)]
    if tasks:
        caption = "Lines join the means over seeds."
        parts += [
            *(f"<p>{html.escape(finding(rows, task))}</p>" for task in tasks),
            figure(task_figures(folder), caption),
        ]
    for task in tasks:
        cells = grid(rows, task)
        sizes = sorted({size for _, size in cells})
        seeds = max(len(cell.scores) + cell.failed for cell in cells.values())
        devices = next(row["options"]["num_devices"] for key, row in rows.items() if key.startswith("grid-"))
        head = [f"{METRICS[task]}, by examples a device", *map(str, sizes)]
        parts += [
            f"<h2>{task.capitalize()}</h2>",
            table(head, [_updates(rows, task, sizes), *_table(cells, sizes, devices, _score_text)]),
            f"<p>Mean of {seeds} seed{'s' * (seeds > 1)}"
            + (f" ± half of the {CONFIDENCE:.0%} confidence interval" if seeds > 1 else "")
            + ". A dash: the span is longer than the batch; an equals sign: as synchronised or local, which compute "
            "the same there.</p>",
            table(["an update, ms", *map(str, sizes)], _table(cells, sizes, devices, _time_text)),
            f"<p>{html.escape(_cost(cells, sizes))}</p>",
        ]
    if rates := _rates(rows):
        parts += [
            "<h2>Statistics that are fixed in advance</h2>",
            f"<p>{html.escape(fixed_finding(rows))}</p>",
            table(
                (
                    "peak rate",
                    *(f"{name}: {what}" for name in ("batch", "frozen") for what in ("accuracy (%)", "shift")),
                ),
                rates,
            ),
            "<p>The shift: how far what enters the norms at the end of training is from the statistics that they "
            "normalise by in evaluation, as |mean - mean used| in standard deviations, and the ratio of the standard "
            "deviations; medians over all features, of the first seed.</p>",
        ]
    ended = [row for row in rows.values() if "summary" in row]
    if ended:
        command = _commands.shareable_text(ended[0].get("command", ""))
        parts += [
            "<h2>Made by</h2>",
            commands(command),
            "<p>and likewise for each run</p>",
        ]
    studied = sorted(
        {f"{of.get('model', 'simple_cnn')} on {of.get('dataset')}" for of in (r["options"] for r in ended)}
    )
    return "Which statistics to normalise by" + (f": {' and '.join(studied)}" if studied else ""), parts


def finding(rows: dict[str, dict[str, Any]], task: str) -> str:
    """What local statistics do against synchronised ones, at the smallest per-device batch sizes, in a sentence."""
    cells = grid(rows, task)
    said, fails = [], True
    for size in sorted({size for _, size in cells})[:2]:
        local, pooled = cells.get((LOCAL, size)), cells.get((REFERENCE, size))
        if not local or not pooled or not pooled.scores:
            continue
        if not local.scores:
            said.append(f"with {size} a device local statistics end in a loss that is not finite")
            continue
        of_local, of_pooled = statistics.mean(local.scores), statistics.mean(pooled.scores)
        fails &= of_local < of_pooled / 2
        error = math.hypot(half_width(pooled.scores), half_width(local.scores))
        verdict = "a loss that is clear of the spread" if of_pooled - of_local > error else "not clear of the spread"
        if not math.isfinite(error):
            verdict = "one seed, whose spread is not known"
        said.append(
            f"with {size} a device local statistics reach {of_local:.1f}% and synchronised ones {of_pooled:.1f}% "
            f"({verdict})"
        )
    why = "" if fails or task not in WHY_NOT_WORSE else f" {WHY_NOT_WORSE[task]}"
    return f"{task.capitalize()}: {'; '.join(said)}.{why}" if said else ""


def fixed_finding(rows: dict[str, dict[str, Any]]) -> str:
    """One sentence on the greatest rate that each kind of statistics bears."""
    borne = {}
    for name in ("batch", "frozen"):
        groups = _by_rate(rows, name)
        # Borne: every seed ends with a finite loss.
        borne[name] = [rate for rate, group in groups.items() if (c := _cell(group)).scores and not c.failed]
    names = {"batch": "batch statistics", "frozen": "statistics of the training set, fixed before the first update,"}
    texts = [
        f"{names[name]} train at " + (f"rates up to {max(rates):g}" if rates else "none of these rates")
        for name, rates in borne.items()
    ]
    return (
        f"{' and '.join(texts)}. ".capitalize()
        + "Fixed statistics are right for the weights that they were computed with; an update moves weights and "
        "activations, but not them, so that nothing brings the activations back to the size that the layers above were "
        "made for."
    )


def _by_rate(rows: dict[str, dict[str, Any]], name: str) -> dict[float, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for key, row in rows.items():
        if key.startswith(f"rate-{name}-"):
            groups[row["options"]["learning_rate"]].append(row)
    return dict(sorted(groups.items()))


def _rates(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    batch, frozen = (_by_rate(rows, name) for name in ("batch", "frozen"))
    return [
        (f"{rate:g}", *(text for groups in (batch, frozen) for text in _rate_texts(groups.get(rate, []))))
        for rate in batch
    ]


def _rate_texts(group: Sequence[dict[str, Any]]) -> tuple[str, str]:
    shifts = [row["shift"] for row in group if "shift" in row]
    shift = f"{shifts[0]['mean']:.2f}, x {shifts[0]['std']:.2f}" if shifts else ""
    return _score_text(_cell(group)), shift


def _updates(rows: dict[str, dict[str, Any]], task: str, sizes: Sequence[int]) -> tuple[str, ...]:
    given = {key.split("-")[3]: row["options"]["steps"] for key, row in rows.items() if key.startswith(f"grid-{task}-")}
    return ("updates of a run", *(f"{given[f'p{size}']}" for size in sizes))


def _table(
    cells: dict[tuple[str, int], Cell], sizes: Sequence[int], devices: int, text: Callable[[Cell], str]
) -> list[tuple[str, ...]]:
    return [
        (_name(norm), *(text(cells[norm, n]) if (norm, n) in cells else _absent(norm, n, devices) for n in sizes))
        for norm in COLOURS
        if any(name == norm for name, _ in cells)
    ]


def _absent(norm: str, size: int, devices: int) -> str:
    """In place of a cell without runs: a span may be longer than the batch, or all of it, or what a device has."""
    if not norm.startswith("span"):
        return ""
    span = int(norm.removeprefix("span"))
    return "–" if span > size * devices else "=" if span in (size, size * devices) else ""


def _score_text(cell: Cell) -> str:
    if not cell.scores:
        return "not finite"
    text = f"{statistics.mean(cell.scores):.1f}"
    # An interval of those that did not fail would be one of a chosen few.
    if len(cell.scores) > 1 and not cell.failed:
        text += f" ± {half_width(cell.scores):.1f}"
    return text + (f" ({cell.failed} of {cell.failed + len(cell.scores)} not finite)" if cell.failed else "")


def _time_text(cell: Cell) -> str:
    return f"{statistics.median(cell.milliseconds):.0f}" if cell.milliseconds else ""


def _cost(cells: dict[tuple[str, int], Cell], sizes: Sequence[int]) -> str:
    """The time of a synchronised update over that of a local one, of the same seed."""
    ratios = []
    for size in sizes:
        pooled, local = cells.get((REFERENCE, size)), cells.get((LOCAL, size))
        if pooled and local and len(pooled.milliseconds) == len(local.milliseconds):
            ratios += [a / b for a, b in zip(pooled.milliseconds, local.milliseconds, strict=True)]
    if not ratios:
        return ""
    return (
        f"An update with synchronised statistics takes {statistics.median(ratios):.2f} times as long as one with local "
        f"statistics ({min(ratios):.2f} to {max(ratios):.2f} over sizes and seeds; the devices share the cores of one "
        "machine, where a collective is a copy in memory and a wait for the others)."
    )


def _name(norm: str) -> str:
    return norm.replace("span", "span ")
