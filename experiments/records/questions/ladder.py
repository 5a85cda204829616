"""Records of the question about the parts of a recipe that repair a very large batch."""

from ..studies import StudyRow


class LadderRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run of one rung of the ladder; the label names the rung."""

    NEEDED = ("batch_size",)
    TIMED = True


ROWS = {"ladder": LadderRow}
