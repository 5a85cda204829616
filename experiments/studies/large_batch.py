"""How well a very large batch does at a fixed number of epochs, and what of the recipe does it.

Three sets of training runs:

- `search`: for each batch size the best of Nesterov, LARS and LAMB and its rate, 12 epochs, by one seed, on 5,000
  training images that are held out. Then that recipe on all training images, with three seeds, on the test images.
- `ladder`: a large batch from a naive recipe on, one thing more in each line.
- `backwards`: one forward pass with k updates, against k times the rate.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.studies.jobs import Job, accuracy

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


def search_jobs(dataset: dict[str, Any]) -> list[Job]:
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
        for batch_size, grids in RATES.items()
        for optimizer, rates in grids.items()
        for rate in rates
    ]


def best(rows: Sequence[dict[str, Any]], batch_size: int) -> dict[str, Any] | None:
    """The row of the search with the highest accuracy at a batch size; None if none of its runs ended well."""
    found = [row for row in rows if "summary" in row and row["options"]["batch_size"] == batch_size]
    return max(found, key=accuracy, default=None)


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


# With fewer epochs none of the steps of a ramp comes before the end.
FEWEST_TO_RAMP = 3
NAIVE = {
    "optimizer": "nesterov",
    "learning_rate": 0.0125,
    "warmup_epochs": 0,
    "schedule": "constant",
    "decay_all": True,
    "label_smoothing": 0.0,
}


class Ladder(NamedTuple):
    """How the ladder is run.

    Attributes:
      batch_size: of every rung; the first one has the rate of a batch of 64.
      epochs: of every rung but the last.
      seeds: of every rung.
      drop_remainder: leave out what an epoch has after its last full batch, which takes a program of its own.
    """

    batch_size: int = 8192
    epochs: int = EPOCHS
    seeds: tuple[int, ...] = SEEDS
    drop_remainder: bool = False


def rungs(ladder: Ladder) -> list[tuple[str, dict[str, Any]]]:
    """The rungs: a name, and what it changes of the one before."""
    size, epochs = ladder.batch_size, ladder.epochs
    span = min(128, max(2, size // 8))
    linear = 0.0125 * size / 64
    named: list[tuple[str, dict[str, Any]]] = [
        ("the rate of batch 64, constant", {}),
        ("linear rate", {"learning_rate": linear}),
        (f"+ warmup, {epochs / 6:.2g} of {epochs} epochs", {"warmup_epochs": epochs / 6}),
        ("+ cosine decay", {"schedule": "cosine"}),
        ("cyclic rate in its place", {"schedule": "cyclic", "cycle_epochs": epochs / 3}),
        ("cosine again, + norms do not decay", {"schedule": "cosine", "decay_all": False}),
        (f"+ span of {span}", {"span": span, "drop_remainder": True}),
        (
            "span off again, + label smoothing 0.1",
            {"span": None, "drop_remainder": ladder.drop_remainder, "label_smoothing": 0.1},
        ),
        ("LARS in place of Nesterov", {"optimizer": "lars", "learning_rate": linear * 6.25}),
    ]
    back = {"optimizer": "nesterov", "learning_rate": linear}
    if epochs >= FEWEST_TO_RAMP:
        # From a quarter of the batch, doubled where steps would halve the rate.
        ramp = {"schedule": "step", "step_factor": 2.0, "batch_size": size // 4, "batch_ramp": size}
        named.append(("Nesterov again, + a batch ramp", {**back, **ramp, "learning_rate": linear / 4}))
        back |= {"schedule": "cosine", "step_factor": 10.0, "batch_size": size, "batch_ramp": None}
    return [*named, ("Nesterov again, twice the epochs", {**back, "epochs": 2 * epochs})]


def ladder_jobs(dataset: dict[str, Any], ladder: Ladder = Ladder()) -> list[Job]:  # noqa: B008
    """Each rung with each seed."""
    named = rungs(ladder)
    recipes = list(itertools.accumulate((changes for _, changes in named), lambda a, b: {**a, **b}, initial=NAIVE))[1:]
    start = {
        **_options(dataset, ladder.batch_size),
        "epochs": ladder.epochs,
        "drop_remainder": ladder.drop_remainder,
    }
    return [
        Job(f"ladder-{number:02}-seed{seed}", {**start, **recipe, "seed": seed}, label=named[number][0])
        for seed, (number, recipe) in itertools.product(ladder.seeds, enumerate(recipes))
    ]


class Backwards(NamedTuple):
    """How one forward pass with k updates is compared.

    Attributes:
      batch_size: of the forward pass.
      k: updates of it.
      epochs: of every run.
      seeds: of every run.
      optimizers: "SGD" and "Nesterov", or one of them.
    """

    batch_size: int = 6000
    k: int = 10
    epochs: int = EPOCHS
    seeds: tuple[int, ...] = SEEDS
    optimizers: tuple[str, ...] = ("SGD", "Nesterov")


def backwards_jobs(dataset: dict[str, Any], setting: Backwards = Backwards()) -> list[Job]:  # noqa: B008
    """One forward pass with k updates, k times the rate with one update, and the rate as it is, with each seed."""
    rate, k = 0.05, setting.k
    recipes: dict[str, dict[str, Any]] = {
        "SGD": {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "warmup_epochs": 0, "weight_decay": 0.0},
        "Nesterov": {"optimizer": "nesterov", "warmup_epochs": setting.epochs / 6},
    }
    jobs = []
    for seed in setting.seeds:
        for name in setting.optimizers:
            for what, changes in (
                ("rate x1", {"learning_rate": rate}),
                (f"rate x{k}", {"learning_rate": k * rate}),
                (f"{k} updates a forward pass", {"backwards_per_forward": k, "learning_rate": rate}),
            ):
                options = {
                    **_options(dataset, setting.batch_size),
                    "epochs": setting.epochs,
                    "drop_remainder": True,
                    **recipes[name],
                    **changes,
                    "seed": seed,
                }
                key = f"backwards-{name.lower()}-{what.replace(' ', '-')}-seed{seed}"
                jobs.append(Job(key, options, label=f"{name}, {what}"))
    return jobs
