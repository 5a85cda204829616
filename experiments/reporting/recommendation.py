"""Which batch size to use, from the files of a recommendation alone: lines for a terminal, and a page."""

import html
import json
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments._errors import UsageError
from experiments.reporting.document import commands, document, figure, table
from experiments.reporting.section import COLOUR, GREY, SECOND, canvas, interval, logarithmic, number, sizes_axis

FILE = "recommendation.json"
# Beyond this a bound says nothing.
MOST = 1e7
# Of all three numbers of a cell, said once.
UNITS = (" ms", " s", " min")
NOTHING = "No recommendation: what is missing would decide it."
# Of these options 0 is not the default.
ZERO = ("warmup_epochs", "weight_decay", "label_smoothing")
OUTCOME = {True: "reached", False: "not reached"}
SOURCES = {
    "runs": "runs to the target",
    "noise": "the gradient noise scale, a weaker ground than runs to the target at several batch sizes",
    "usual": "runs to the target at one batch size and a usual critical batch size, which is a guess",
}


def recommendation_lines(result: dict[str, Any]) -> list[str]:
    """What was measured, what is missing, and the advice, as lines of text.

    Args:
      result: from `experiments.studies.recommending.run.recommend`.
    """
    evidence, advice = result["evidence"], result["advice"]
    found = [f"measured  {text}" for text in measured(evidence)]
    found += [f"missing   {text}" for text in evidence["not_measured"]]
    found.append(f"spent     {_spent(result)}")
    if advice is None:
        return [*found, "", NOTHING]
    rows = predictions(advice)
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in rows
    ]
    facts = [f"{name:<10}{text}" for name, text in settings(advice, evidence)]
    return [*found, "", *facts, "", *lines, "", command(advice)]


def command(advice: dict[str, Any]) -> str:
    """The training command of an advice."""
    options = {name: value for name, value in advice["options"].items() if value not in (None, 0) or name in ZERO}
    return shlex.join(["python", "-m", "experiments.train", *(f"--{name}={value}" for name, value in options.items())])


def settings(advice: dict[str, Any], evidence: dict[str, Any]) -> list[tuple[str, str]]:
    """The setting, what binds and how sure it is, each with a name."""
    parts = "" if advice["accumulation_steps"] == 1 else f" x {advice['accumulation_steps']} accumulation"
    norm = evidence["options"].get("norm", "batch")
    micro = advice["batch_size"] // advice["accumulation_steps"]
    span = "the whole batch" if micro == advice["batch_size"] else f"each micro-batch of {micro:,}"
    span = span if advice["span"] is None else f"{advice['span']} examples"
    critical, knee = advice["critical_batch_size"], advice["knee"]
    return [
        (
            "batch",
            f"global {advice['batch_size']:,} = {evidence['devices']} {evidence['kind']} x "
            f"{advice['per_device']:,} per device{parts}",
        ),
        ("rate", f"{advice['optimizer']}, {advice['learning_rate']:g}, constant, no warmup"),
        ("norm", norm + (f", statistics over {span}" if norm == "batch" else "")),
        ("binds", f"{advice['binds']}; what would loosen it: {advice['loosen']}"),
        (
            "sure",
            f"within a tenth of the fastest in {advice['certainty']:.0%} of the draws, by {SOURCES[advice['source']]}",
        ),
        (
            "because",
            f"critical batch size {_count(critical['value'])} ({_bounds(critical['interval'])}), knee "
            f"{_count(knee['value'])} ({_bounds(knee['interval'])})",
        ),
    ]


def measured(evidence: dict[str, Any]) -> list[str]:
    """A line for each thing that was measured."""
    held_out = evidence["held_out"]
    goal = f"{held_out:,} held out for the target" if held_out else "none held out: the target is of the test split"
    texts = [f"data: {evidence['examples']:,} examples to train on, {goal}"]
    if memory := evidence["memory"]:
        text = f"memory: {memory['per_example'] / 2**20:.3g} MiB an example and {memory['fixed'] / 2**20:.3g} MiB"
        if memory["largest"] is not None:
            text += f"; the largest batch that fits in {memory['limit'] / 2**30:.1f} GiB: {memory['largest']:,}"
        if tried := memory["tried"]:
            how = f"failed ({tried['error']})" if tried["error"] else "ran"
            text += f"; {tried['batch_size']:,} {how}"
        texts.append(text)
    if points := evidence["step_time"]:
        shown = ", ".join(f"{size:,}: {_seconds(value)}" for size, value in sorted(dict(points).items()))
        texts.append(f"time of an update by batch size: {shown}")
    if race := evidence["race"]:
        shown = ", ".join(f"{size:,} at {rate:g}: {loss:.3g}" for size, rate, loss in sorted(race))
        texts.append(f"loss of short runs of equal time by batch size and rate: {shown}")
    if noise := evidence["noise"]:
        texts.append(
            f"gradient noise scale, median of {noise['measurements']} along a run: {_count(noise['scale'])} "
            f"({_bounds(noise['interval'])})"
        )
    return texts + [
        f"run: batch size {run['batch_size']:,}, rate {run['rate']:g}, seed {run['seed']}: "
        + ("diverged" if run["diverged"] else f"{OUTCOME[run['reached']]} after {run['updates']:,} updates")
        for run in evidence["runs"]
    ]


def predictions(advice: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a table with a column for half, one and two times the batch size, first the sizes themselves."""
    columns = [
        {
            "batch size": f"{p['batch_size']:,}",
            "an update": _with_bounds(p["step_seconds"], _seconds),
            "updates an epoch (left out)": f"{p['updates_per_epoch']:,} ({p['dropped']:.1%})",
            "updates": _with_bounds(p["updates"], _count),
            "epochs": _with_bounds(p["epochs"], _count),
            "computing to the target": _with_bounds(p["seconds"], _seconds),
            "memory": "not known" if p["memory"] is None else f"{p['memory'] / 2**30:.2f} GiB",
        }
        for p in advice["predictions"]
    ]
    return [(name, *(column[name] for column in columns)) for name in columns[0]]


def recommendation_figure(folder: str | Path) -> Figure:
    """Predicted time to the target against batch size, with its interval, and the runs that were made.

    Without a run that reached the target: the time of an update.

    Raises:
      UsageError: there is no recommendation in the folder.
    """
    result = _read(folder)
    evidence, advice = result["evidence"], result["advice"]
    drawing, (axes,) = canvas()
    candidates = [] if advice is None else advice["candidates"]
    name, label = "seconds", "seconds to the target"
    if not candidates or candidates[0]["seconds"] is None:
        name, label = "step_seconds", "seconds of an update"
    sizes = [c["batch_size"] for c in candidates]
    if sizes:
        middle, low, high = zip(*(c[name] for c in candidates), strict=True)
        # A band without a bound would hide the rest.
        high = [m * 10 if h is None else min(h, 10 * m) for h, m in zip(high, middle, strict=True)]
        axes.fill_between(sizes, low, high, color=COLOUR, alpha=0.15)
        axes.plot(sizes, middle, "-", color=COLOUR, linewidth=1.5, label="predicted")
    if name == "seconds":
        for reached, marker, text in ((True, "o", "run that reached it"), (False, "^", "run cut short")):
            runs = [r for r in evidence["runs"] if r["reached"] is reached and r["step_seconds"]]
            times = [r["updates"] * r["step_seconds"] for r in runs]
            style = {"color": GREY, "markersize": 4, "markerfacecolor": GREY if reached else "none"}
            if runs:
                axes.plot([r["batch_size"] for r in runs], times, marker, label=text, **style)
            sizes = [*sizes, *(r["batch_size"] for r in runs)]
    else:
        points = evidence["step_time"]
        axes.plot(*zip(*points, strict=True), "o", color=GREY, markersize=4, label="measured")
        sizes = [*sizes, *(size for size, _ in points)]
    if advice is not None:
        axes.axvline(advice["batch_size"], color=SECOND, linewidth=1, label=f"recommended, {advice['batch_size']:,}")
    sizes_axis(axes, sizes)
    logarithmic(axes, label)
    axes.legend(frameon=False, fontsize=8)
    return drawing


def write_recommendation_page(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a recommendation.

    Raises:
      UsageError: there is no recommendation in the folder.
    """
    result = _read(folder)
    evidence, advice = result["evidence"], result["advice"]
    if advice is None:
        parts = [f"<p><strong>{NOTHING}</strong></p>"]
    else:
        head, *rows = predictions(advice)
        parts = [
            commands(command(advice)),
            table(("setting", ""), settings(advice, evidence)).replace('class="n"', ""),
            "<h2>Predicted</h2>",
            table(head, rows),
            figure(
                recommendation_figure(folder),
                "Shaded: where a run should end (95%). Runs are shown at any rate."
                if advice["candidates"][0]["seconds"]
                else "Shaded: the interval (95%) of the time of an update.",
            ),
        ]
    parts += ["<h2>Measured</h2><ul>", *(f"<li>{html.escape(text)}</li>" for text in measured(evidence)), "</ul>"]
    if evidence["not_measured"]:
        parts += ["<h2>Missing</h2><ul>"]
        parts += [*(f"<li>{html.escape(text)}</li>" for text in evidence["not_measured"]), "</ul>"]
    parts.append(f"<p>{_spent(result)} were spent.</p>")
    path = Path(folder) / "report.html"
    path.write_text(document("Which batch size?", parts))
    return path


def _read(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / FILE
    if not path.exists():
        raise UsageError(f"{folder} holds no {FILE}; run experiments.recommend with that --workdir")
    return json.loads(path.read_text())


def _spent(result: dict[str, Any]) -> str:
    return f"{result['seconds'] / 60:.1f} of {number(result['minutes'])} minutes"


def _with_bounds(values: Sequence[float | None] | None, say: Callable[[float | None], str]) -> str:
    if values is None:
        return "not measured"
    texts, shared = [say(value) for value in values], ""
    for unit in UNITS:
        if all(text.endswith(unit) for text in texts):
            texts, shared = [text.removesuffix(unit) for text in texts], unit
    middle, low, high = texts
    return f"{middle} ({low} to {high}){shared}"


# What is not finite is null in the file.
def _bounds(ends: Sequence[float | None]) -> str:
    return interval([math.inf if end is None or end > MOST else end for end in ends])


def _count(value: float | None) -> str:
    return number(math.inf if value is None or value > MOST else value)


def _seconds(value: float | None) -> str:
    if value is None or value > MOST:
        return "no bound"
    if value < 0.1:
        return f"{1e3 * value:.3g} ms"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"
