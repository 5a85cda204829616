"""A run's report: one HTML file that needs nothing beside it."""

import html
import io
import json
from pathlib import Path

from experiments._errors import UsageError
from experiments.reporting.curves import read_rows, training_curves

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2330; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; } figcaption { color: #5a6475; font-size: .9rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem .25rem 0; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } tr { border-bottom: 1px solid #e3e7ee; }
code, pre { font-size: .85rem; background: #f4f6f9; } pre { padding: .7rem; overflow-x: auto; white-space: pre-wrap; }
.scroll { overflow-x: auto; }
"""


def write_page(workdir: str | Path) -> Path:
    """Writes `report.html` into the folder of a run, from the result files there.

    Args:
      workdir: the folder of a run that has ended.

    Returns:
      The path of the page.

    Raises:
      UsageError: the folder holds no complete run.
    """
    workdir = Path(workdir)
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        stored = json.loads((workdir / "config.json").read_text())
        _, broken = read_rows(workdir / "metrics.jsonl")
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise UsageError(f"{workdir} holds no complete run ({error}); the training command completes it") from error
    config = stored["config"]
    drawing = io.StringIO()
    training_curves(workdir).savefig(drawing, format="svg")
    svg = drawing.getvalue()
    svg = svg[svg.index("<svg") :]
    note = stored["data"].get("note", "")
    title = f"{config['model']} on {config['dataset']}, batch {config['batch_size']}"
    best = ", ".join(f"{result['accuracy']:.2%} on {name}" for name, result in summary["results"].items())
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{summary['updates']:,} updates reached {html.escape(best)}. {html.escape(note)}</p>",
        f"<figure>{svg}<figcaption>Loss, accuracy and learning rate against updates."
        + (" The loss on training batches is against smoothed targets." if config.get("label_smoothing") else "")
        + (f" {broken} rows that were cut short are left out." if broken else "")
        + "</figcaption></figure>",
        "<h2>Results</h2>",
        _table(
            ("split", "examples", "accuracy", "loss"),
            [
                (name, f"{r['examples']:,}", f"{r['accuracy']:.2%}", f"{r['loss']:.4f}")
                for name, r in summary["results"].items()
            ],
        ),
        "<h2>Where the time went, since the last start</h2>",
        _table(("spent on", "seconds"), [(name, f"{value:.1f}") for name, value in summary["seconds"].items()]),
        "<h2>Made by</h2>",
        f"<pre>{html.escape(summary['command'])}</pre>",
        f"<p>{html.escape(summary['devices'])}; "
        + html.escape(", ".join(f"{k} {v}" for k, v in summary["versions"].items()))
        + "</p>",
        "<h2>Configuration</h2>",
        _table(("option", "value"), [(name, str(value)) for name, value in config.items() if value is not None]),
    ]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    path = workdir / "report.html"
    path.write_text(page)
    return path


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def row(cells, tag):
        first, *rest = (html.escape(cell) for cell in cells)
        return f"<tr><{tag}>{first}</{tag}>" + "".join(f'<{tag} class="n">{c}</{tag}>' for c in rest) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table>{row(head, "th")}{body}</table></div>'
