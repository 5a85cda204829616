"""Repairs of a very large batch: each rung adds one part to a naive recipe."""

import dataclasses
import itertools
from typing import Self

from ...records.fields import Options
from ..jobs import Job
from ..large_batch import EPOCHS, FEWEST_UPDATES, SEEDS, fixed_epochs
from ..question import Asked, Changes, Question
from ..question import Setting as Base

# With fewer epochs no step of a ramp comes before the end.
FEWEST_EPOCHS_TO_RAMP = 3
NAIVE = {
    "optimizer": "nesterov",
    "learning_rate": 0.0125,
    "warmup_epochs": 0,
    "schedule": "constant",
    "decay_all": True,
    "label_smoothing": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The runs of the ladder.

    Attributes:
      batch_size: the batch size of every rung; the first one has the rate of a batch of 64.
      epochs: the epochs of every rung but the last.
      seeds: the seeds of every rung.
      drop_remainder: leave out what an epoch has after its last full batch, which takes a program of its own.
    """

    batch_size: int = 8192
    epochs: int = EPOCHS
    seeds: tuple[int, ...] = SEEDS
    drop_remainder: bool = False

    def changed(self, changes: Changes) -> Self:
        """Returns the setting with the seeds of the user."""
        return dataclasses.replace(self, seeds=changes.seeds or self.seeds)

    def fitted(self, examples: int) -> Self:
        """Returns the setting with a batch of which an epoch has seven updates."""
        # A power of two, of which the rungs take a quarter.
        largest = 2 ** ((examples // FEWEST_UPDATES).bit_length() - 1)
        return dataclasses.replace(self, batch_size=min(self.batch_size, max(4, largest)))


def rungs(setting: Setting) -> list[tuple[str, Options]]:
    """Returns the rungs: a name, and what it changes of the rung before."""
    size, epochs = setting.batch_size, setting.epochs
    span = min(128, max(2, size // 8))
    linear = 0.0125 * size / 64
    named: list[tuple[str, Options]] = [
        ("the rate of batch 64, constant", {}),
        ("linear rate", {"learning_rate": linear}),
        (f"+ warmup, {epochs / 6:.2g} of {epochs} epochs", {"warmup_epochs": epochs / 6}),
        ("+ cosine decay", {"schedule": "cosine"}),
        ("cyclic rate in its place", {"schedule": "cyclic", "cycle_epochs": epochs / 3}),
        ("cosine again, + norms do not decay", {"schedule": "cosine", "decay_all": False}),
        (f"+ span of {span}", {"span": span, "drop_remainder": True}),
        (
            "span off again, + label smoothing 0.1",
            {"span": None, "drop_remainder": setting.drop_remainder, "label_smoothing": 0.1},
        ),
        ("LARS in place of Nesterov", {"optimizer": "lars", "learning_rate": linear * 6.25}),
    ]
    back = {"optimizer": "nesterov", "learning_rate": linear}
    if epochs >= FEWEST_EPOCHS_TO_RAMP:
        # From a quarter of the batch, doubled where steps would halve the rate.
        ramp = {"schedule": "step", "step_factor": 2.0, "batch_size": size // 4, "batch_ramp": size}
        named.append(("Nesterov again, + a batch ramp", {**back, **ramp, "learning_rate": linear / 4}))
        back |= {"schedule": "cosine", "step_factor": 10.0, "batch_size": size, "batch_ramp": None}
    return [*named, ("Nesterov again, twice the epochs", {**back, "epochs": 2 * epochs})]


def jobs(dataset: Options, setting: Setting) -> list[Job]:
    """Returns a run of each rung with each seed."""
    named = rungs(setting)
    recipes = list(itertools.accumulate((changes for _, changes in named), lambda a, b: {**a, **b}, initial=NAIVE))[1:]
    start = {
        **fixed_epochs(dataset, setting.batch_size),
        "epochs": setting.epochs,
        "drop_remainder": setting.drop_remainder,
    }
    return [
        Job(f"ladder-{number:02}-seed{seed}", {**start, **recipe, "seed": seed}, label=named[number][0])
        for seed, (number, recipe) in itertools.product(setting.seeds, enumerate(recipes))
    ]


def planned(asked: Asked) -> list[Job]:
    """Returns all runs."""
    return jobs(asked.study.options, asked.study.of(Setting))


QUESTION = Question(
    order=50,
    help="a very large batch, from a naive recipe on",
    setting=Setting,
    planned=planned,
    presets={
        "quick": Setting(batch_size=2048, epochs=1, seeds=(0,), drop_remainder=True),
        "mnist": Setting(epochs=4, seeds=(0,)),
        "mnist_full": Setting(),
    },
    otherwise=Setting(),
)
