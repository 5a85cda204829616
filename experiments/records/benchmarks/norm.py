"""Records of the norm suite: `norm.json`."""

from typing import Annotated

from msgspec import Meta, field

from experiments.records.benchmarks.result import ResultFile, Spreads
from experiments.records.fields import Count, NonNegative, Positive, Size, Unbounded, Whole
from experiments.records.record import Record

OURS = "batchnorm_jax"
# Accuracy rows of the first step of training, which has no running mean, say so.
NO_SHIFT = "no shift"


class AccuracyRow(Record, frozen=True, kw_only=True):
    """The errors of one way to compute, at one distance of the mean from zero.

    Attributes:
      what: the distance and the shift, such as "mean/std 100, no shift".
      name: the way to compute.
      var: greatest normwise error of the variance over the features.
      y: greatest normwise error of the result.
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
        """Whether the row is of the first step of training, which has no running mean."""
        return NO_SHIFT in self.what


class Collective(Record, frozen=True, kw_only=True):
    """One collective of a compiled program.

    Attributes:
      kind: such as "all-reduce" or "all-gather".
      elements: the number of elements of its result, in all arrays of a combined one.
      backward: whether it belongs to the backward pass.
    """

    kind: str
    elements: Count
    backward: bool


class LayerCollectives(Record, frozen=True, kw_only=True):
    """The collectives of one layer's train step.

    Attributes:
      transform: the transformation that runs it on several devices.
      name: the norm.
      collectives: in the order of the program.
    """

    transform: str
    name: str
    collectives: list[Collective]


class NetworkCollectives(Record, frozen=True, kw_only=True):
    """The number of all-reduces of a ResNet-50's train step.

    Attributes:
      name: the norm.
      of_norms_as_written: those of the norms, before XLA combines any.
      all_as_compiled: those of the norms and of the gradients, as XLA combined them.
    """

    name: str
    of_norms_as_written: Count
    all_as_compiled: Count


class SynchronisingTime(Record, frozen=True, kw_only=True):
    """The time of one layer's train step on several devices.

    Attributes:
      milliseconds: by the name of the norm.
      ratio_to_once: ratio to the norm that synchronises once, by the name of each other norm.
    """

    milliseconds: Spreads
    ratio_to_once: Spreads


class Collectives(Record, frozen=True, kw_only=True):
    """The part on collectives.

    Attributes:
      features: the number of features of the layer.
      devices: the number of devices.
      layer: one entry per transformation and norm.
      time: of the layer.
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
      name: the norm.
      fusion: what is computed in the layer; "": the norm alone.
      bytes_an_element: bytes per element of the input.
    """

    name: str
    fusion: str
    bytes_an_element: NonNegative


class ProgramMemory(Record, frozen=True, kw_only=True):
    """Bytes that a compiled program takes on one device.

    Attributes:
      temporary: bytes of temporary arrays.
      arguments: bytes of its arguments.
      outputs: bytes of its results.
      aliases: bytes that arguments and results share.
      total: bytes in all; what is shared counts once.
    """

    temporary: Count
    arguments: Count = 0
    outputs: Count = 0
    aliases: Count = 0
    total: Count = 0


class NetworkMemory(ProgramMemory, frozen=True, kw_only=True):
    """The memory of a ResNet-50's train step.

    Attributes:
      name: the norm.
      largest_batch: the largest batch that fits `Networks.memory_gib`.
      ratio_to_flax: temporary bytes, relative to Flax's.
    """

    name: str
    largest_batch: Whole = 0
    ratio_to_flax: NonNegative | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the norm is of this library, fused or not."""
        return self.name.startswith(OURS)


class Networks(Record, frozen=True, kw_only=True):
    """The memory of ResNet-50s with different norms.

    Attributes:
      batch_size: examples per step.
      image_size: height and width of the images.
      memory_gib: the memory that the largest batch is told for.
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
    """The time of one layer, forward and backward, beside its peers.

    Attributes:
      case: shape, dtype and fusion of the layer.
      milliseconds: by library.
      ratio: the ratio of ours to each peer, by peer.
      passes_by_xlas_count: the bytes of a step by XLA's count, in inputs, by library.
      of_floor: the share of the speed that the memory allows, by library; None: not known.
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
      geometric_mean_of_ratios: over the cases, of the median ratio to each peer.
      note: why the cases were not measured; None: they were.
    """

    rows: Annotated[list[SpeedRow], Meta(min_length=1)]
    geometric_mean_of_ratios: dict[str, Positive] = field(default_factory=dict)
    note: str | None = None


class NormRows(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The parts of the norm suite; None: not asked for.

    Attributes:
      accuracy: digits that a layer keeps.
      collectives: collectives, and what they cost.
      memory: bytes kept for the backward pass, and the memory of a network.
      speed: time on a CPU.
      gpu: time on a GPU.
    """

    accuracy: list[AccuracyRow] | None = None
    collectives: Collectives | None = None
    memory: Memory | None = None
    speed: Speed | None = None
    gpu: Speed | None = None


NormFile = ResultFile[NormRows]
