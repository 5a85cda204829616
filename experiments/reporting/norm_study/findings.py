"""The sentences of the norm study's report."""

import math
import statistics

from ...records.norm_study import FIXED_OR_NOT, LOCAL, SYNCHRONISED, Task
from .cells import Grid, Study, cell, half_width
from .figure import sizes_of


def finding(cells: Grid, task: Task) -> str:
    """Returns a sentence that compares local and synchronised statistics at the two smallest per-device batch sizes."""
    said, fails = [], True
    for size in sizes_of(cells)[:2]:
        local, pooled = cells.get((LOCAL.key, size)), cells.get((SYNCHRONISED.key, size))
        if not local or not pooled or not pooled.scores:
            continue
        if not local.scores:
            said.append(f"with {size} per device local statistics end in a loss that is not finite")
            continue
        of_local, of_pooled = statistics.mean(local.scores), statistics.mean(pooled.scores)
        fails &= of_local < of_pooled / 2
        error = math.hypot(half_width(pooled.scores), half_width(local.scores))
        verdict = "a loss that is clear of the spread" if of_pooled - of_local > error else "not clear of the spread"
        if not math.isfinite(error):
            verdict = "one seed, whose spread is not known"
        said.append(
            f"with {size} per device local statistics reach {of_local:.1f}% and synchronised ones {of_pooled:.1f}% "
            f"({verdict})"
        )
    remark = f" {task.remark}" if task.remark and not fails else ""
    return f"{task.name.capitalize()}: {'; '.join(said)}.{remark}" if said else ""


def fixed_finding(study: Study) -> str:
    """Returns a sentence on the greatest learning rate at which each kind of statistics trains with a finite loss."""
    texts = []
    for norm in FIXED_OR_NOT:
        # Every seed must end with a finite loss.
        finite = [rate for rate, group in study.by_rate(norm).items() if (c := cell(group)).scores and not c.failed]
        rates = f"rates up to {max(finite):g}" if finite else "none of these rates"
        texts.append(f"{norm.statistics} train at {rates}")
    return (
        f"{' and '.join(texts)}. ".capitalize()
        + "Fixed statistics are right for the weights that they were computed with; an update moves weights and "
        "activations, but not them, so that nothing brings the activations back to the size that the layers above were "
        "made for."
    )


def cost(cells: Grid) -> str:
    """Returns a sentence on the ratio of the times of a synchronised and a local update with the same seed."""
    ratios = []
    for size in sizes_of(cells):
        pooled, local = cells.get((SYNCHRONISED.key, size)), cells.get((LOCAL.key, size))
        if pooled and local and len(pooled.milliseconds) == len(local.milliseconds):
            ratios += [a / b for a, b in zip(pooled.milliseconds, local.milliseconds, strict=True)]
    if not ratios:
        return ""
    return (
        f"An update with synchronised statistics takes {statistics.median(ratios):.2f} times as long as one with local "
        f"statistics ({min(ratios):.2f} to {max(ratios):.2f} over sizes and seeds; the devices share the cores of one "
        "machine, where a collective is a copy in memory and a wait for the others)."
    )
