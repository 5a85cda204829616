"""Records of the question what several updates per forward pass do."""

from experiments.records.studies import StudyRow


class BackwardsRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run of one way to make several updates, which its label names."""

    NEEDED = ("batch_size",)
    TIMED = True


ROWS = {"backwards": BackwardsRow}
