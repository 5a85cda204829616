"""How long an update and an epoch take, by batch size; whether sizes that are powers of two are faster.

Short runs, in turn over the batch sizes, several rounds: a machine that is slow for a while is so for all of them.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments._errors import UsageError
from experiments.studies.jobs import Job
from experiments.studies.scaling import fit_step_time

# Of a run.
LEAST_STEPS, MOST_STEPS = 5, 300
# A size this close to a power of two, relative to it, is its neighbour.
NEAR = 0.05


class Setting(NamedTuple):
    """What to time.

    Attributes:
      batch_sizes: to time; those near a power of two are compared with it.
      examples: of a run, about.
      rounds: how often each is timed.
    """

    batch_sizes: tuple[int, ...]
    examples: int
    rounds: int


def jobs(options: dict[str, Any], setting: Setting) -> list[Job]:
    """Every batch size in every round."""
    return [
        Job(
            f"time-b{batch_size}-round{number}",
            {
                **options,
                "batch_size": batch_size,
                "steps": min(MOST_STEPS, max(LEAST_STEPS, setting.examples // batch_size)),
                "schedule": "constant",
                "warmup_epochs": 0,
                "learning_rate": 0.01,
                "seed": number,
            },
        )
        for number in range(setting.rounds)
        for batch_size in setting.batch_sizes
    ]


def analyse(rows: Sequence[dict[str, Any]], train_size: int) -> dict[str, Any]:
    """Seconds of an update and of an epoch, the fit of the step time, and sizes beside the power of two nearby.

    Args:
      rows: of the study.
      train_size: training examples, which make an epoch.

    Returns:
      `sizes`: of each batch size its `kind`, and for each round the seconds of an update (`computing`) and those in
      all, with what the compiled step does not hide (`in_all`), and of an epoch of whole batches likewise
      (`epoch_computing`, `epoch_in_all`: medians). `fit`: as `fit_step_time` gives it, or None. `neighbours`: for each
      size near a power of two, its throughput over that of the power, median, least and greatest of the rounds.
    """
    times: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        if row["key"].startswith("time-") and "summary" in row:
            seconds, updates = row["summary"]["seconds"], row["summary"]["updates"]
            outside = sum(seconds.get(name, 0.0) for name in ("start", "compile", "evaluate", "checkpoint"))
            size, number = row["options"]["batch_size"], row["options"]["seed"]
            times[size][number] = (seconds["compute"] / updates, (seconds["in all"] - outside) / updates)
    sizes = []
    for size, rounds in sorted(times.items()):
        computing, in_all = ([pair[i] for pair in rounds.values()] for i in (0, 1))
        sizes.append(
            {
                "batch_size": size,
                "kind": kind(size),
                "computing": computing,
                "in_all": in_all,
                "epoch_computing": train_size // size * statistics.median(computing),
                "epoch_in_all": train_size // size * statistics.median(in_all),
            }
        )
    points = [(entry["batch_size"], seconds) for entry in sizes for seconds in entry["computing"]]
    fit = None
    try:
        fitted = fit_step_time([b for b, _ in points], [t for _, t in points])
        fit = {**fitted._asdict(), "intervals": {name: list(ends) for name, ends in fitted.intervals.items()}}
        del fit["draws"]
    except UsageError:
        pass
    return {"train_size": train_size, "sizes": sizes, "fit": fit, "neighbours": _neighbours(times)}


def kind(size: int) -> str:
    """What a batch size is.

    Example:
      >>> kind(64), kind(72), kind(60)
      ('power of two', 'multiple of 8', 'neither')
    """
    if size & (size - 1) == 0:
        return "power of two"
    return "multiple of 8" if size % 8 == 0 else "neither"


def _neighbours(times: dict[int, dict[int, tuple[float, float]]]) -> list[dict[str, Any]]:
    found = []
    for power in (size for size in sorted(times) if kind(size) == "power of two"):
        for size in sorted(times):
            shared = sorted(times[size].keys() & times[power].keys())
            if size == power or abs(size - power) > NEAR * power or not shared:
                continue
            # In examples a second, each round by itself.
            ratios = [size / times[size][r][0] / (power / times[power][r][0]) for r in shared]
            found.append(
                {
                    "batch_size": size,
                    "kind": kind(size),
                    "power": power,
                    "throughput": [statistics.median(ratios), min(ratios), max(ratios)],
                }
            )
    return found
