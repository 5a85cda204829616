"""The norms that are compiled, and the figures read from a program."""

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
from experiments.records.benchmarks.topology import FLAX, Figures

AXIS = "batch"
POLICY = "save_norm_inputs"
# The span in devices of the variant that has one.
SPAN_DEVICES = 8
# Choices of what the policy is applied to: parts of the model of some blocks each, or all of it.
REMAT = ("parts", "whole")


@dataclass(frozen=True)
class Variant:
    """A norm, and how the model around it is differentiated.

    Attributes:
      name: the name in `--peers` and in result files.
      title: the name in a table.
      norm: its factory, as `models.normalised.NormFactory`.
      policy: whether the backward pass computes again all but what `batchnorm_jax.save_norm_inputs` saves.
      pooled: whether statistics are those of all devices' examples, or of a span of them; else of each device's.
      span_devices: the number of devices whose examples are normalised together; None: all.
      has_norm: whether it has a norm, which a layer without ReLU can consist of.
      needs_fusion: whether its layer is another program than that of another variant only where something is fused.
    """

    name: str
    title: str
    norm: NormFactory
    policy: bool = False
    pooled: bool = True
    span_devices: int | None = None
    has_norm: bool = True
    needs_fusion: bool = False

    def is_sensible(self, fusion: str) -> bool:
        """Returns whether a layer of this variant is another program than those of the other variants."""
        if self.policy or self.span_devices or not self.pooled:
            return False
        return bool(fusion) or (self.has_norm and not self.needs_fusion)


# The variants that the cost of pooling is computed from.
WHOLE = Variant("plain", "ours, drop-in", plain(BatchNorm))
LOCAL = Variant("local", "ours, each device alone", plain(BatchNorm), pooled=False)
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(FLAX, "Flax, fast variance", plain(nn.BatchNorm)),
        WHOLE,
        Variant("fused", "ours, ReLU and residual fused", BatchNorm, needs_fusion=True),
        Variant("policy", "ours, drop-in, with the policy", plain(BatchNorm), policy=True),
        Variant("span", f"ours, spans of {SPAN_DEVICES} devices", plain(BatchNorm), span_devices=SPAN_DEVICES),
        LOCAL,
        # Without biases either: convolutions, ReLUs and sums alone.
        Variant("none", "no norm", plain(lambda **_: lambda x, **_: x), has_norm=False),
    )
}


def policy() -> Callable[..., Any] | None:
    """Returns the rematerialisation policy of the library; None where this version has none."""
    return getattr(batchnorm_jax, POLICY, None)


def read(lowered: Any, elements: int | None = None, bits: int = 16) -> Figures:
    """Compiles a lowered program and reads its figures.

    Args:
      lowered: the result of `jax.jit(f).lower(...)`.
      elements: the number of elements of the array whose passes are counted; None: passes are not counted.
      bits: bits of each element.
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
        temporary=memory.temporary,
        total=memory.total,
        collectives=len(found),
        collective_elements=sum(c.elements for c in found),
        collective_bytes=hlo.collective_bytes(compiled),
        seconds=round(seconds, 1),
    )
