"""Question 11: the best recipe of a search at very large batches, from the study's files alone."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from matplotlib.figure import Figure

from ...records.questions.search import Analysis
from ...records.studies import StudyRow
from ..document import figure, table
from ..question import Report
from ..section import Section
from ..seeds import accuracy, spread_of
from ..study_files import Source, StudyFiles, opened
from ..style import GREY, MARKS, PALETTE, TEXT, canvas, legend, number, optimizer_name, sizes_axis

NUMBER, TITLE = 11, "How near does the best recipe bring a very large batch?"


def accuracy_figure(study: Source) -> Figure:
    """Draws test accuracy against batch size at a fixed number of epochs: every seed, and a line through their means.

    Args:
      study: the study, or its folder.
    """
    groups = _by_batch_size(opened(study).rows_of("search"))
    drawing, (axes,) = canvas()
    means = [statistics.mean(map(accuracy, rows)) for rows in groups.values()]
    axes.plot(list(groups), means, "-", color=GREY, linewidth=1.5, label="mean")
    best = [_optimizer(rows[0]) for rows in groups.values()]
    looks = dict(zip(dict.fromkeys(best), zip(PALETTE, MARKS, strict=True), strict=False))
    for place, (batch_size, rows) in enumerate(groups.items()):
        seeds = list(map(accuracy, rows))
        colour, mark = looks[best[place]]
        named = best[place] if place == best.index(best[place]) else None
        axes.plot([batch_size] * len(rows), seeds, mark, color=colour, alpha=0.5, label=named)
        side, is_above = _free_corner(means, place)
        axes.annotate(
            f"{means[place]:.2f}",
            (batch_size, max(seeds) if is_above else min(seeds)),
            (0, 8 if is_above else -8),
            textcoords="offset points",
            ha=side,
            va="bottom" if is_above else "top",
            fontsize=TEXT,
        )
    sizes_axis(axes, list(groups))
    axes.set(ylabel="test accuracy (%)")
    axes.margins(0.12, 0.3)
    legend(axes)
    return drawing


def _free_corner(heights: Sequence[float], place: int) -> tuple[Literal["left", "right"], bool]:
    """Returns where the label of a point on a line leaves the line free: its alignment, and whether it is above."""
    is_first, is_last = place == 0, place == len(heights) - 1
    rises_before = not is_first and heights[place - 1] <= heights[place]
    rises_after = not is_last and heights[place] < heights[place + 1]
    # Those at the sides stay within the axes.
    if is_first:
        return "left", not rises_after
    if is_last:
        return "right", rises_before
    if rises_before and rises_after:
        return "right", True
    return "left", not rises_after


def search_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if the part was run."""
    rows, parts = study.rows_of("search"), []
    if groups := _by_batch_size(rows):
        parts += [
            figure(accuracy_figure(study), "A mark is a seed; the line joins their means."),
            table(
                ("batch size", "updates", "optimizer", "peak rate", "changes", "mean", "least", "greatest"),
                [_final_cells(batch_size, group) for batch_size, group in groups.items()],
            ),
        ]
    if searched := [row for row in rows if row.kind == "search"]:
        parts += [
            "<p>The search: accuracy (%) on training images that were held out, one seed. A best rate on the edge of "
            "those tried is marked with *: a better one may lie beyond.</p>",
            table(("batch size", "optimizer", "rates: accuracy"), _search_cells(searched)),
        ]
    if changed := [row for row in rows if row.kind in ("change", "joined")]:
        parts += [
            "<p>Averaged weights and a batch ramp with every optimizer that takes them; then other changes of the best "
            "that averages weights itself and of the best of the others, each alone; then those that helped "
            "together:</p>",
            table(
                ("batch size", "optimizer", "change", "accuracy", "points"), _change_cells(searched, changed), wrap=True
            ),
        ]
    return [Section(NUMBER, TITLE, _answer(study, groups), parts)] if parts else []


def _answer(study: StudyFiles, groups: Mapping[int, Sequence[StudyRow]]) -> str:
    found = study.needed("search", Analysis)
    if not groups:
        return "No run of the search ended well."
    first, *others = groups
    means = {size: spread_of(group).mean for size, group in groups.items()}
    recipes = {recipe.batch_size: recipe for recipe in found.recipes}

    def of(size: int) -> str:
        recipe = recipes.get(size)
        named = [] if recipe is None else [optimizer_name(recipe.optimizer), *recipe.kept]
        with_ = f", with {', '.join(named)}" if named else ""
        return f"a batch of {size:,} ends at {means[size]:.2f}%{with_}"

    said = [of(first)]
    said += [f"{of(size)}: {abs(means[size] - means[first]):.2f} points {_side(means, size, first)}" for size in others]
    seeds = max(map(len, groups.values()))
    epochs = found.epochs or next(iter(groups.values()))[0].ended.epochs
    after = f"{number(epochs)} epoch{'s' * (epochs > 1)}"
    return f"After {after} {'; '.join(said)}. Means of {seeds} seed{'s' * (seeds > 1)}."


def _side(means: Mapping[int, float], size: int, first: int) -> str:
    return "behind" if means[size] < means[first] else "ahead"


def _change_cells(searched: Sequence[StudyRow], changed: Sequence[StudyRow]) -> list[tuple[str, ...]]:
    best: dict[tuple[int, str], float] = {}
    for row in searched:
        if row.summary is not None:
            start = row.batch_size, _optimizer(row)
            best[start] = max(best.get(start, 0.0), accuracy(row))
    cells = []
    for row in sorted(changed, key=lambda row: (_size_of(row), _optimizer(row))):
        start, ended = (_size_of(row), _optimizer(row)), row.summary is not None
        gained = f"{accuracy(row) - best[start]:+.2f}" if ended and start in best else "-"
        reached = f"{accuracy(row):.2f}" if ended else "not finite" if row.is_result else "failed"
        cells.append((f"{start[0]:,}", start[1], row.label, reached, gained))
    return cells


def _size_of(row: StudyRow) -> int:
    """Returns the batch size that a run is compared at, where a ramp ends."""
    return int(row.options.get("batch_ramp") or row.batch_size)


def _optimizer(row: StudyRow) -> str:
    return optimizer_name(str(row.options["optimizer"]))


def _by_batch_size(rows: Iterable[StudyRow]) -> dict[int, list[StudyRow]]:
    """Groups the runs of the best recipes that ended."""
    groups = defaultdict(list)
    for row in rows:
        if row.kind == "final" and row.summary is not None:
            groups[_size_of(row)].append(row)
    return dict(sorted(groups.items()))


def _final_cells(batch_size: int, group: Sequence[StudyRow]) -> tuple[str, ...]:
    first = group[0]
    return (
        f"{batch_size:,}",
        f"{first.ended.updates:,}",
        _optimizer(first),
        f"{first.learning_rate:g}",
        first.label or "none",
        *(f"{value:.2f}" for value in spread_of(group)),
    )


def _search_cells(searched: Iterable[StudyRow]) -> list[tuple[str, str, str]]:
    grids = defaultdict(list)
    for row in searched:
        if row.summary is not None:
            grids[row.batch_size, _optimizer(row)].append(row)
    cells = []
    for (batch_size, optimizer), grid in sorted(grids.items()):
        grid.sort(key=lambda row: row.learning_rate)
        best = max(grid, key=accuracy)
        edge = "*" if best in (grid[0], grid[-1]) else ""
        scores = ",  ".join(f"{row.learning_rate:g}: {accuracy(row):.2f}{edge if row is best else ''}" for row in grid)
        cells.append((f"{batch_size:,}", optimizer, scores))
    return cells


REPORT = Report(order=60, sections=(search_sections,), pictures={"search.svg": accuracy_figure})
