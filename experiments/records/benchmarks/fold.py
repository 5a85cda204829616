"""Records of the fold suite: `fold.json`."""

from experiments.records.benchmarks.result import PositiveSpread, ResultFile, Spreads
from experiments.records.fields import NonNegative, Size
from experiments.records.record import Record


class FoldRow(Record, frozen=True, kw_only=True):
    """Inference of one model before and after its norms are folded.

    Attributes:
      model: the name of the model.
      images: shape of the batch.
      platform: such as "cpu".
      milliseconds: per batch, before and after.
      ratio: of after to before, taken round by round.
      difference: normwise difference of the logits.
    """

    model: str
    images: tuple[Size, ...]
    platform: str
    milliseconds: Spreads
    ratio: PositiveSpread
    difference: NonNegative


FoldFile = ResultFile[list[FoldRow]]
