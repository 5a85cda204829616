"""The report of a run: one self-contained HTML file."""

import html
from collections.abc import Callable
from pathlib import Path

from .. import _commands, _files
from .._errors import UsageError
from ..records.runs import OF_DATA_AND_MODEL, Result, StoredRun, Summary
from .curves import curve_panels, read_rows
from .document import commands, figure, made_on, table
from .section import write_report


def write_page(workdir: str | Path) -> Path:
    """Writes `report.html` into the folder of a run, from the result files in that folder.

    Args:
      workdir: the folder of a run that has ended.

    Returns:
      The path of the page.

    Raises:
      UsageError: the folder holds no complete run.
    """
    workdir = Path(workdir)
    try:
        summary = _files.read_json(workdir / "summary.json", Summary)
        stored = _files.read_json(workdir / "config.json", StoredRun)
        _, broken = read_rows(workdir / "metrics.jsonl")
    except UsageError as error:
        raise UsageError(f"{workdir} holds no complete run ({error}); the training command completes it") from error
    return write_report(workdir, lambda: _page(workdir, summary, stored, broken))


def _page(workdir: Path, summary: Summary, stored: StoredRun, broken: int) -> tuple[str, list[str]]:
    """Returns the title and the body of the page."""
    config = stored.config
    note = (stored.data.note if stored.data is not None else None) or ""
    # A problem brings what other runs are told by options.
    of_problem = config.get("problem")
    trained = of_problem or f"{config['model']} on {config['dataset']}"
    title = f"{trained}, batch {config['batch_size']}"
    best = ", ".join(f"{_score(result)} on {_of(name)}" for name, result in summary.results.items())
    has_accuracy = any(result.accuracy is not None for result in summary.results.values())
    caption = f"Loss{', accuracy' if has_accuracy else ''} and learning rate against updates."
    if config.get("label_smoothing") and not of_problem:
        caption += " The loss on training batches is against smoothed targets."
    if broken:
        caption += f" {broken} rows that were cut short are left out."
    options = [(name, _commands.shareable(str(value))) for name, value in config.items() if value is not None]
    if of_problem:
        options = [(name, value) for name, value in options if name not in OF_DATA_AND_MODEL]
    parts = [
        made_on([summary.first_step_ended] if summary.first_step_ended else []),
        f"<p>{summary.updates:,} updates reached {html.escape(best)}. {html.escape(note)}</p>",
        figure(curve_panels(workdir), caption),
        "<h2>Results</h2>",
        _results(summary),
        f"<h2>Where the time went{_starts(summary)}</h2>",
        table(("spent on", "seconds"), [(name, f"{value:.1f}") for name, value in summary.seconds.items()]),
        "<h2>Made by</h2>",
        commands(_commands.shareable_text(summary.command)),
        f"<p>{html.escape(summary.devices)}; "
        + html.escape(", ".join(f"{k} {v}" for k, v in summary.versions.items()))
        + "</p>",
        f"<h2>Configuration</h2><details><summary>All {len(options)} options</summary>",
        table(("option", "value"), options, numbers=False),
        "</details>",
    ]
    return title, parts


def _results(summary: Summary) -> str:
    """Returns the table of the results, without columns that no split has a value for."""
    columns: tuple[tuple[str, Callable[[Result], float | None], str], ...] = (
        ("examples", lambda r: r.examples, ","),
        ("accuracy", lambda r: r.accuracy, ".2%"),
        ("loss", lambda r: r.loss, ".4f"),
        ("mean IoU", lambda r: r.mean_iou, ".2%"),
    )
    results = summary.results.items()
    known = [column for column in columns if any(column[1](result) is not None for _, result in results)]
    rows = [(name, *(_known(value(result), form) for _, value, form in known)) for name, result in results]
    return table(("split", *(head for head, _, _ in known)), rows)


def _score(result: Result) -> str:
    """Returns the score of a split as words in a sentence."""
    if result.accuracy is None:
        return f"a loss of {result.loss:.4f}"
    return f"{result.accuracy:.2%}" if result.mean_iou is None else f"mean IoU {result.mean_iou:.2%}"


def _of(split: str) -> str:
    """Returns the name of a split as words in a sentence."""
    return "what is held out" if split == "held out" else split


def _known(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _starts(summary: Summary) -> str:
    starts = summary.starts
    return f", over {starts} starts, without what was lost between them" if starts > 1 else ""
