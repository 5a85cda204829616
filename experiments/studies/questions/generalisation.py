"""Test accuracy and sharpness of minima by batch size, at equal epochs and at equal updates."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...records.fields import Options
from ...records.questions.generalisation import Analysis, Minimum, MinimumRow, SizeMinima
from ...records.studies import StudyRow
from ...training.evaluation.checkpoint import restore
from ...training.evaluation.evaluator import Evaluator
from ...training.step.single import eval_step, standardised
from .. import convergence
from ..jobs import Job
from ..question import Asked, Changes, Question, keys_of, no_larger
from ..question import Setting as Base
from ..sharpness import epsilon_sharpness, largest_eigenvalue

# Training images to be evaluated on.
TRAIN_EXAMPLES = 10_000
# Training images that the sharpness is measured on, and those of one batch of them.
EXAMPLES, BATCH = 1_000, 500
# Widths of the boxes of Keskar et al.
EPSILONS = (1e-3, 5e-4)
Budget = Literal["epochs", "steps"]
BUDGETS: tuple[Budget, ...] = ("epochs", "steps")


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The runs that are compared.

    Attributes:
      batch_sizes: to compare.
      epochs: the epochs of every run, at equal epochs.
      steps: updates of every run, at equal updates.
      seeds: the seeds of every run.
    """

    batch_sizes: tuple[int, ...]
    epochs: int
    steps: int
    seeds: tuple[int, ...]

    def changed(self, changes: Changes) -> Self:
        """Returns the setting with the sizes and seeds of the user."""
        return dataclasses.replace(
            self, batch_sizes=changes.batch_sizes or self.batch_sizes, seeds=changes.seeds or self.seeds
        )

    def fitted(self, examples: int) -> Self:
        """Returns the setting with the batch sizes that fit the training set."""
        return dataclasses.replace(self, batch_sizes=no_larger(self.batch_sizes, examples))

    @property
    def compared_sizes(self) -> tuple[int, ...]:
        """Batch sizes whose minima are compared."""
        return self.batch_sizes


def jobs(options: Options, setting: Setting, rate: Callable[[int], float]) -> list[Job]:
    """Returns a run at every batch size with both budgets, the rate falling to 0 as a cosine.

    Args:
      options: data set and model.
      setting: sizes, budgets and seeds.
      rate: the peak rate by batch size.
    """
    budgets: dict[Budget, int] = {"epochs": setting.epochs, "steps": setting.steps}
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
                budget: budgets[budget],
                "seed": seed,
            },
        )
        for seed in setting.seeds
        for budget in BUDGETS
        for batch_size in setting.batch_sizes
    ]


def rate_by(tuned: Mapping[int, float], first_rate: float, first_size: int) -> Callable[[int], float]:
    """Returns the rate by batch size: that of the nearest size that was tuned, or one that grows with the square root.

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
    """Measures how sharp the minimum is in which a run ended, and how well the run does on training images.

    The loss is the mean cross-entropy of 1,000 training images, or of as many as there are, without smoothing or decay;
    norms use their running statistics, as in evaluation.

    Args:
      workdir: the folder of the run.
      model: the model of the run, which must be given if it is a function of the user's own.
      dataset: the data set of the run, which must be given if it is a function of the user's own.

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
    # Of equal sizes, so that the mean of their means is that of all examples.
    number = max(1, len(chosen.labels) // BATCH)
    size = len(chosen.labels) // number
    batches = [(images[i * size : (i + 1) * size], chosen.labels[i * size : (i + 1) * size]) for i in range(number)]

    def loss(params, batch):
        logits: Any = restored.model.apply({"params": params, "batch_stats": state.batch_stats}, batch[0], train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    found = largest_eigenvalue(loss, state.params, batches, key=jax.random.key(0), tolerance=1e-2)
    boxes = {f"{e:g}": epsilon_sharpness(loss, state.params, batches, epsilon=e).sharpness for e in EPSILONS}
    # The compiled functions hold the loss, and with it all of the above.
    jax.clear_caches()
    return {
        "train": {"accuracy": result.accuracy, "loss": result.loss},
        "eigenvalue": found.largest,
        "residual": found.residual,
        "sharpness": boxes,
    }


def planned(asked: Asked) -> list[Job]:
    """Returns all runs, with the rates of the search to a target if it has been run; it is not run for them."""
    setting, tuning = asked.study.of(Setting), asked.study.of(convergence.Setting)
    tuned, _ = convergence.tuned_so_far(asked.data, tuning, asked.runner)
    first, *_ = tuning.tuned_sizes or setting.batch_sizes
    rate = rate_by(tuned, tuning.rates[len(tuning.rates) // 2], first)
    return jobs(asked.data.options, setting, rate)


def run(asked: Asked) -> Analysis:
    """Runs both budgets at every size, and measures the minima."""
    made = planned(asked)
    asked.runner.run_all(made)
    asked.runner.note_all(made, "minimum", minimum, ("model", "dataset"))
    return analyse(asked.runner.run_all(made))


def analyse(rows: Sequence[StudyRow]) -> Analysis:
    """Returns the measurements of every seed by budget and batch size."""
    groups: dict[tuple[Budget, int], list[tuple[MinimumRow, Minimum]]] = defaultdict(list)
    for row in rows:
        if isinstance(row, MinimumRow) and row.minimum is not None:
            groups[_budget(row), row.batch_size].append((row, row.minimum))
    ordered = sorted(groups.items(), key=lambda item: (BUDGETS.index(item[0][0]), item[0][1]))
    return Analysis(keys=keys_of(rows), runs=[_minima(*place, group) for place, group in ordered])


def _budget(row: StudyRow) -> Budget:
    return next(budget for budget in BUDGETS if row.key.startswith(f"minimum-{budget}-"))


def _minima(budget: Budget, batch_size: int, group: Sequence[tuple[MinimumRow, Minimum]]) -> SizeMinima:
    first, there = group[0]
    train = [found.train.accuracy for _, found in group]
    test = [row.ended.result.known_accuracy for row, _ in group]
    return SizeMinima(
        budget=budget,
        batch_size=batch_size,
        rate=first.learning_rate,
        updates=first.ended.updates,
        epochs=first.ended.epochs,
        train=train,
        test=test,
        gap=[a - b for a, b in zip(train, test, strict=True)],
        test_loss=[row.ended.result.loss for row, _ in group],
        eigenvalue=[found.eigenvalue for _, found in group],
        eigenvalue_times_rate=[found.eigenvalue * row.learning_rate for row, found in group],
        sharpness={epsilon: [found.sharpness[epsilon] for _, found in group] for epsilon in there.sharpness},
    )


QUESTION = Question(
    order=70,
    help="runs at equal epochs and equal updates, and how sharp their minima are",
    setting=Setting,
    planned=planned,
    run=run,
    presets={
        "quick": Setting((64, 1024), epochs=1, steps=60, seeds=(0,)),
        "mnist": Setting((64, 512, 4096), epochs=5, steps=250, seeds=(0, 1)),
        "mnist_full": Setting((16, 64, 512, 4096), epochs=12, steps=1_000, seeds=(0, 1, 2)),
    },
    # A comparison is as large as one likes.
    fewest_sizes=1,
    rates_follow=True,
    after=("convergence",),
)
