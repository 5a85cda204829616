"""Which batch size to use, from the files of a recommendation alone: lines for a terminal, and a page."""

import html
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import _files, records
from experiments._errors import UsageError
from experiments.reporting.curves import read_study
from experiments.reporting.document import commands, figure, made_on, table
from experiments.reporting.recommendation_text import (
    command,
    headline,
    measured,
    predictions,
    reasons,
    settings,
    spent,
)
from experiments.reporting.section import moments_of, write_report
from experiments.reporting.style import (
    COLOUR,
    GREY,
    SECOND,
    canvas,
    legend,
    logarithmic,
    sizes_axis,
)

FILE = "recommendation.json"
EXPECT = "What to expect at half, one and two times this size; in brackets, where 19 of 20 runs should lie"


def recommendation_lines(result: dict[str, Any]) -> list[str]:
    """The recommendation, then why, then the numbers, as lines of text.

    Args:
      result: from `experiments.studies.recommending.run.recommend`.
    """
    evidence, advice = result["evidence"], result["advice"]
    lines = [headline(result), ""]
    if advice is not None:
        rows = [[cell.replace(" to ", "-") for cell in cells] for cells in predictions(advice)]
        first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines += [command(advice), "", *(f"{name:<10}{text}" for name, text in settings(advice, evidence)), ""]
        lines += ["Why", *(f"- {text}" for text in reasons(advice)), "", f"{EXPECT}:", ""]
        lines += [
            "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
            for name, *cells in rows
        ]
        lines.append("")
    lines += [f"Measured in {spent(result)}", *(f"- {text}" for text in measured(evidence))]
    if evidence["not_measured"]:
        lines += ["", "Not measured", *(f"- {text}" for text in evidence["not_measured"])]
    return lines


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
        axes.fill_between(sizes, low, high, color=COLOUR, alpha=0.15, linewidth=0, label="19 of 20 runs")
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
        axes.axvline(advice["batch_size"], color=SECOND, linewidth=1, label=f"recommended: {advice['batch_size']:,}")
    sizes_axis(axes, sizes)
    logarithmic(axes, label)
    legend(axes)
    return drawing


def write_recommendation_page(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a recommendation.

    Raises:
      UsageError: there is no recommendation in the folder, or it is damaged.
    """
    return write_report(folder, lambda: _page(folder))


def _page(folder: str | Path) -> tuple[str, list[str]]:
    """Title and body of the page."""
    result = _read(folder)
    evidence, advice = result["evidence"], result["advice"]
    rows = read_study(folder).values() if (Path(folder) / "results.jsonl").exists() else ()
    parts = [made_on(moments_of(rows)), f"<p><strong>{html.escape(headline(result))}</strong></p>"]
    if advice is not None:
        head, *cells = predictions(advice)
        parts += [
            commands(command(advice)),
            table(("setting", ""), settings(advice, evidence), numbers=False),
            "<h2>Why</h2>",
            _list(reasons(advice)),
            figure(
                recommendation_figure(folder),
                "Shaded: where 19 of 20 runs should end. Runs are shown at any learning rate."
                if advice["candidates"][0]["seconds"]
                else "Shaded: the 95% interval of the time per update.",
            ),
            "<h2>What to expect</h2>",
            f"<p>{EXPECT}.</p>",
            table(head, cells, wrap=True),
        ]
    parts += ["<h2>Measured</h2>", _list(measured(evidence))]
    if evidence["not_measured"]:
        parts += ["<h2>Not measured</h2>", _list(evidence["not_measured"])]
    parts.append(f"<p>{spent(result)} were spent.</p>")
    options = evidence["options"]
    return f"Which batch size for {options.get('model', 'simple_cnn')} on {options['dataset']}?", parts


def _list(texts: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def _read(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / FILE
    if not path.exists():
        raise UsageError(f"{folder} holds no {FILE}; run experiments.recommend with that --workdir")
    return _files.read_json(path, records.RECOMMENDATION)
