"""A batch that grows with the gradient noise, beside a batch that stays and a rate that falls."""

import dataclasses
from pathlib import Path
from typing import Self

from ...records.fields import Options
from ...records.runs import RampRow
from ...records.studies import Analysis
from ...training.config import plan
from ...training.config.options import AUTO
from ...training.storage import metrics
from ..convergence import evaluations
from ..jobs import Job
from ..question import Asked, Changes, Question, keys_of
from ..question import Setting as Base
from ..smoothness import CONSTANT


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The runs that are compared.

    Attributes:
      batch_size: at the start of all runs.
      learning_rate: at the start of all runs.
      epochs: the epochs of every run.
      seeds: the seeds of every run.
    """

    batch_size: int = 64
    learning_rate: float = 0.02
    epochs: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)

    def changed(self, changes: Changes) -> Self:
        """Returns the setting with the smallest size, least rate and seeds of the user."""
        return dataclasses.replace(
            self,
            batch_size=changes.batch_sizes[0] if changes.batch_sizes else self.batch_size,
            learning_rate=changes.rates[0] if changes.rates else self.learning_rate,
            seeds=changes.seeds or self.seeds,
        )

    def fitted(self, examples: int) -> Self:
        """Returns the setting with a batch that has room to grow once."""
        most = examples // (plan.RAMP_FACTOR * plan.MIN_UPDATES_PER_EPOCH) // 8 * 8 or 1
        return dataclasses.replace(self, batch_size=min(self.batch_size, most))


WAYS: dict[str, Options] = {
    "fixed": {},
    "step": {"schedule": "step"},
    "auto": {"batch_ramp": AUTO},
}
LABELS = {"fixed": "fixed batch", "step": "fixed batch, step schedule", "auto": "--batch_ramp=auto"}


def planned(asked: Asked) -> list[Job]:
    """Returns a run in each of the three ways, with each seed."""
    setting = asked.study.of(Setting)
    recipe = {
        **CONSTANT,
        "optimizer": "nesterov",
        "learning_rate": setting.learning_rate,
        "batch_size": setting.batch_size,
        "epochs": setting.epochs,
    }
    return [
        Job(
            f"ramp-{way}-seed{seed}",
            {**asked.study.options, **recipe, **changes, "seed": seed},
            label=LABELS[way],
        )
        for seed in setting.seeds
        for way, changes in WAYS.items()
    ]


def run(asked: Asked) -> Analysis:
    """Runs the three ways, and notes the course of each run."""
    jobs = planned(asked)
    asked.runner.run_all(jobs)
    asked.runner.note_all(jobs, "course", course)
    return Analysis(keys=keys_of(asked.runner.run_all(jobs)))


def course(workdir: Path) -> dict[str, list]:
    """Returns the course of a run.

    Returns:
      `evaluations`: [updates, accuracy, loss] after each epoch. `batch_sizes`: [updates, batch size] where another size
      begins.
    """
    rows = metrics.read(workdir / metrics.FILE)
    return {
        "evaluations": evaluations(workdir),
        "batch_sizes": [[row.step, row.batch_size] for row in rows if isinstance(row, RampRow)],
    }


QUESTION = Question(
    order=90,
    help="a batch that grows with the noise, a rate that falls, and neither",
    setting=Setting,
    planned=planned,
    run=run,
    otherwise=Setting(),
    on_request=True,
)
