"""The variants of the norm to compile, and the figures read from a compiled program."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

import batchnorm_jax
from batchnorm_jax.linen import BatchNorm

from ...compiled import figures
from ...models.normalised import NormFactory
from ...models.resnet import plain
from ...records.benchmarks.topology import FLAX, Figures

AXIS = "batch"
POLICY = "save_norm_inputs"
# The span of the variant with spans, in devices.
SPAN_DEVICES = 8
# The choices for the extent of rematerialisation: parts of the model, each of some blocks, or the whole model.
REMAT = ("parts", "whole")


@dataclass(frozen=True)
class Variant:
    """A norm, together with the way in which the model around it is differentiated.

    Attributes:
      name: the name in `--peers` and in result files.
      title: the name in a table.
      norm: the factory of the norm, a `models.normalised.NormFactory`.
      policy: whether the backward pass recomputes everything that `batchnorm_jax.save_norm_inputs` does not save.
      pooled: whether statistics are reduced over devices, all of them or spans; otherwise each device has its own.
      span_devices: the number of devices whose examples are normalised together; None: all devices.
      has_norm: whether the variant has a norm; without one, a layer without fusion would be empty.
      needs_fusion: whether the variant's layer differs from another variant's only where operations are fused.
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
        """Returns whether a layer of this variant compiles to a program that no other variant has."""
        if self.policy or self.span_devices or not self.pooled:
            return False
        return bool(fusion) or (self.has_norm and not self.needs_fusion)


# The two variants whose difference is the cost of pooling.
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
        # This variant has no biases either: it consists of convolutions, ReLUs and sums.
        Variant("none", "no norm", plain(lambda **_: lambda x, **_: x), has_norm=False),
    )
}


def policy() -> Callable[..., Any] | None:
    """Returns the rematerialisation policy of the library; None: this version of the library has none."""
    return getattr(batchnorm_jax, POLICY, None)


def read(lowered: Any, elements: int | None = None, bits: int = 16) -> Figures:
    """Compiles a lowered program and reads its figures.

    Args:
      lowered: the result of `jax.jit(f).lower(...)`.
      elements: the number of elements of the array whose passes are counted; None: passes are not counted.
      bits: the bits of each element of that array.
    """
    started = time.monotonic()
    compiled = lowered.compile()
    return figures.read(compiled, time.monotonic() - started, elements, bits)
