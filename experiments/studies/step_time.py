"""How long an update and an epoch take, by batch size; whether sizes that are powers of two are faster.

Short runs, in turn over the batch sizes, several rounds: a machine that is slow for a while is so for all of them.
"""

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments._errors import UsageError
from experiments.studies.jobs import Job
from experiments.studies.scaling import as_json, fit_step_time

# Of a run. Its first update is slower than the others, by less than a tenth of so many.
LEAST_STEPS, MOST_STEPS = 10, 300
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
      rows: of `jobs`.
      train_size: training examples, which make an epoch.

    Returns:
      `sizes`: of each batch size its `kind`, and for each round the seconds of an update (`computing`) and those in
      all, with input and logging that the compiled step does not hide (`in_all`), and of as many examples as an epoch
      has likewise (`epoch_computing`, `epoch_in_all`: medians); and its `devices`. `fit`: as `fit_step_time` gives it,
      or None. `neighbours`: for each size near a power of two, its `throughput` over that of the power in each round.
      Both are of the sizes on the `devices` that most sizes have.
    """
    times: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    devices: dict[int, str] = {}
    for row in rows:
        if "summary" in row:
            seconds, updates = row["summary"]["seconds"], row["summary"]["updates"]
            inside = sum(seconds.get(name, 0.0) for name in ("input", "compute", "log"))
            size, number = row["options"]["batch_size"], row["options"]["seed"]
            times[size][number] = (seconds["compute"] / updates, inside / updates)
            devices[size] = row["summary"]["devices"]
    # Sizes that fewer devices divide are another machine's.
    usual = max(devices.values(), key=list(devices.values()).count, default="")
    times_there = {size: rounds for size, rounds in times.items() if devices[size] == usual}
    sizes = []
    for size, rounds in sorted(times.items()):
        computing, in_all = ([pair[i] for pair in rounds.values()] for i in (0, 1))
        sizes.append(
            {
                "batch_size": size,
                "kind": kind(size),
                "devices": devices[size],
                "computing": computing,
                "in_all": in_all,
                "epoch_computing": train_size / size * statistics.median(computing),
                "epoch_in_all": train_size / size * statistics.median(in_all),
            }
        )
    points = [(size, computing) for size, rounds in times_there.items() for computing, _ in rounds.values()]
    fit = None
    with contextlib.suppress(UsageError):
        fit = as_json(fit_step_time([b for b, _ in points], [t for _, t in points]))
    return {
        "train_size": train_size,
        "devices": usual,
        "sizes": sizes,
        "fit": fit,
        "neighbours": _neighbours(times_there),
    }


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
                    "throughput": ratios,
                }
            )
    return found
