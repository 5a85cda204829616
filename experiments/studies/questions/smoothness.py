"""Swing of the loss between updates by batch size, and the gradient noise scale as training proceeds."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Self

import numpy as np

from ...records.fields import Options
from ...records.questions.smoothness import Analysis, NoiseRow, SizeSwing, SwingRow
from ...records.studies import StudyRow
from ..jobs import Job
from ..question import Asked, Question, keys_of, no_larger
from ..question import Setting as Base
from ..smoothness import CONFIDENCE, CONSTANT, losses, noise, noise_windows, swing


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The runs whose losses and noise are measured.

    Attributes:
      batch_sizes: the batch sizes of the runs whose losses are looked at.
      steps: updates of each, the first of a training.
      noise_batch_size: the batch size of the run whose noise scale is measured.
      noise_rate: its peak rate.
      noise_steps: its updates.
      noise_every: updates between two measurements.
    """

    batch_sizes: tuple[int, ...]
    steps: int
    noise_batch_size: int
    noise_rate: float
    noise_steps: int
    noise_every: int

    def fitted(self, examples: int) -> Self:
        """Returns the setting with the batch sizes that fit the training set."""
        return dataclasses.replace(
            self,
            batch_sizes=no_larger(self.batch_sizes, examples),
            noise_batch_size=min(self.noise_batch_size, examples),
        )


def swing_jobs(options: Options, setting: Setting, rate: float = 0.02, momentum: float = 0.5) -> list[Job]:
    """Returns a run at every batch size, all at one rate."""
    recipe = {"optimizer": "sgd", "learning_rate": rate, "momentum": momentum}
    return [
        Job(f"swing-b{batch_size}", {**options, **CONSTANT, **recipe, "batch_size": batch_size, "steps": setting.steps})
        for batch_size in setting.batch_sizes
    ]


def noise_job(options: Options, setting: Setting) -> Job:
    """Returns the run whose noise scale is measured."""
    recipe = {
        "optimizer": "nesterov",
        "learning_rate": setting.noise_rate,
        "batch_size": setting.noise_batch_size,
        "steps": setting.noise_steps,
        "noise_every": setting.noise_every,
    }
    return Job(f"noise-b{setting.noise_batch_size}", {**options, **CONSTANT, **recipe})


def planned(asked: Asked) -> list[Job]:
    """Returns the runs whose losses are looked at, and the one whose noise is measured."""
    setting = asked.study.of(Setting)
    return [*swing_jobs(asked.data.options, setting), noise_job(asked.data.options, setting)]


def run(asked: Asked) -> Analysis:
    """Runs them, and notes the losses of every update and the measurements of the noise."""
    *swinging, noisy = jobs = planned(asked)
    asked.runner.run_all(jobs)
    asked.runner.note_all(swinging, "losses", losses)
    asked.runner.note(noisy, "noise", noise)
    return analyse(asked.runner.run_all(jobs))


def analyse(rows: Sequence[StudyRow]) -> Analysis:
    """Returns the swing by batch size and its power, and the noise scale along a run, of the rows of both kinds."""
    sizes = [
        SizeSwing(
            batch_size=row.batch_size, swing=swing(row.losses), loss=statistics.mean(row.losses), losses=row.losses
        )
        for row in rows
        if isinstance(row, SwingRow) and row.losses is not None
    ]
    sizes.sort(key=lambda entry: entry.batch_size)
    power = None
    if len(sizes) > 1:
        logs = np.log([[entry.batch_size, entry.swing] for entry in sizes])
        power = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    measured = next((row for row in rows if isinstance(row, NoiseRow) and row.noise is not None), None)
    return Analysis(
        keys=keys_of(rows),
        sizes=sizes,
        power=power,
        noise=[] if measured is None or measured.noise is None else noise_windows(measured.noise),
        noise_batch_size=None if measured is None else measured.batch_size,
        confidence=CONFIDENCE,
    )


QUESTION = Question(
    order=20,
    help="the first updates at one rate, and a run whose gradient noise is measured",
    setting=Setting,
    planned=planned,
    run=run,
    presets={
        "quick": Setting((6, 60, 240), 200, noise_batch_size=64, noise_rate=0.02, noise_steps=320, noise_every=20),
        "mnist": Setting(
            (1, 6, 60, 600), 1_000, noise_batch_size=64, noise_rate=0.01, noise_steps=4_000, noise_every=80
        ),
        "mnist_full": Setting(
            (1, 6, 60, 600, 6000), 1_000, noise_batch_size=64, noise_rate=0.01, noise_steps=8_000, noise_every=80
        ),
    },
)
