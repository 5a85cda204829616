"""The norms and the tasks of the norm study, each declared once: the study runs them, and its report names them."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.records.fields import Options


class Norm(NamedTuple):
    """A choice of the statistics to normalise by.

    Attributes:
      name: the name in `--norms` and in reports.
      options: the options of `TrainConfig` that choose it.
      statistics: its statistics in the words of the part on learning rates; "": it is not in that part.
    """

    name: str
    options: Options
    statistics: str = ""

    @property
    def key(self) -> str:
        """The name as the keys of rows have it."""
        return self.name.replace(" ", "")

    @property
    def span(self) -> int | None:
        """The number of examples that are normalised together; None: it follows from the devices and their batches."""
        span = self.options.get("span")
        return span if isinstance(span, int) else None

    @property
    def rate_key(self) -> str:
        """The norm as the keys of rows of the part on learning rates have it: the option of `TrainConfig`."""
        return str(self.options["norm"])


def _span(examples: int) -> Norm:
    return Norm(f"span {examples}", {"norm": "batch", "span": examples})


LOCAL = Norm("local", {"norm": "local"})
SYNCHRONISED = Norm("synchronised", {"norm": "batch"}, statistics="batch statistics")
FROZEN = Norm(
    "frozen",
    {"norm": "frozen"},
    statistics="statistics of the training set, fixed before the first update,",
)


def _by_name(norms: Sequence[Norm]) -> dict[str, Norm]:
    return {norm.name: norm for norm in norms}


NORMS = _by_name(
    [
        LOCAL,
        SYNCHRONISED,
        _span(16),
        _span(32),
        _span(64),
        Norm("renorm", {"norm": "renorm"}),
        Norm("group", {"norm": "group"}),
        FROZEN,
    ]
)
# The norms of the part on learning rates.
FIXED_OR_NOT = tuple(norm for norm in NORMS.values() if norm.statistics)


class Task(NamedTuple):
    """A task that the grid is run for.

    Attributes:
      name: the name in `--tasks`, in keys and in reports.
      options: options of `TrainConfig`.
      metric: the label of the score, in percent.
      remark: why local statistics lose little, where they do; "": nothing is known.
    """

    name: str
    options: Options
    metric: str
    remark: str = ""


# The running statistics are averages over some 20 updates at every batch size, because runs are short.
_COMMON: Options = {"warmup_epochs": 0, "weight_decay": 0.0, "label_smoothing": 0.0, "norm_momentum": 0.95}
CLASSIFICATION = Task(
    "classification",
    {**_COMMON, "dataset": "digits", "model": "simple_cnn", "optimizer": "nesterov", "learning_rate": 0.05},
    metric="test accuracy (%)",
)
SEGMENTATION = Task(
    "segmentation",
    {**_COMMON, "dataset": "shapes", "model": "fcn", "optimizer": "adamw", "learning_rate": 0.003},
    metric="mean IoU (%)",
    remark="Local statistics lose less here than in a classification: an image has 48x48 positions at the first level "
    "of fcn and 12x12 at the last, so that the statistics of one image are not far from those of several.",
)
TASKS = {task.name: task for task in (CLASSIFICATION, SEGMENTATION)}
