"""Records of the fold suite: `fold.json`."""

from ..fields import NonNegative, Size
from ..record import Record
from .result import PositiveSpread, ResultFile, Spreads


class FoldRow(Record, frozen=True, kw_only=True):
    """Inference of one model before and after its norms are folded.

    Attributes:
      model: the name of the model.
      images: the shape of the batch.
      platform: the platform, such as "cpu".
      milliseconds: the time per batch, before and after folding.
      ratio: the time after folding divided by the time before, within each round.
      difference: the normwise relative difference of the logits.
    """

    model: str
    images: tuple[Size, ...]
    platform: str
    milliseconds: Spreads
    ratio: PositiveSpread
    difference: NonNegative


FoldFile = ResultFile[list[FoldRow]]
