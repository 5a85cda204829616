"""A batch that grows with the gradient noise, beside a batch that stays and a rate that falls."""

from pathlib import Path
from typing import Any, NamedTuple

from experiments.studies.convergence import evaluations
from experiments.studies.jobs import Job
from experiments.studies.smoothness import CONSTANT
from experiments.training.config.options import AUTO
from experiments.training.storage import metrics


class Setting(NamedTuple):
    """What to run.

    Attributes:
      batch_size: of all runs at their start, and of those that stay there.
      learning_rate: of all runs at their start.
      epochs: of every run.
      seeds: of every run.
    """

    batch_size: int = 64
    learning_rate: float = 0.02
    epochs: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)


WAYS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "step": {"schedule": "step"},
    "auto": {"batch_ramp": AUTO},
}
LABELS = {"fixed": "fixed batch", "step": "fixed batch, step schedule", "auto": "--batch_ramp=auto"}


def jobs(options: dict[str, Any], setting: Setting) -> list[Job]:
    """The three ways with each seed; they tell `course`."""
    recipe = {
        **CONSTANT,
        "optimizer": "nesterov",
        "learning_rate": setting.learning_rate,
        "batch_size": setting.batch_size,
        "epochs": setting.epochs,
    }
    return [
        Job(f"ramp-{way}-seed{seed}", {**options, **recipe, **changes, "seed": seed}, label=LABELS[way])
        for seed in setting.seeds
        for way, changes in WAYS.items()
    ]


def course(workdir: Path) -> dict[str, list[list[float]]]:
    """Of a run: after each epoch [updates, accuracy, loss], and [updates, batch size] where another size begins."""
    rows = metrics.read(workdir / metrics.FILE)
    return {
        "evaluations": evaluations(workdir),
        "batch_sizes": [[row["step"], row["batch_size"]] for row in rows if row["kind"] == "ramp"],
    }
