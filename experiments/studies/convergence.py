"""How many updates to a target accuracy, by batch size: at one rate for all, and with the rate tuned at each.

Rates are constant, without warmup or decay, so that how long a run may go on has no part in how it goes. The target is
an accuracy on training images that are held out, where that can be.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments._errors import UsageError
from experiments.studies.jobs import Job, accuracy
from experiments.studies.scaling import as_json, fit_steps_to_target
from experiments.training.storage import metrics

SEARCH_SEED = 100
# Of an epoch, between two evaluations; those of 5,000 images take some 25% to 65% of the computing beside it.
RESOLUTION = 0.04
# Of a run; at a batch of one an epoch is a minute's worth of them.
MOST_UPDATES = 300_000
# By which a search that was given one rate goes on.
FACTOR = 2.0
# How often a grid is extended where the best rate is on its edge.
MOST_EXTENSIONS = 6
CONFIDENCE = 0.95


class Setting(NamedTuple):
    """How far to train, and at which batch sizes.

    Attributes:
      target: accuracy.
      fixed_sizes: batch sizes to run at one rate.
      tuned_sizes: batch sizes to tune the rate at, in rising order.
      rates: where the search starts at the smallest of them, in rising order; at each other size in the same steps
        about the best rate of the size below.
      max_epochs: after which, or after 300,000 updates, a run counts as not having reached the target.
      seeds: of the runs at one rate, and at the best rates.
    """

    target: float
    fixed_sizes: tuple[int, ...]
    tuned_sizes: tuple[int, ...]
    rates: tuple[float, ...]
    max_epochs: int
    seeds: tuple[int, ...]


class Data(NamedTuple):
    """What is trained, and on how much.

    Attributes:
      options: of `TrainConfig`: data set, model and what else is the same for all runs.
      examples: of the training set, without those held out.
      held_out: training examples to evaluate on; 0: the test split.
    """

    options: dict[str, Any]
    examples: int
    held_out: int


def _options(data: Data, setting: Setting, batch_size: int, seed: int, **changes: Any) -> dict[str, Any]:
    every = max(1, round(RESOLUTION * data.examples / batch_size))
    return {
        **data.options,
        "batch_size": batch_size,
        "epochs": max(1, min(setting.max_epochs, MOST_UPDATES * batch_size // data.examples)),
        "target_accuracy": setting.target,
        "validation_examples": data.held_out,
        "evaluate_every": every,
        "log_every": every,
        "schedule": "constant",
        "warmup_epochs": 0,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "seed": seed,
        **changes,
    }


def fixed_jobs(data: Data, setting: Setting, rate: float = 0.02, momentum: float = 0.5) -> list[Job]:
    """Every batch size at one rate, with each seed."""
    return [
        Job(
            f"fixed-b{batch_size}-seed{seed}",
            _options(data, setting, batch_size, seed, optimizer="sgd", learning_rate=rate, momentum=momentum),
        )
        for seed in setting.seeds
        for batch_size in setting.fixed_sizes
    ]


def grid_jobs(data: Data, setting: Setting) -> list[Job]:
    """Every batch size at every rate, with each seed: what a search, or a recommendation, is to be compared with."""
    return [
        tuned_job(data, setting, batch_size, rate, seed)
        for seed in setting.seeds
        for batch_size in setting.tuned_sizes
        for rate in setting.rates
    ]


def evaluations(workdir: Path) -> list[list[float]]:
    """Of a run: [updates, accuracy, loss] at each evaluation of the split that is evaluated first."""
    rows = [row for row in metrics.read(workdir / metrics.FILE) if row["kind"] not in metrics.NOT_EVALUATIONS]
    return [[row["step"], row["accuracy"], row["loss"]] for row in rows if row["kind"] == rows[0]["kind"]]


def updates_to_target(row: dict[str, Any]) -> int | None:
    """After how many updates a run reached its target; None: it did not."""
    if "summary" not in row:
        return None
    return row["summary"]["target"]["reached_after_updates"]


def tuned_job(data: Data, setting: Setting, batch_size: int, rate: float, seed: int) -> Job:
    """A run with Nesterov's momentum of 0.9."""
    options = _options(data, setting, batch_size, seed, optimizer="nesterov", learning_rate=rate)
    return Job(f"tuned-b{batch_size}-r{rate:.4g}-seed{seed}", options)


class Tuned(NamedTuple):
    """The outcome of the search at a batch size.

    Attributes:
      batch_size: of the search.
      rate: that reached the target first; if none did, that with the best accuracy at its end; None: there is none.
      reached: the target was reached.
      on_edge: the rate is the least or the greatest of the grid, which was not extended further.
      rows: of the search, in the order of their rates.
    """

    batch_size: int
    rate: float | None
    reached: bool
    on_edge: bool
    rows: list[dict[str, Any]]


def search(
    data: Data,
    setting: Setting,
    batch_size: int,
    rates: Sequence[float],
    run: Callable[[Job], dict[str, Any]],
) -> Tuned:
    """Finds the rate that reaches the target in the fewest updates, by one seed.

    All of `rates`; while the best is on the edge, one further beyond it. A run that fails, and not by a loss that is
    not finite, ends the search at this batch size.

    Args:
      data: to train on.
      setting: of the part.
      batch_size: to tune at.
      rates: where to begin.
      run: gives the row of a job.
    """
    rows: dict[float, dict[str, Any]] = {}
    failed = False
    waiting = list(rates)
    while waiting and not failed:
        rate = waiting.pop(0)
        rows[rate] = run(tuned_job(data, setting, batch_size, rate, SEARCH_SEED))
        failed = "error" in rows[rate] and not rows[rate]["diverged"]
        best = _best(rows)
        if not waiting and best in (min(rows), max(rows)) and len(rows) < len(rates) + MOST_EXTENSIONS:
            waiting.append(_beyond(sorted(rows), upward=best == max(rows)))
    best = _best(rows)
    return Tuned(
        batch_size,
        best if "summary" in rows[best] else None,
        updates_to_target(rows[best]) is not None,
        best in (min(rows), max(rows)),
        [rows[rate] for rate in sorted(rows)],
    )


def _beyond(rates: Sequence[float], upward: bool) -> float:
    """The next rate of a rising grid, in its own steps."""
    if len(rates) == 1:
        return rounded(rates[0] * (FACTOR if upward else 1 / FACTOR))
    return rounded(rates[-1] ** 2 / rates[-2] if upward else rates[0] ** 2 / rates[1])


def rounded(rate: float) -> float:
    """To four digits, so that a key names the rate that was run."""
    return float(f"{rate:.4g}")


def _best(rows: dict[float, dict[str, Any]]) -> float:
    """The rate with the fewest updates to the target; without any, with the best accuracy, or the least of them."""

    def badness(rate: float) -> tuple[int, float, float]:
        row, updates = rows[rate], updates_to_target(rows[rate])
        if updates is not None:
            return 0, updates, rate
        # Where all losses are not finite the rates are too high.
        return (1, -accuracy(row), rate) if "summary" in row else (2, 0.0, rate)

    return min(rows, key=badness)


def run_tuned(data: Data, setting: Setting, run: Callable[[Job], dict[str, Any]]) -> list[Tuned]:
    """The search at every batch size, each begun about the best rate of the size below; then the best rate's seeds.

    Args:
      data: to train on.
      setting: of the part.
      run: gives the row of a job.

    Returns:
      What each search found.
    """
    found: list[Tuned] = []
    rates = setting.rates
    for batch_size in setting.tuned_sizes:
        tuned = search(data, setting, batch_size, rates, run)
        found.append(tuned)
        if tuned.rate is None:
            continue
        for seed in setting.seeds:
            run(tuned_job(data, setting, batch_size, tuned.rate, seed))
        if not tuned.reached:
            continue
        middle = setting.rates[len(setting.rates) // 2]
        rates = tuple(rounded(tuned.rate * rate / middle) for rate in setting.rates)
    return found


def analyse(setting: Setting, rows: Sequence[dict[str, Any]], found: Sequence[Tuned]) -> dict[str, Any]:
    """What the report needs beside the rows: the best rates, and the fit or why there is none."""
    sizes, steps, censored = steps_for_fit(rows, found)
    fit, why = None, None
    try:
        fit = as_json(fit_steps_to_target(sizes, steps, censored=censored, confidence=CONFIDENCE))
    except UsageError as error:
        # Without the name of the function, which says nothing to who reads the report.
        why = str(error).partition(": ")[2]
    return {
        "target": setting.target,
        "seeds": list(setting.seeds),
        "confidence": CONFIDENCE,
        "tuned": [
            {"batch_size": t.batch_size, "rate": t.rate, "reached": t.reached, "on_edge": t.on_edge} for t in found
        ],
        # How finely a best rate is known.
        "factor": setting.rates[1] / setting.rates[0] if len(setting.rates) > 1 else FACTOR,
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
