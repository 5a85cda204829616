"""Whether large batches generalise worse, and their minima are sharper: at equal epochs and at equal updates."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.jobs import Job
from experiments.studies.sharpness import epsilon_sharpness, largest_eigenvalue
from experiments.training.evaluation.checkpoint import restore
from experiments.training.evaluation.evaluator import Evaluator
from experiments.training.step.single import eval_step, standardised

# Training images: to be evaluated on, and those of which the sharpness is measured, in batches.
TRAIN_EXAMPLES = 10_000
EXAMPLES, BATCH = 1_000, 500
# Of Keskar et al.
EPSILONS = (1e-3, 5e-4)
BUDGETS = ("epochs", "steps")


class Setting(NamedTuple):
    """What to train.

    Attributes:
      batch_sizes: to compare.
      epochs: of every run, at equal epochs.
      steps: of every run, at equal updates.
      seeds: of every run.
    """

    batch_sizes: tuple[int, ...]
    epochs: int
    steps: int
    seeds: tuple[int, ...]


def jobs(options: dict[str, Any], setting: Setting, rate: Callable[[int], float]) -> list[Job]:
    """Every batch size with both budgets, the rate falling to 0 as a cosine.

    Args:
      options: data set and model.
      setting: of the part.
      rate: peak rate by batch size.
    """
    return [
        Job(
            f"minimum-{budget}-b{batch_size}-seed{seed}",
            {
                **options,
                "batch_size": batch_size,
                "optimizer": "nesterov",
                "learning_rate": rate(batch_size),
                "warmup_epochs": 0,
                "weight_decay": 0.0,
                "label_smoothing": 0.0,
                budget: getattr(setting, budget),
                "seed": seed,
            },
        )
        for seed in setting.seeds
        for budget in BUDGETS
        for batch_size in setting.batch_sizes
    ]


def rate_by(tuned: Mapping[int, float], first_rate: float, first_size: int) -> Callable[[int], float]:
    """The rate that was tuned at the nearest batch size; without any, a rate that grows with the square root.

    Example:
      >>> rate_by({64: 0.02, 1024: 0.1}, 0.01, 16)(512), rate_by({}, 0.01, 16)(64)
      (0.1, 0.02)
    """

    def rate(batch_size: int) -> float:
        if not tuned:
            return float(f"{first_rate * (batch_size / first_size) ** 0.5:.4g}")
        return tuned[min(tuned, key=lambda size: abs(np.log(size / batch_size)))]

    return rate


def minimum(workdir: Path, model: str | None = None, dataset: str | None = None) -> dict[str, Any]:
    """How sharp the end of a run is, and how well it does on training images.

    The loss is the mean cross-entropy of 1,000 training images, or of as many as there are, without smoothing or decay;
    norms use their running statistics, as in evaluation.

    Args:
      workdir: of the run.
      model: of the run, which must be given if it is a function of the user's own.
      dataset: likewise.

    Returns:
      `train`: accuracy and loss of 10,000 training images. `eigenvalue` of the Hessian, the largest, and its
      `residual`. `sharpness`: by epsilon.
    """
    restored = restore(workdir, num_devices=1, model=model, dataset=dataset)
    train, state = restored.data.train, restored.state
    order = np.random.default_rng(0).permutation(train.size)
    step = eval_step(restored.model, restored.mesh, restored.recipe)
    result = Evaluator(step, {"train": train.read(order[:TRAIN_EXAMPLES])}, restored.mesh)(state)["train"]
    chosen = train.read(order[:EXAMPLES])
    images = standardised(jnp.asarray(chosen.images), restored.recipe)
    # Of equal sizes, as a mean over them asks for.
    number = max(1, len(chosen.labels) // BATCH)
    size = len(chosen.labels) // number
    batches = [(images[i * size : (i + 1) * size], chosen.labels[i * size : (i + 1) * size]) for i in range(number)]

    def loss(params, batch):
        logits: Any = restored.model.apply({"params": params, "batch_stats": state.batch_stats}, batch[0], train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    found = largest_eigenvalue(loss, state.params, batches, key=jax.random.key(0), tolerance=1e-2)
    boxes = {f"{e:g}": epsilon_sharpness(loss, state.params, batches, epsilon=e).sharpness for e in EPSILONS}
    # What was compiled holds the loss, and with it all of the above.
    jax.clear_caches()
    return {
        "train": {"accuracy": result["accuracy"], "loss": result["loss"]},
        "eigenvalue": found.largest,
        "residual": found.residual,
        "sharpness": boxes,
    }


def analyse(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By budget and batch size what was measured of each seed.

    Returns:
      `runs`: of each budget and batch size, lists over the seeds: `train` and `test` accuracy, their difference
      `gap`, `test_loss`, `eigenvalue`, `eigenvalue_times_rate`, and `sharpness` by epsilon.
    """
    groups = defaultdict(list)
    for row in rows:
        if "minimum" in row:
            budget = row["key"].split("-")[1]
            groups[budget, row["options"]["batch_size"]].append(row)
    found = []
    for (budget, batch_size), group in sorted(groups.items(), key=lambda item: (BUDGETS.index(item[0][0]), item[0][1])):
        entry: dict[str, Any] = {
            "budget": budget,
            "batch_size": batch_size,
            "rate": group[0]["options"]["learning_rate"],
            "updates": group[0]["summary"]["updates"],
            "epochs": group[0]["summary"]["epochs"],
        }
        lists: dict[str, list[float]] = defaultdict(list)
        for row in group:
            test, there = next(iter(row["summary"]["results"].values())), row["minimum"]
            lists["train"].append(there["train"]["accuracy"])
            lists["test"].append(test["accuracy"])
            lists["gap"].append(there["train"]["accuracy"] - test["accuracy"])
            lists["test_loss"].append(test["loss"])
            lists["eigenvalue"].append(there["eigenvalue"])
            lists["eigenvalue_times_rate"].append(there["eigenvalue"] * row["options"]["learning_rate"])
        entry |= lists
        entry["sharpness"] = {
            epsilon: [row["minimum"]["sharpness"][epsilon] for row in group]
            for epsilon in group[0]["minimum"]["sharpness"]
        }
        found.append(entry)
    return {"runs": found}
