"""Several updates per forward pass, against as many times the rate."""

import dataclasses
from typing import Self

from ...records.fields import Options
from ..jobs import Job
from ..large_batch import EPOCHS, FEWEST_UPDATES, SEEDS, fixed_epochs
from ..question import Asked, Changes, Question
from ..question import Setting as Base

RATE = 0.05


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The runs that are compared.

    Attributes:
      batch_size: the batch size of the forward pass.
      k: updates per forward pass.
      epochs: the epochs of every run.
      seeds: the seeds of every run.
      optimizers: "SGD" and "Nesterov", or one of them.
    """

    batch_size: int = 6000
    k: int = 10
    epochs: int = EPOCHS
    seeds: tuple[int, ...] = SEEDS
    optimizers: tuple[str, ...] = ("SGD", "Nesterov")

    def changed(self, changes: Changes) -> Self:
        """Returns the setting with the seeds of the user."""
        return dataclasses.replace(self, seeds=changes.seeds or self.seeds)

    def fitted(self, examples: int) -> Self:
        """Returns the setting with a batch of which an epoch has seven updates."""
        # Eight devices divide each of the k parts.
        unit = 8 * self.k
        largest = examples // FEWEST_UPDATES // unit * unit
        return dataclasses.replace(self, batch_size=min(self.batch_size, max(unit, largest)))


def jobs(dataset: Options, setting: Setting) -> list[Job]:
    """Returns, with each seed: one forward pass with k updates, k times the rate, and the rate as it is."""
    k = setting.k
    recipes: dict[str, Options] = {
        "SGD": {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "warmup_epochs": 0, "weight_decay": 0.0},
        "Nesterov": {"optimizer": "nesterov", "warmup_epochs": setting.epochs / 6},
    }
    made = []
    for seed in setting.seeds:
        for name in setting.optimizers:
            for way, changes in (
                ("rate x1", {"learning_rate": RATE}),
                (f"rate x{k}", {"learning_rate": k * RATE}),
                (f"{k} updates a forward pass", {"backwards_per_forward": k, "learning_rate": RATE}),
            ):
                options = {
                    **fixed_epochs(dataset, setting.batch_size),
                    "epochs": setting.epochs,
                    "drop_remainder": True,
                    **recipes[name],
                    **changes,
                    "seed": seed,
                }
                key = f"backwards-{name.lower()}-{way.replace(' ', '-')}-seed{seed}"
                made.append(Job(key, options, label=f"{name}, {way}"))
    return made


def planned(asked: Asked) -> list[Job]:
    """Returns all runs."""
    return jobs(asked.study.options, asked.study.of(Setting))


QUESTION = Question(
    order=40,
    help="one forward pass with k updates",
    setting=Setting,
    planned=planned,
    presets={
        "quick": Setting(batch_size=2400, k=2, epochs=1, seeds=(0,), optimizers=("Nesterov",)),
        "mnist": Setting(epochs=3, seeds=(0,)),
        "mnist_full": Setting(),
    },
    otherwise=Setting(),
)
