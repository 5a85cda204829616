"""Records of the noise suite: `noise.json`."""

from ..fields import Size
from ..record import Record
from .result import PositiveSpread, ResultFile, Spreads


class NoiseCostRow(Record, frozen=True, kw_only=True):
    """The time of a training step with and without an estimate of the gradient noise.

    Attributes:
      model: the name of the model.
      parameters: the number of its parameters.
      batch_size: the number of examples of a step, over all devices.
      way: how the batch is cut into parts, such as "4 micro-batches".
      platform: the platform, such as "cpu".
      devices: the number of devices.
      milliseconds: the time per step, with the estimate, with it now and then, and without it.
      ratio: the time with the estimate divided by the time without it, within each round.
      sparing: the ratio for a step in which the estimate is made now and then; None: the row is older than that.
    """

    model: str
    parameters: Size
    batch_size: Size
    way: str
    platform: str
    devices: Size
    milliseconds: Spreads
    ratio: PositiveSpread
    sparing: PositiveSpread | None = None


NoiseCostFile = ResultFile[list[NoiseCostRow]]
