"""The parts of a page: one HTML file that needs nothing beside it, readable on a phone."""

import html
import io
import re
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2330; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; } figcaption { color: #5a6475; font-size: .9rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem .25rem 0; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; } tr { border-bottom: 1px solid #e3e7ee; }
code, pre { font-size: .85rem; background: #f4f6f9; } pre { padding: .7rem; overflow-x: auto; white-space: pre-wrap; }
pre span { white-space: nowrap; }
.scroll { overflow-x: auto; margin: .8rem 0; }
@media print { figure, tr { break-inside: avoid; } h2 { break-after: avoid; } .scroll { overflow: visible; } }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A page of HTML from its parts."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def commands(text: str) -> str:
    """Commands to copy, one a line, which a narrow page breaks between words, and not at the dashes of a flag."""
    return "<pre>" + re.sub(r"\S+", lambda word: f"<span>{html.escape(word[0])}</span>", text) + "</pre>"


def figure(drawing: Figure, caption: str) -> str:
    """A drawing inside the page, with what it shows."""
    text = io.StringIO()
    # No date, and no random names of shapes: of the same files the page is the same.
    with matplotlib.rc_context({"svg.hashsalt": caption}):
        drawing.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    # Not much larger than it was drawn, however wide the page.
    most = f"{1.4 * drawing.get_figwidth():.1f}in"
    return (
        f'<figure style="max-width: {most}">{svg[svg.index("<svg") :]}<figcaption>{html.escape(caption)}</figcaption>'
        "</figure>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""

    def row(cells, tag):
        first, *rest = (html.escape(cell) for cell in cells)
        return f"<tr><{tag}>{first}</{tag}>" + "".join(f'<{tag} class="n">{c}</{tag}>' for c in rest) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table>{row(head, "th")}{body}</table></div>'
