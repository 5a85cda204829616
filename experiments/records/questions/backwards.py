"""Records of the question about several updates per forward pass."""

from ..studies import StudyRow


class BackwardsRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run with one way to make several updates; the label names the way."""

    NEEDED = ("batch_size",)
    TIMED = True


ROWS = {"backwards": BackwardsRow}
