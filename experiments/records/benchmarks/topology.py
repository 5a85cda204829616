"""Records of programs compiled for accelerators that this machine lacks: `norm-TOPOLOGY.json`."""

from typing import Generic, TypeVar

from ..fields import Count, NonNegative, Size, Whole
from ..record import Record
from .result import ResultFile

# The variant that the others are compared with.
FLAX = "flax"
# The operations of a layer in words, by fusion.
FUSIONS = {"": "norm", "relu": "norm, ReLU", "residual": "norm + residual, ReLU"}


class LayerJob(Record, frozen=True, kw_only=True):
    """One layer's train step, forward and backward.

    Attributes:
      topology: the accelerators, such as "v5e:2x2".
      variant: the norm.
      shape: the shape of one device's input, NHWC.
      fusion: the operations that follow the norm, a key of `FUSIONS`.
      dtype: the dtype of the input and the result; parameters and statistics are float32.
    """

    topology: str
    variant: str
    shape: tuple[Size, ...]
    fusion: str
    dtype: str = "bfloat16"


class NetworkJob(Record, frozen=True, kw_only=True):
    """A ResNet-50's train step in bfloat16: loss, gradients and an update by SGD with momentum.

    Attributes:
      topology: the accelerators, such as "v5e:2x2".
      variant: the norm.
      batch_size: examples per device.
      image_size: the height and the width of the images.
      remat: the extent of rematerialisation for a variant that has a policy: "parts" of the model, or the "whole".
    """

    topology: str
    variant: str
    batch_size: Size
    image_size: Size
    remat: str = "parts"


AnyJob = TypeVar("AnyJob", LayerJob, NetworkJob)


class Figures(Record, frozen=True, kw_only=True):
    """Figures read from an optimised program.

    Attributes:
      passes: the traffic of arrays at least as large as the input x, in multiples of x; None for a network.
      bytes: the bytes that all instructions read from and write to main memory.
      cycles: the compiler's estimate, without collectives and copies between memories, counting the most expensive
        branch of each conditional; None for a GPU.
      cycles_usually: an estimate of the cycles that counts the cheapest branch of each conditional.
      temporary: the bytes of temporary memory on one device.
      total: the bytes of temporaries, arguments and outputs on one device; shared bytes count once.
      collectives: the number of collectives, after the compiler has combined some.
      collective_elements: the number of elements of the collectives' results.
      collective_bytes: the bytes of the collectives' results.
      seconds: the compilation time on this machine.
    """

    passes: NonNegative | None
    bytes: Count
    cycles: Count | None
    cycles_usually: Count | None
    temporary: Count
    total: Count
    collectives: Count
    collective_elements: Count
    collective_bytes: Count
    seconds: NonNegative


class Ratio(Record, frozen=True, kw_only=True):
    """Figures divided by those of Flax's row; None where a figure is missing or Flax's is too small to compare with."""

    cycles: NonNegative | None = None
    bytes: NonNegative | None = None
    temporary: NonNegative | None = None
    total: NonNegative | None = None
    collectives: NonNegative | None = None


class LargestBatch(Record, frozen=True, kw_only=True):
    """The largest batch per device whose step fits the device's memory.

    Attributes:
      examples: the number of examples; None: not known.
      how: the method that found the number, or the reason why it is not known.
    """

    examples: Count | None
    how: str


class Row(Record, Generic[AnyJob], frozen=True, kw_only=True):
    """One program.

    Attributes:
      job: the description of the compiled program.
      title: the title of the variant.
      figures: the figures of the program; None: it was not compiled.
      note: the reason why the program was not compiled; None: it was.
      ratio: the figures relative to those of Flax's row; None: one of the two programs was not compiled.
      largest: the largest batch of a network; None: not asked for.
    """

    job: AnyJob
    title: str
    figures: Figures | None = None
    note: str | None = None
    ratio: Ratio | None = None
    largest: LargestBatch | None = None

    @property
    def is_reference(self) -> bool:
        """True for the row that the other rows are compared with."""
        return self.job.variant == FLAX


class PoolingCost(Record, frozen=True, kw_only=True):
    """The cost of pooling statistics on one number of devices.

    Attributes:
      devices: the number of devices that train together.
      all_reduces: the number of all-reduces that pooling adds to a step.
      bytes: the bytes per device that these all-reduces sum.
      step_seconds: the time of a step without pooling.
      whole_seconds: the time of the all-reduces if the whole batch is pooled.
      span_seconds: the time of the all-reduces if spans over groups of devices are pooled.
    """

    devices: Size
    all_reduces: Whole = 0
    bytes: Whole = 0
    step_seconds: NonNegative
    whole_seconds: NonNegative
    span_seconds: NonNegative

    @property
    def share(self) -> float:
        """The time of pooling the whole batch, as a share of a step without pooling."""
        return self.whole_seconds / self.step_seconds


class TopologyRows(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The parts of a topology; None: not asked for.

    Attributes:
      topology: the accelerators, such as "v5e:2x2".
      title: the full name of the accelerator.
      memory_bytes: the memory of one device that programs can use.
      memory_source: the source of `memory_bytes`.
      layers: one row per layer and norm.
      resnet50: one row per norm.
      pods: the cost of pooling, one entry per number of devices.
    """

    topology: str
    title: str
    memory_bytes: Count = 0
    memory_source: str = ""
    layers: list[Row[LayerJob]] | None = None
    resnet50: list[Row[NetworkJob]] | None = None
    pods: list[PoolingCost] | None = None


TopologyFile = ResultFile[TopologyRows]
