"""Records of the norm suite: `norm.json`."""

from typing import Annotated

from msgspec import Meta, field

from ..fields import Count, NonNegative, Positive, Size, Unbounded, Whole
from ..record import Record
from .result import ResultFile, Spreads

OURS = "batchnorm_jax"
# The words in `AccuracyRow.what` that mark the first step of training, which has no running mean to shift by.
NO_SHIFT = "no shift"


class AccuracyRow(Record, frozen=True, kw_only=True):
    """The errors of one way to compute, at one distance of the mean from zero.

    Attributes:
      what: the distance and the shift, such as "mean/std 100, no shift".
      name: the name of the way to compute.
      var: the greatest normwise error of the variance over the features.
      y: the greatest normwise error of the result.
    """

    what: str
    name: str
    var: NonNegative | None = None
    y: NonNegative

    @property
    def mean_over_std(self) -> float:
        """The distance of the mean from zero in standard deviations."""
        return float(self.what.split()[1].rstrip(","))

    @property
    def has_no_shift(self) -> bool:
        """True for the first step of training, which has no running mean to shift by."""
        return NO_SHIFT in self.what


class Collective(Record, frozen=True, kw_only=True):
    """One collective of a compiled program.

    Attributes:
      kind: the operation, such as "all-reduce" or "all-gather".
      elements: the number of elements of its result; of a combined collective, the total over its arrays.
      backward: whether the collective belongs to the backward pass.
    """

    kind: str
    elements: Count
    backward: bool


class LayerCollectives(Record, frozen=True, kw_only=True):
    """The collectives of one layer's train step.

    Attributes:
      transform: the JAX transformation that runs the step on several devices.
      name: the name of the norm.
      collectives: the collectives, in the order of the program.
    """

    transform: str
    name: str
    collectives: list[Collective]


class NetworkCollectives(Record, frozen=True, kw_only=True):
    """The number of all-reduces of a ResNet-50's train step.

    Attributes:
      name: the name of the norm.
      of_norms_as_written: the all-reduces of the norms, before XLA combines any.
      all_as_compiled: the all-reduces of the norms and of the gradients, after XLA has combined some.
    """

    name: str
    of_norms_as_written: Count
    all_as_compiled: Count


class SynchronisingTime(Record, frozen=True, kw_only=True):
    """The time of one layer's train step on several devices.

    Attributes:
      milliseconds: the time per step, by the name of the norm.
      ratio_to_once: the ratio to the norm that synchronises once, by the name of each other norm.
    """

    milliseconds: Spreads
    ratio_to_once: Spreads


class Collectives(Record, frozen=True, kw_only=True):
    """The part on collectives.

    Attributes:
      features: the number of features of the layer.
      devices: the number of devices.
      layer: one entry per transformation and norm.
      time: the time of the layer's train step.
      resnet50: one entry per norm.
    """

    features: Size
    devices: Size
    layer: list[LayerCollectives]
    time: SynchronisingTime
    resnet50: list[NetworkCollectives]


class KeptBytes(Record, frozen=True, kw_only=True):
    """The bytes that one layer keeps for its backward pass.

    Attributes:
      name: the name of the norm.
      fusion: the operations fused into the layer; "": the norm alone.
      bytes_an_element: bytes per element of the input.
    """

    name: str
    fusion: str
    bytes_an_element: NonNegative


class ProgramMemory(Record, frozen=True, kw_only=True):
    """The bytes that a compiled program takes on one device.

    Attributes:
      temporary: the bytes of temporary arrays.
      arguments: the bytes of the arguments.
      outputs: the bytes of the results.
      aliases: the bytes that arguments and results share.
      total: the total bytes; shared bytes count once.
    """

    temporary: Count
    arguments: Count = 0
    outputs: Count = 0
    aliases: Count = 0
    total: Count = 0


class NetworkMemory(ProgramMemory, frozen=True, kw_only=True):
    """The memory of a ResNet-50's train step.

    Attributes:
      name: the name of the norm.
      largest_batch: the largest batch that fits into `Networks.memory_gib`.
      ratio_to_flax: the temporary bytes divided by those with Flax's norm.
    """

    name: str
    largest_batch: Whole = 0
    ratio_to_flax: NonNegative | None = None

    @property
    def is_ours(self) -> bool:
        """True for a norm of this library, fused or not."""
        return self.name.startswith(OURS)


class Networks(Record, frozen=True, kw_only=True):
    """The memory of ResNet-50s with different norms.

    Attributes:
      batch_size: examples per step.
      image_size: height and width of the images.
      memory_gib: the memory, in GiB, that `NetworkMemory.largest_batch` refers to.
      rows: one entry per norm.
    """

    batch_size: Size
    image_size: Size
    memory_gib: NonNegative = 0.0
    rows: Annotated[list[NetworkMemory], Meta(min_length=1)]


class Memory(Record, frozen=True, kw_only=True):
    """The part on memory.

    Attributes:
      layer: one entry per norm and fusion.
      resnet50: the networks.
    """

    layer: list[KeptBytes] = field(default_factory=list)
    resnet50: Networks


class SpeedRow(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The time of one layer, forward and backward, compared with other libraries.

    Attributes:
      case: the shape, the dtype and the fusion of the layer.
      milliseconds: the time per step, by library.
      ratio: the time with this library divided by the time with each peer, by peer.
      passes_by_xlas_count: the bytes of a step by XLA's count, as multiples of the input's, by library.
      of_floor: the speed as a share of what the memory bandwidth allows, by library; None: not known.
    """

    case: str = ""
    milliseconds: Spreads = field(default_factory=dict)
    ratio: Spreads = field(default_factory=dict)
    passes_by_xlas_count: dict[str, Unbounded] = field(default_factory=dict)
    of_floor: Spreads | None = None


class Speed(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A part on speed.

    Attributes:
      rows: one entry per case.
      geometric_mean_of_ratios: the geometric mean of the median ratio over the cases, by peer.
      note: the reason why the cases were not measured; None: they were measured.
    """

    rows: Annotated[list[SpeedRow], Meta(min_length=1)]
    geometric_mean_of_ratios: dict[str, Positive] = field(default_factory=dict)
    note: str | None = None


class NormRows(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The parts of the norm suite; None: not asked for.

    Attributes:
      accuracy: the errors of a layer's results.
      collectives: the collectives and their cost.
      memory: the bytes kept for the backward pass, and the memory of a network.
      speed: the time on a CPU.
      gpu: the time on a GPU.
    """

    accuracy: list[AccuracyRow] | None = None
    collectives: Collectives | None = None
    memory: Memory | None = None
    speed: Speed | None = None
    gpu: Speed | None = None


NormFile = ResultFile[NormRows]
