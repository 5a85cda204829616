"""How many updates to a target accuracy, by batch size: at one rate for all, and with the rate tuned at each.

Rates are constant, without warmup or decay, so that how long a run may go on has no part in how it goes. The target is
an accuracy on training images that are held out, where that can be.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments._errors import UsageError
from experiments.studies import jobs
from experiments.studies.jobs import Job
from experiments.studies.scaling import fit_steps_to_target

SEARCH_SEED = 100
# Of an epoch, between two evaluations.
RESOLUTION = 0.02
# Rates of a search are this factor apart.
FACTOR = 2.0
# How often a grid is extended where the best rate is on its edge.
MOST_EXTENSIONS = 6
CONFIDENCE = 0.95


class Setting(NamedTuple):
    """What to train, and how far.

    Attributes:
      options: of `TrainConfig`: data set, model.
      examples: of the training set, without those held out.
      held_out: training examples to evaluate on; 0: the test split.
      target: accuracy there.
      fixed_sizes: batch sizes to run at one rate.
      tuned_sizes: batch sizes to tune the rate at, in rising order.
      first_rate: a fair peak rate at the smallest of them, where the search starts.
      max_epochs: after which a run counts as not having reached the target.
      seeds: of the runs at one rate, and at the best rates.
    """

    options: dict[str, Any]
    examples: int
    held_out: int
    target: float
    fixed_sizes: tuple[int, ...]
    tuned_sizes: tuple[int, ...]
    first_rate: float
    max_epochs: int
    seeds: tuple[int, ...]


SETTINGS = {
    "mnist": Setting(
        {"dataset": "mnist"}, 55_000, 5_000, 0.98, (1, 6, 60, 600, 6000), (16, 64, 256, 1024, 4096), 0.01, 20, (0, 1)
    ),
    # Views of the same digits cannot be held out: the target is on the test views.
    "quick": Setting({"dataset": "digits"}, 60_000, 0, 0.9, (60, 600, 6000), (64, 512, 4096), 0.02, 3, (0, 1)),
}


def _options(setting: Setting, batch_size: int, seed: int, **changes: Any) -> dict[str, Any]:
    return {
        **setting.options,
        "batch_size": batch_size,
        "epochs": setting.max_epochs,
        "target_accuracy": setting.target,
        "validation_examples": setting.held_out,
        "evaluate_every": max(1, round(RESOLUTION * setting.examples / batch_size)),
        "log_every": max(1, round(RESOLUTION * setting.examples / batch_size)),
        "schedule": "constant",
        "warmup_epochs": 0,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "seed": seed,
        **changes,
    }


def fixed_jobs(setting: Setting, rate: float = 0.02, momentum: float = 0.5) -> list[Job]:
    """Every batch size at one rate, with each seed."""
    return [
        Job(
            f"fixed-b{batch_size}-seed{seed}",
            _options(setting, batch_size, seed, optimizer="sgd", learning_rate=rate, momentum=momentum),
        )
        for seed in setting.seeds
        for batch_size in setting.fixed_sizes
    ]


def updates_to_target(row: dict[str, Any]) -> int | None:
    """After how many updates a run reached its target; None: it did not."""
    if "summary" not in row:
        return None
    return row["summary"]["target"]["reached_after_updates"]


def tuned_job(setting: Setting, batch_size: int, rate: float, seed: int) -> Job:
    """A run with Nesterov's momentum of 0.9."""
    options = _options(setting, batch_size, seed, optimizer="nesterov", learning_rate=rate)
    return Job(f"tuned-b{batch_size}-r{rate:.4g}-seed{seed}", options)


class Tuned(NamedTuple):
    """The outcome of the search at a batch size.

    Attributes:
      batch_size: of the search.
      rate: that reached the target first; None: none did.
      on_edge: the rate is the least or the greatest of the grid, which was not extended further.
      rows: of the search, in the order of their rates.
    """

    batch_size: int
    rate: float | None
    on_edge: bool
    rows: list[dict[str, Any]]


def search(setting: Setting, batch_size: int, centre: float, run: Callable[[Job], dict[str, Any]]) -> Tuned:
    """Finds the rate that reaches the target in the fewest updates, by one seed.

    Three rates around `centre`; while the best is on the edge, one further beyond it.

    Args:
      setting: of the study.
      batch_size: to tune at.
      centre: where to begin.
      run: gives the row of a job.

    Raises:
      UsageError: a run failed, and not by a loss that is not finite.
    """

    def tried(exponent: int) -> dict[str, Any]:
        row = run(tuned_job(setting, batch_size, _rate(centre, exponent), SEARCH_SEED))
        if "error" in row and not row["diverged"]:
            raise UsageError(f"the search stopped at {row['key']}: {row['error']}")
        return row

    rows = {e: tried(e) for e in (-1, 0, 1)}
    for _ in range(MOST_EXTENSIONS):
        best = _best(rows)
        if best is None:
            # No rate reaches it: a loss that is not finite says too high, another one too low.
            beyond = min(rows) - 1 if any("error" in row for row in rows.values()) else max(rows) + 1
        elif best in (min(rows), max(rows)):
            beyond = best - 1 if best == min(rows) else best + 1
        else:
            break
        rows[beyond] = tried(beyond)
    best = _best(rows)
    rate = None if best is None else _rate(centre, best)
    return Tuned(batch_size, rate, best in (min(rows), max(rows)), [rows[e] for e in sorted(rows)])


def _rate(centre: float, exponent: int) -> float:
    # Four digits, so that a key names the rate that was run.
    return float(f"{centre * FACTOR**exponent:.4g}")


def _best(rows: dict[int, dict[str, Any]]) -> int | None:
    reached = {e: updates for e, row in rows.items() if (updates := updates_to_target(row)) is not None}
    return min(reached, key=lambda e: reached[e], default=None)


def run_tuned(setting: Setting, folder: Path) -> list[Tuned]:
    """The search at every batch size, each begun at the best rate of the size below; then the best rate's seeds.

    Returns:
      What each search found; the rows of all runs are in the folder.
    """
    found: list[Tuned] = []
    centre = setting.first_rate
    with jobs.Runner(folder) as runner:
        for batch_size in setting.tuned_sizes:
            tuned = search(setting, batch_size, centre, runner.run)
            found.append(tuned)
            if tuned.rate is None:
                continue
            centre = tuned.rate
            for seed in setting.seeds:
                runner.run(tuned_job(setting, batch_size, tuned.rate, seed))
    return found


def analyse(setting: Setting, rows: Sequence[dict[str, Any]], found: Sequence[Tuned]) -> dict[str, Any]:
    """What the report needs beside the rows: the best rates, and the fit or why there is none."""
    sizes, steps, censored = steps_for_fit(rows, found)
    fit, why = None, None
    try:
        fitted = fit_steps_to_target(sizes, steps, censored=censored, confidence=CONFIDENCE)
        values = fitted._asdict()
        del values["draws"]
        fit = {**values, "intervals": {name: list(ends) for name, ends in fitted.intervals.items()}}
    except UsageError as error:
        why = str(error)
    return {
        "target": setting.target,
        "seeds": list(setting.seeds),
        "confidence": CONFIDENCE,
        "tuned": [{"batch_size": t.batch_size, "rate": t.rate, "on_edge": t.on_edge} for t in found],
        "fit": fit,
        "no_fit": why,
    }


def steps_for_fit(rows: Sequence[dict[str, Any]], found: Sequence[Tuned]) -> tuple[list[int], list[int], list[bool]]:
    """Batch sizes, updates and whether they are censored, of the runs at the best rates, for `fit_steps_to_target`."""
    best = {tuned.batch_size: tuned.rate for tuned in found if tuned.rate is not None}
    sizes, steps, censored = [], [], []
    for row in rows:
        options = row["options"]
        size = options["batch_size"]
        is_final = row["key"].startswith("tuned-") and options["seed"] != SEARCH_SEED
        if not is_final or best.get(size) != options["learning_rate"] or "summary" not in row:
            continue
        reached = updates_to_target(row)
        sizes.append(size)
        steps.append(row["summary"]["updates"] if reached is None else reached)
        censored.append(reached is None)
    return sizes, steps, censored
