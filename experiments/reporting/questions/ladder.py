"""Question 6: the parts of a recipe that repair a very large batch, from the study's files alone."""

import itertools
import math
from typing import NamedTuple

from matplotlib.figure import Figure

from ..document import figure
from ..question import Report
from ..section import Section
from ..seeds import (
    Groups,
    by_seed,
    label_of,
    mean_of,
    seeds_caption,
    seeds_figure,
    seeds_table,
    spread_of,
)
from ..study_files import Source, StudyFiles, opened

NUMBER, TITLE = 6, "What repairs a very large batch, and by how much?"
# Hoffer et al., arXiv 1705.08741, 2017: a fully connected network (F1) on MNIST, test accuracy in percent.
PUBLISHED = (
    "small batch 98.27, large batch 97.05, with its rate adapted 97.55, with ghost batches 97.60, trained longer 98.53"
)


def rungs_figure(study: Source, part: str = "ladder") -> Figure:
    """Draws test accuracy of the rungs of the ladder, or of the runs of another part whose seeds are compared.

    Args:
      study: the study, or its folder.
      part: the name of the part, such as "backwards".
    """
    return seeds_figure(by_seed(opened(study).rows_of(part)))


def ladder_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if the part was run."""
    groups = by_seed(study.rows_of("ladder"))
    if not groups:
        return []
    parts = [
        figure(seeds_figure(groups), seeds_caption(groups)),
        seeds_table("recipe", groups),
        f"<p>Published (Hoffer et al., arXiv 1705.08741, F1 on MNIST; quoted at second hand): {PUBLISHED}.</p>",
    ]
    return [Section(NUMBER, TITLE, _answer(groups), parts)]


class WarmupGain(NamedTuple):
    """The gain of accuracy by warmup beside the linear rate.

    Attributes:
      gain: in points of the mean accuracy.
      spread: how far the seeds of either rung lie apart, at most.
      seeds: the number of seeds of a rung.
      batch_size: examples per update.
    """

    gain: float
    spread: float
    seeds: int
    batch_size: int


def warmup_gain(study: StudyFiles) -> WarmupGain | None:
    """Returns what the rung of warmup adds to the one before; None: the part was not run."""
    rungs = [rows for _, rows in sorted(by_seed(study.rows_of("ladder")).items())]
    groups = next((pair for pair in itertools.pairwise(rungs) if label_of(pair[1]).startswith("+ warmup")), None)
    if groups is None:
        return None
    before, after = map(spread_of, groups)
    if not math.isfinite(before.mean + after.mean):
        return None
    spread = max(one.greatest - one.least for one in (before, after))
    return WarmupGain(after.mean - before.mean, spread, min(map(len, groups)), groups[1][0].batch_size)


def _answer(groups: Groups) -> str:
    means = [(label_of(rows), mean_of(rows)) for rows in groups.values()]
    means = [(name, mean if math.isfinite(mean) else 0.0) for name, mean in means]
    size = max(row.batch_size for rows in groups.values() for row in rows)
    best = max(means, key=lambda pair: pair[1])
    if best == means[0]:
        text = f"At a batch of {size:,} nothing is better than {means[0][0]}, {means[0][1]:.2f}%"
    else:
        text = f"A batch of {size:,} goes from {means[0][1]:.2f}% ({means[0][0]}) to {best[1]:.2f}% ({best[0]})"
        # Over the best of all before it: what takes a bad change back is no gain.
        highest = itertools.accumulate((mean for _, mean in means), max)
        gains = [(name, mean - before) for (name, mean), before in zip(means[1:], highest, strict=False)]
        step = max(gains, key=lambda pair: pair[1])
        text += f"; the largest single gain over all before it is “{step[0].lstrip('+ ')}”, {step[1]:+.2f} points"
    seeds = max(len(rows) for rows in groups.values())
    if seeds == 1:
        return f"{text}. One seed a rung, so steps of a tenth of a point say little."
    spreads = [spread_of(rows) for rows in groups.values()]
    apart = max(spread.greatest - spread.least for spread in spreads if math.isfinite(spread.mean))
    return f"{text}. {seeds} seeds a rung, which lie up to {apart:.2f} points apart."


REPORT = Report(order=50, sections=(ladder_sections,))
