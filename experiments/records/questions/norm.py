"""Records of the norm study: runs of the grid of norms and batch sizes, and runs at several learning rates."""

import re

from ..fields import Finite
from ..record import Record
from ..studies import StudyRow

_GRID_KEY = re.compile(r"grid-(\w+)-(\w+)-p([1-9][0-9]{0,8})-seed[0-9]+")


class GridRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run of one norm at one per-device batch size."""

    NEEDED = ("num_devices", "steps")
    TIMED = True

    def __post_init__(self):
        super().__post_init__()
        if self.is_result and not _GRID_KEY.fullmatch(self.key):
            raise ValueError(f"Expected a key of the form {_GRID_KEY.pattern}")

    @property
    def task(self) -> str:
        """The task that the run learns, a key of `records.norm_study.TASKS`."""
        return self._place(1)

    @property
    def norm(self) -> str:
        """The norm of the run, the `key` of one of `records.norm_study.NORMS`."""
        return self._place(2)

    @property
    def per_device(self) -> int:
        """The number of examples per device and update."""
        return int(self._place(3))

    @property
    def num_devices(self) -> int:
        """The number of devices of the run."""
        return self._option("num_devices")

    @property
    def steps(self) -> int:
        """The number of updates that the run was planned to make."""
        return self._option("steps")

    def _place(self, group: int) -> str:
        found = _GRID_KEY.fullmatch(self.key)
        if found is None:
            raise LookupError(f"the key {self.key} has another form than {_GRID_KEY.pattern}")
        return found[group]


class Shift(Record, frozen=True, kw_only=True):
    """The distance between the statistics of activations and those that normalise them, as medians over all features.

    Attributes:
      mean: |mean - mean used|, in standard deviations.
      std: the standard deviation divided by the one used.
    """

    mean: Finite
    std: Finite


class RateRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run of one norm at one peak learning rate.

    Attributes:
      shift: the shift of the activations at the end of the run; None: not measured.
    """

    NEEDED = ("learning_rate",)
    TIMED = True

    shift: Shift | None = None

    @property
    def statistics(self) -> str:
        """The norm of the run, the `rate_key` of one of `records.norm_study.FIXED_OR_NOT`."""
        return self.key.split("-")[1] if "-" in self.key else ""


ROWS = {"grid": GridRow, "rate": RateRow}
