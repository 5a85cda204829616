"""The norms and the tasks of the norm study, each declared once: the study runs them, and its report names them."""

from collections.abc import Sequence
from typing import NamedTuple

from .fields import Options


class Norm(NamedTuple):
    """A choice of the statistics to normalise by.

    Attributes:
      name: the name in `--norms` and in reports.
      options: the options of `TrainConfig` that choose the norm.
      statistics: the words for the norm's statistics in the part on learning rates; "": that part leaves the norm out.
    """

    name: str
    options: Options
    statistics: str = ""

    @property
    def key(self) -> str:
        """The name in the keys of rows: without spaces."""
        return self.name.replace(" ", "")

    @property
    def span(self) -> int | None:
        """The number of examples normalised together; None: the devices and their batch sizes decide it."""
        span = self.options.get("span")
        return span if isinstance(span, int) else None

    @property
    def rate_key(self) -> str:
        """The norm in the keys of rows of the part on learning rates: its option of `TrainConfig`."""
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
# The norms of the part on learning rates, which compares batch statistics with fixed ones.
FIXED_OR_NOT = tuple(norm for norm in NORMS.values() if norm.statistics)


class Task(NamedTuple):
    """A task of the norm study, for which the grid is run once.

    Attributes:
      name: the name in `--tasks`, in keys and in reports.
      options: the options of `TrainConfig` that choose the task.
      metric: the label of the score, which is in percent.
      remark: the reason why local statistics lose little on this task; "": no reason is known.
    """

    name: str
    options: Options
    metric: str
    remark: str = ""


# Runs are short, so the momentum is low: running statistics average over some 20 updates at every batch size.
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
