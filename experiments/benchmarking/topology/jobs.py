"""Jobs to compile, one layer's train step or a ResNet-50's, and the figures read from their programs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

import batchnorm_jax
from batchnorm_jax.linen import BatchNorm
from experiments.benchmarking import hlo
from experiments.benchmarking.topology.program import Program
from experiments.models.normalised import NormFactory
from experiments.models.resnet import plain

AXIS = "batch"
FLAX = "flax"
POLICY = "save_norm_inputs"
# The span of the variant that has one.
SPAN_DEVICES = 8
# What the policy is applied to: parts of the model of some blocks each, or all of it.
REMAT = ("parts", "whole")


@dataclass(frozen=True)
class Variant:
    """A norm, and how the model around it is differentiated.

    Attributes:
      title: what a table calls it.
      norm: its factory, as `models.normalised.NormFactory`.
      policy: the backward pass computes again all but what `batchnorm_jax.save_norm_inputs` saves.
      pooled: statistics are those of all devices' examples, or of a span of them; else of each device's.
      span_devices: the number of devices whose examples are normalised together; None: all.
      has_norm: it is a norm, which a layer without ReLU can consist of.
    """

    title: str
    norm: NormFactory
    policy: bool = False
    pooled: bool = True
    span_devices: int | None = None
    has_norm: bool = True


VARIANTS: dict[str, Variant] = {
    FLAX: Variant("Flax, fast variance", plain(nn.BatchNorm)),
    "plain": Variant("ours, drop-in", plain(BatchNorm)),
    "fused": Variant("ours, ReLU and residual fused", BatchNorm),
    "policy": Variant("ours, drop-in, with the policy", plain(BatchNorm), policy=True),
    "span": Variant(f"ours, spans of {SPAN_DEVICES} devices", plain(BatchNorm), span_devices=SPAN_DEVICES),
    "local": Variant("ours, each device alone", plain(BatchNorm), pooled=False),
    # Without biases either: convolutions, ReLUs and sums alone.
    "none": Variant("no norm", plain(lambda **_: lambda x, **_: x), has_norm=False),
}


def policy() -> Callable[..., Any] | None:
    """The rematerialisation policy of the library; None where this version has none."""
    return getattr(batchnorm_jax, POLICY, None)


@dataclass(frozen=True)
class LayerJob:
    """One layer's train step, forward and backward.

    Attributes:
      topology: a name that `targets.parse` knows.
      variant: a key of `VARIANTS`.
      shape: of one device's input, NHWC.
      fusion: what follows the norm: "" nothing, "relu", or "residual", a ReLU of the sum.
      dtype: of the input and the result; parameters and statistics are float32.
    """

    topology: str
    variant: str
    shape: tuple[int, ...]
    fusion: str
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class NetworkJob:
    """A ResNet-50's train step in bfloat16: loss, gradients and an update by SGD with momentum.

    Attributes:
      topology: a name that `targets.parse` knows.
      variant: a key of `VARIANTS`.
      batch_size: of one device.
      image_size: height and width.
      remat: what a variant with a policy applies it to, one of `REMAT`.
    """

    topology: str
    variant: str
    batch_size: int
    image_size: int
    remat: str = REMAT[0]


Job = LayerJob | NetworkJob


@dataclass(frozen=True)
class Figures:
    """Figures read from an optimised program.

    Attributes:
      passes: reads and writes of arrays of at least the size of x, in such arrays; None for a network.
      bytes: read from the main memory and written to it by all instructions.
      cycles: the compiler's estimate, without collectives and copies between memories; None for a GPU. Of a
        conditional's branches the dearest counts.
      cycles_usually: the same, of a conditional's branches the cheapest.
      temporary: bytes of temporary memory of one device.
      total: bytes of temporaries, arguments and outputs of one device, less what these share.
      collectives: how many there are, after the compiler has combined some.
      collective_elements: numbers in their results.
      collective_bytes: bytes of their results.
      seconds: of the compilation on this machine.
    """

    passes: float | None
    bytes: int
    cycles: int | None
    cycles_usually: int | None
    temporary: int
    total: int
    collectives: int
    collective_elements: int
    collective_bytes: int
    seconds: float


def read(lowered: Any, elements: int | None = None, bits: int = 16) -> Figures:
    """Compiles a lowered program and reads its figures.

    Args:
      lowered: what `jax.jit(f).lower(...)` returns.
      elements: of the array whose passes are counted; None: they are not.
      bits: of each of these elements.
    """
    started = time.monotonic()
    compiled = lowered.compile()
    seconds = time.monotonic() - started
    program, memory, found = Program(compiled.as_text()), hlo.memory(compiled), hlo.collectives(compiled)
    return Figures(
        passes=None if elements is None else program.passes(elements, bits),
        bytes=program.bytes(),
        cycles=program.cycles(max) or None,
        cycles_usually=program.cycles(min) or None,
        temporary=memory["temporary"],
        total=memory["total"],
        collectives=len(found),
        collective_elements=sum(c.elements for c in found),
        collective_bytes=hlo.collective_bytes(compiled),
        seconds=round(seconds, 1),
    )
