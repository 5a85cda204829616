"""Recommendations beside exhaustive grids, as tables in Markdown, from the rows of `recommend_suite`."""

from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as two tables in Markdown: batch size at rate, time to the target, their ratio; and predictions."""
    settings = []
    for row in rows:
        spent, grid = row["recommendation"]["seconds"], row["grid"]["seconds"]
        settings.append(
            (
                f"{row['problem']}, {row['target']:.1%}",
                _short(row["best"]),
                _short(row["recommended"]) if "recommended" in row else _why_none(row),
                _seconds(row["recommended"]["predicted"]) if "recommended" in row else "",
                "not measured" if row["ratio"] is None else "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]),
                f"{spent:,.0f} s of {grid:,.0f} s, {spent / grid:.1%}",
            )
        )
    predicted = [
        (
            row["problem"],
            f"{p['batch_size']}",
            "{:,.0f} ({:,.0f} to {:,.0f})".format(*p["predicted"]),
            f"{p['measured']:,.0f}",
            f"{p['off']:+.0%}",
        )
        for row in rows
        for p in row["predictions"]
    ]
    return [
        *_markdown(
            (
                "problem",
                "best of the grid",
                "recommended",
                "predicted (95%)",
                "its time over the best (95%)",
                "cost over the grid's",
            ),
            settings,
        ),
        "",
        *_markdown(("problem", "batch size, not tried", "updates predicted (95%)", "measured", "off by"), predicted),
    ]


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]


def _short(found: dict[str, Any]) -> str:
    setting = f"{found['batch_size']} at {found['rate']:g}"
    if found["seconds"] is None:
        return f"{setting}: not reached by every seed"
    updates = found["seconds"] / found["step_seconds"]
    return f"{setting}: {found['seconds']:.1f} s, {updates:,.0f} updates of {1e3 * found['step_seconds']:.1f} ms"


def _seconds(predicted: Sequence[float | None] | None) -> str:
    if predicted is None:
        return "not known"
    middle, low, high = ("no bound" if end is None else f"{end:.1f}" for end in predicted)
    return f"{middle} s ({low} to {high})"


def _why_none(row: dict[str, Any]) -> str:
    return f"none; not measured: {'; '.join(row['recommendation']['not_measured'])}"
