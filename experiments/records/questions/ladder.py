"""Records of the question which parts of a recipe repair a very large batch."""

from experiments.records.studies import StudyRow


class LadderRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run of one rung of the ladder, which its label names."""

    NEEDED = ("batch_size",)
    TIMED = True


ROWS = {"ladder": LadderRow}
