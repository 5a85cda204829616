"""The parts of a page: one HTML file that needs nothing beside it, readable on a phone."""

import datetime
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatterMathtext

from .. import _files

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c2330; --quiet: #5a6475; --line: #e3e7ee; --code: #f4f6f9;
  --link: #1558b0; --shade: rgb(28 35 48 / .25); }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
a { color: var(--link); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } .made { color: var(--quiet); }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
figcaption { color: var(--quiet); font-size: .9rem; }
.panels { display: flex; flex-wrap: wrap; gap: 1rem; } .panels svg { flex: 1 1 17rem; width: auto; min-width: 0; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem .25rem 0; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; } .wrap td.n { white-space: normal; }
td:first-child { min-width: 5rem; } tr { border-bottom: 1px solid var(--line); }
code, pre { font-size: .85rem; background: var(--code); }
pre { padding: .7rem; overflow-x: auto; white-space: pre-wrap; }
pre span { white-space: nowrap; }
/* A shadow at the side where a table goes on. */
.scroll { overflow-x: auto; margin: .8rem 0; background-repeat: no-repeat;
  background-attachment: local, local, scroll, scroll; background-position: left, right, left, right;
  background-size: 3rem 100%, 3rem 100%, .8rem 100%, .8rem 100%;
  background-image: linear-gradient(90deg, var(--page) 40%, transparent),
    linear-gradient(-90deg, var(--page) 40%, transparent), linear-gradient(90deg, var(--shade), transparent),
    linear-gradient(-90deg, var(--shade), transparent); }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181f; --text: #e4e8ef; --quiet: #a3adbd; --line: #2c3440; --code: #1e242e; --link: #7db4ff;
    --shade: rgb(228 232 239 / .35); }
  figure svg { filter: invert(1) hue-rotate(180deg); } }
@media print { figure, tr { break-inside: avoid; } h2 { break-after: avoid; } .scroll { overflow: visible; } }
"""
# A picture of its own has a background, for it may stand on any page; where the reader's pages are dark it is dark.
_DARK = "<style>@media (prefers-color-scheme: dark) { #figure_1 { filter: invert(1) hue-rotate(180deg); } }</style>"


def document(title: str, parts: Iterable[str]) -> str:
    """Returns a page of HTML from its parts."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def commands(text: str) -> str:
    """Returns commands to copy, one per line, which a narrow page breaks between words, not at the dashes of a flag."""
    return "<pre>" + re.sub(r"\S+", lambda word: f"<span>{html.escape(word[0])}</span>", text) + "</pre>"


def figure(drawing: Figure | Sequence[Figure], caption: str) -> str:
    """Returns drawings inside the page with a caption; several stand side by side, or below each other on a phone."""
    drawings = [drawing] if isinstance(drawing, Figure) else list(drawing)
    # Not much larger than they were drawn, however wide the page.
    most = f"{1.4 * sum(one.get_figwidth() for one in drawings):.1f}in"
    # Names of shapes that are the same each time, and differ between the figures of a page.
    pictures = [_svg(one, f"{caption} {place}", transparent=True) for place, one in enumerate(drawings)]
    pictures = [picture[picture.index("<svg") :] for picture in pictures]
    inside = pictures[0] if len(pictures) == 1 else f'<div class="panels">{"".join(pictures)}</div>'
    return f'<figure style="max-width: {most}">{inside}<figcaption>{html.escape(caption)}</figcaption></figure>'


def write_svg(drawing: Figure, path: str | Path) -> Path:
    """Writes a drawing as a picture of its own, which is light or dark as the reader's pages are."""
    path = Path(path)
    picture = _svg(drawing, path.stem, transparent=False)
    _files.write(path, re.sub(r"<svg[^>]*>", lambda head: head[0] + _DARK, picture, count=1))
    return path


def _svg(drawing: Figure, names: str, *, transparent: bool) -> str:
    """Returns a drawing as SVG, without date and random names: the same files give the same text."""
    text = io.StringIO()
    _write_out_formulas(drawing)
    # Numbers of files may be too large for a logarithmic axis; what NumPy warns of is of no use to the reader.
    with matplotlib.rc_context({"svg.hashsalt": names}), np.errstate(all="ignore"):
        drawing.savefig(text, format="svg", metadata={"Date": None}, transparent=transparent)
    return text.getvalue()


def _write_out_formulas(drawing: Figure) -> None:
    """Shows every text as it stands: text comes from files, in which a dollar sign is a dollar sign.

    Powers of ten at the ticks of a logarithmic axis are matplotlib's own, and stay formulas.
    """
    axis_of_powers = [
        axis
        for axes in drawing.axes
        for axis in (axes.xaxis, axes.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext)
    ]
    powers = {id(tick.label1) for axis in axis_of_powers for tick in axis.get_major_ticks()}
    for text in drawing.findobj(Text):
        if isinstance(text, Text) and id(text) not in powers:
            text.set_parse_math(False)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True, wrap: bool = False) -> str:
    """Returns a table whose first column is text, and whose others are numbers or text; long cells may `wrap`.

    A column most of whose cells are numbers is aligned on the right; without `numbers` none is.
    """
    rows = list(rows)
    kinds = [
        ' class="n"' if numbers and place and _is_of_numbers([cells[place] for cells in rows]) else ""
        for place in range(len(head))
    ]

    def row(cells, tag):
        placed = zip(kinds, map(html.escape, cells), strict=True)
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in placed) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    breaks = ' class="wrap"' * wrap
    return f'<div class="scroll" tabindex="0"><table{breaks}>{row(head, "th")}{body}</table></div>'


def _is_of_numbers(column: Sequence[str]) -> bool:
    """Says whether most of the cells that hold anything begin with a number, and are no list of pairs."""
    filled = [cell for cell in column if re.search(r"\w", cell)]
    numbers = [cell for cell in filled if re.match(r"\W*\d", cell) and ": " not in cell]
    return 2 * len(numbers) >= len(filled)


def made_on(seconds: Iterable[float]) -> str:
    """Returns a line of the days of some moments in seconds since 1970; nothing if there are none.

    Example:
      >>> made_on([1795298150.0, 1795340928.0])
      '<p class="made">Measured on 21 to 22 November 2026 (UTC).</p>'
    """
    days = sorted({datetime.datetime.fromtimestamp(moment, datetime.UTC).date() for moment in seconds})
    if not days:
        return ""
    first, last = days[0], days[-1]
    text = f"{last.day} {last:%B %Y}"
    if first != last:
        same_month, same_year = f"{first:%B %Y}" == f"{last:%B %Y}", first.year == last.year
        text = f"{first.day}{'' if same_month else f' {first:%B}'}{'' if same_year else f' {first.year}'} to {text}"
    return f'<p class="made">Measured on {text} (UTC).</p>'
