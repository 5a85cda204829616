"""Records of programs compiled for accelerators that are not here: `norm-TOPOLOGY.json`."""

from typing import Generic, TypeVar

from experiments.records.benchmarks.result import ResultFile
from experiments.records.fields import Count, NonNegative, Size, Whole
from experiments.records.record import Record

# The variant that the others are compared with.
FLAX = "flax"
# What is computed in a layer, in words.
FUSIONS = {"": "norm", "relu": "norm, ReLU", "residual": "norm + residual, ReLU"}


class LayerJob(Record, frozen=True, kw_only=True):
    """One layer's train step, forward and backward.

    Attributes:
      topology: the accelerators, such as "v5e:2x2".
      variant: the norm.
      shape: of one device's input, NHWC.
      fusion: what follows the norm, a key of `FUSIONS`.
      dtype: of the input and the result; parameters and statistics are float32.
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
      image_size: height and width.
      remat: what a variant with a policy applies it to: "parts" of the model, or the "whole".
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
      passes: reads and writes of arrays of at least the size of x, in such arrays; None for a network.
      bytes: read from the main memory and written to it by all instructions.
      cycles: the compiler's estimate, without collectives and copies between memories; None for a GPU. Of a
        conditional's branches the dearest counts.
      cycles_usually: the same estimate with the cheapest branch of a conditional.
      temporary: bytes of temporary memory of one device.
      total: bytes of temporaries, arguments and outputs of one device, less what these share.
      collectives: the number of collectives, after the compiler has combined some.
      collective_elements: the number of elements of their results.
      collective_bytes: bytes of their results.
      seconds: of the compilation on this machine.
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
    """Figures divided by those of Flax's row; None where either has none, or Flax's are too small to compare with."""

    cycles: NonNegative | None = None
    bytes: NonNegative | None = None
    temporary: NonNegative | None = None
    total: NonNegative | None = None
    collectives: NonNegative | None = None


class LargestBatch(Record, frozen=True, kw_only=True):
    """The largest batch per device whose step fits the device's memory.

    Attributes:
      examples: the number of examples; None: not known.
      how: the way it was found, or why it is not known.
    """

    examples: Count | None
    how: str


class Row(Record, Generic[AnyJob], frozen=True, kw_only=True):
    """One program.

    Attributes:
      job: what was compiled.
      title: of the variant.
      figures: None: it was not compiled.
      note: why it was not compiled.
      ratio: to Flax's row; None: one of the two was not compiled.
      largest: of a network, where it was asked for.
    """

    job: AnyJob
    title: str
    figures: Figures | None = None
    note: str | None = None
    ratio: Ratio | None = None
    largest: LargestBatch | None = None

    @property
    def is_reference(self) -> bool:
        """Whether the other rows are compared with this one."""
        return self.job.variant == FLAX


class PoolingCost(Record, frozen=True, kw_only=True):
    """The cost of pooling statistics on one number of devices.

    Attributes:
      devices: the number of devices that train together.
      all_reduces: all-reduces that pooling adds to a step.
      bytes: bytes that these reduce, of one device.
      step_seconds: of a step without pooling.
      whole_seconds: of the all-reduces, where the whole batch is pooled.
      span_seconds: of the all-reduces, where spans of some devices are pooled.
    """

    devices: Size
    all_reduces: Whole = 0
    bytes: Whole = 0
    step_seconds: NonNegative
    whole_seconds: NonNegative
    span_seconds: NonNegative

    @property
    def share(self) -> float:
        """The time of pooling the whole batch, as a part of a step without pooling."""
        return self.whole_seconds / self.step_seconds


class TopologyRows(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The parts of a topology; None: not asked for.

    Attributes:
      topology: the accelerators, such as "v5e:2x2".
      title: the full name of the accelerator.
      memory_bytes: memory of one device for programs.
      memory_source: where that figure is from.
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
