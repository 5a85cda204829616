"""Records of the search for the best recipe of very large batches."""

from ..fields import Positive, Share, Size
from ..record import Record
from ..studies import Analysis as Base
from ..studies import StudyRow


class SearchRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run of the search, or of the recipe that it found."""

    NEEDED = ("batch_size", "learning_rate", "optimizer")


class Recipe(Record, frozen=True, kw_only=True):
    """The best recipe of one batch size.

    Attributes:
      batch_size: examples per update.
      optimizer: the name of the optimizer.
      rate: its peak rate before any change.
      on_edge: whether that is the least or the greatest that was tried.
      kept: the changes that the recipe has, in words.
      held_out: the accuracy on what was held out.
    """

    batch_size: Size
    optimizer: str
    rate: Positive
    on_edge: bool
    kept: list[str]
    held_out: Share


class Analysis(Base, frozen=True, kw_only=True):
    """The contents of `search.json`; earlier versions wrote the keys alone.

    Attributes:
      epochs: the epochs of every run.
      trials: how many rates were tried of each optimizer.
      recipes: the best recipe of each batch size, rising.
    """

    epochs: Size | None = None
    trials: Size | None = None
    recipes: tuple[Recipe, ...] = ()


ROWS = {"search": SearchRow, "change": SearchRow, "joined": SearchRow, "final": SearchRow}
