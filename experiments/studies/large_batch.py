"""How well a very large batch does at a fixed number of epochs, and what of the recipe does it.

Three sets of training runs of `simple_cnn` with norm, 12 epochs each:

- `search`: for each batch size the best of Nesterov, LARS and LAMB and its rate, by one seed, on 5,000 training images
  that are held out. Then that recipe on all training images, with three seeds, on the test images.
- `ladder`: a batch of 8192 from a naive recipe on, one thing more in each line.
- `backwards`: one forward pass with ten updates, against ten times the rate.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from experiments.studies.jobs import Job

EPOCHS = 12
HELD_OUT = 5_000
SEEDS = (0, 1, 2)
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


def _options(dataset: dict[str, Any], batch_size: int, **changes: Any) -> dict[str, Any]:
    return {
        **dataset,
        "batch_size": batch_size,
        "epochs": EPOCHS,
        "drop_remainder": False,
        **changes,
    }


def search_jobs(dataset: dict[str, Any], batch_sizes: Sequence[int] = tuple(RATES)) -> list[Job]:
    """Every batch size, optimizer and rate of the search, with one seed, scored on held-out training images."""
    return [
        Job(
            f"search-b{batch_size}-{optimizer}-{rate:g}",
            _options(
                dataset,
                batch_size,
                optimizer=optimizer,
                learning_rate=rate,
                weight_decay=WEIGHT_DECAY[optimizer],
                validation_examples=HELD_OUT,
                seed=SEARCH_SEED,
            ),
        )
        for batch_size in batch_sizes
        for optimizer, rates in RATES[batch_size].items()
        for rate in rates
    ]


def best(rows: Sequence[dict[str, Any]], batch_size: int, optimizer: str | None = None) -> dict[str, Any] | None:
    """The row of the search with the highest accuracy, at a batch size and maybe of one optimizer."""
    found = [
        row
        for row in rows
        if "summary" in row
        and row["options"]["batch_size"] == batch_size
        and optimizer in (None, row["options"]["optimizer"])
    ]
    return max(found, key=accuracy, default=None)


def accuracy(row: dict[str, Any]) -> float:
    """Of the first split that a run evaluates."""
    return next(iter(row["summary"]["results"].values()))["accuracy"]


def final_jobs(dataset: dict[str, Any], searched: Sequence[dict[str, Any]]) -> list[Job]:
    """The best recipe of the search at each batch size, on all training images, with each seed."""
    jobs = []
    for batch_size in RATES:
        row = best(searched, batch_size)
        if row is None:
            continue
        chosen = {name: row["options"][name] for name in ("optimizer", "learning_rate", "weight_decay")}
        jobs += [
            Job(f"final-b{batch_size}-seed{seed}", _options(dataset, batch_size, **chosen, seed=seed)) for seed in SEEDS
        ]
    return jobs


NAIVE = {
    "optimizer": "nesterov",
    "learning_rate": 0.0125,
    "warmup_epochs": 0,
    "decay_all": True,
    "label_smoothing": 0.0,
}
# What each line changes of the one before; the rate of batch 64 comes first.
RUNGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rate of batch 64", {}),
    ("linear rate", {"learning_rate": 1.6}),
    ("+ warmup of 2 epochs", {"warmup_epochs": 2}),
    ("+ no decay on norms and biases", {"decay_all": False}),
    ("+ span of 128", {"span": 128, "drop_remainder": True}),
    ("+ label smoothing 0.1, without span", {"span": None, "drop_remainder": False, "label_smoothing": 0.1}),
    ("LARS in place of Nesterov", {"optimizer": "lars", "learning_rate": 10.0}),
    ("Nesterov, twice the epochs", {"optimizer": "nesterov", "learning_rate": 1.6, "epochs": 2 * EPOCHS}),
)


def ladder_jobs(dataset: dict[str, Any], batch_size: int = 8192) -> list[Job]:
    """Each line of the ladder with each seed."""
    recipes = itertools.accumulate((changes for _, changes in RUNGS), lambda a, b: {**a, **b}, initial=NAIVE)
    return [
        Job(f"ladder-{number}-seed{seed}", {**_options(dataset, batch_size), **recipe, "seed": seed})
        for seed, (number, recipe) in itertools.product(SEEDS, enumerate(list(recipes)[1:]))
    ]


def backwards_jobs(dataset: dict[str, Any], batch_size: int = 6000, k: int = 10) -> list[Job]:
    """One forward pass with k updates, k times the rate with one, and k times smaller batches, with each seed."""
    rate = 0.05
    plain = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "warmup_epochs": 0, "weight_decay": 0.0}
    with_momentum = {"optimizer": "nesterov"}
    jobs = []
    for seed in SEEDS:
        for name, recipe in (("sgd", plain), ("nesterov", with_momentum)):
            for what, changes in (
                (f"k{k}", {"backwards_per_forward": k, "learning_rate": rate}),
                (f"rate-x{k}", {"learning_rate": k * rate}),
                ("rate-x1", {"learning_rate": rate}),
            ):
                options = {**_options(dataset, batch_size), "drop_remainder": True, **recipe, **changes, "seed": seed}
                jobs.append(Job(f"backwards-{name}-{what}-seed{seed}", options))
    return jobs
