"""Question 5: several updates per forward pass, from the study's files alone."""

import math
import statistics
from collections.abc import Sequence

from ...records.studies import StudyRow
from ..document import figure
from ..question import Report
from ..section import Section
from ..seeds import Groups, by_seed, label_of, mean_of, seeds_caption, seeds_figure, seeds_table
from ..study_files import StudyFiles


def backwards_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if the part was run."""
    groups = by_seed(study.rows_of("backwards"))
    if not groups:
        return []
    parts = [figure(seeds_figure(groups), seeds_caption(groups)), seeds_table("updates", groups)]
    title = "Does one forward pass with k updates buy anything over k times the rate?"
    return [Section(5, title, _answer(groups), parts)]


def _answer(groups: Groups) -> str:
    sentences = []
    for name in dict.fromkeys(label_of(rows).split(",")[0] for rows in groups.values()):
        of_name = [rows for rows in groups.values() if label_of(rows).startswith(f"{name},")]
        times = next(
            (rows for rows in of_name if "rate x" in label_of(rows) and not label_of(rows).endswith("x1")), None
        )
        split = next((rows for rows in of_name if "updates" in label_of(rows)), None)
        if times is None or split is None:
            continue
        text = f"with {name}, {_said(split)} and {_said(times)}"
        seconds = [[r.summary.seconds["compute"] for r in rows if r.summary is not None] for rows in (split, times)]
        if all(seconds):
            text += f", for {statistics.median(seconds[0]) / statistics.median(seconds[1]):.1f} times the computing"
        sentences.append(text)
    text = "; ".join(sentences) or "not all of it has been run"
    return text[:1].upper() + text[1:] + "."


def _said(rows: Sequence[StudyRow]) -> str:
    way = label_of(rows).split(", ")[1]
    return f"{way}: {mean_of(rows):.2f}%" if math.isfinite(mean_of(rows)) else f"{way}: not finite"


REPORT = Report(order=40, sections=(backwards_sections,))
