"""Records of the search for the best recipe of very large batches."""

from ..studies import StudyRow


class SearchRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run of the search, or of the recipe that it found."""

    NEEDED = ("batch_size", "learning_rate", "optimizer")


ROWS = {"search": SearchRow, "final": SearchRow}
