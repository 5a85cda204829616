"""Accuracy of a very large batch in a fixed number of epochs, with the best recipe of a search.

For each batch size the best of Nesterov, LARS and LAMB and its rate, 12 epochs, with one seed, on 5,000 training images
that are held out. Then that recipe on all training images, with three seeds, on the test images.
"""

import dataclasses
from collections.abc import Sequence

from ...records.fields import Options
from ...records.studies import Analysis, StudyRow
from ..jobs import Job
from ..large_batch import SEEDS, fixed_epochs
from ..question import Asked, Question, keys_of
from ..question import Setting as Base

HELD_OUT = 5_000
SEARCH_SEED = 100

# The declared search: peak rates about a factor of three apart, and one more wherever the best of a batch size was on
# the edge: 3 for Nesterov at 1024, 0.03 for LAMB at 64. (At 8192 a first grid, a factor of three lower for Nesterov and
# LAMB, had its best rates on the upper edge.)
RATES: dict[int, dict[str, tuple[float, ...]]] = {
    8192: {"nesterov": (1.2, 4.0, 12.0), "lars": (3.0, 10.0, 30.0), "lamb": (0.015, 0.05, 0.15)},
    32768: {"nesterov": (2.4, 8.0, 24.0), "lars": (10.0, 30.0, 100.0), "lamb": (0.03, 0.1, 0.3)},
    1024: {"nesterov": (0.1, 0.3, 1.0, 3.0), "lars": (1.0, 3.0, 10.0), "lamb": (0.003, 0.01, 0.03)},
    64: {"nesterov": (0.0125, 0.04, 0.12), "lars": (0.3, 1.0, 3.0), "lamb": (0.001, 0.003, 0.01, 0.03)},
}
# LAMB's decay is not a part of the gradient, and acts in proportion to the rate.
WEIGHT_DECAY = {"nesterov": 2e-3, "lars": 2e-3, "lamb": 1e-2}


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The search, which is the same in every study."""


def search_jobs(dataset: Options) -> list[Job]:
    """Returns a run at every batch size, optimizer and rate, with one seed, scored on held-out training images."""
    return [
        Job(
            f"search-b{batch_size}-{optimizer}-{rate:g}",
            fixed_epochs(
                dataset,
                batch_size,
                optimizer=optimizer,
                learning_rate=rate,
                weight_decay=WEIGHT_DECAY[optimizer],
                validation_examples=HELD_OUT,
                seed=SEARCH_SEED,
            ),
        )
        for batch_size, grids in RATES.items()
        for optimizer, rates in grids.items()
        for rate in rates
    ]


def best(rows: Sequence[StudyRow], batch_size: int) -> StudyRow | None:
    """Returns the row of the search with the highest accuracy at a batch size; None if no run ended well."""
    found = [row for row in rows if row.summary is not None and row.batch_size == batch_size]
    return max(found, key=lambda row: row.ended.result.known_accuracy, default=None)


def final_jobs(dataset: Options, searched: Sequence[StudyRow]) -> list[Job]:
    """Returns the best recipe of the search at each batch size, on all training images, with each seed."""
    jobs = []
    for batch_size in RATES:
        row = best(searched, batch_size)
        if row is None:
            continue
        chosen = {name: row.options[name] for name in ("optimizer", "learning_rate", "weight_decay")}
        jobs += [
            Job(f"final-b{batch_size}-seed{seed}", fixed_epochs(dataset, batch_size, **chosen, seed=seed))
            for seed in SEEDS
        ]
    return jobs


def planned(asked: Asked) -> list[Job]:
    """Returns the runs of the search, without those of the recipes that it will find."""
    return search_jobs(asked.study.options)


def run(asked: Asked) -> Analysis:
    """Runs the search, then the recipes that it found."""
    searched = asked.runner.run_all(search_jobs(asked.study.options))
    final = asked.runner.run_all(final_jobs(asked.study.options, searched))
    return Analysis(keys=keys_of([*searched, *final]))


QUESTION = Question(
    order=60,
    help="the best of three optimizers at very large batches, 12 epochs each",
    setting=Setting,
    planned=planned,
    run=run,
    presets={"mnist_full": Setting()},
    otherwise=Setting(),
)
