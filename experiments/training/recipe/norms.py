"""The norms that a model can be given, each one declared record of `NORMS`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from batchnorm_jax import relaxed_d_max, relaxed_r_max
from batchnorm_jax.linen import BatchNorm, BatchRenorm

from ..._variants import Register
from ...models.normalised import NormFactory
from ...models.resnet import plain
from ..machine.devices import AXIS

# Training steps for which the limits of `batchnorm_jax.relaxed_r_max` were made, approximately: the paper's baseline is
# at its best after 130,000.
RENORM_PAPER_STEPS = 130_000
# The number of Wu and He; fewer groups where they do not divide the features.
MAX_GROUPS = 32


class Settings(NamedTuple):
    """The values from which a norm is made.

    Attributes:
      momentum: the momentum of the running statistics.
      span: examples normalised together, by a norm that takes a span; None: all.
      total_steps: updates of the whole training.
      dtype: the type of the result; None: what the input and the float32 parameters promote to.
    """

    momentum: float
    span: int | None
    total_steps: int
    dtype: Any


@dataclass(frozen=True)
class Norm:
    """A norm, and what other code must know of it.

    Attributes:
      name: the value of `--norm`.
      help: a phrase for the help of the flag.
      make: makes the factory that a model is given; None: the model has no norm.
      pools: the examples over which the statistics of a batch are computed: those of the global batch, or those of each
        device alone, so that a run's numbers depend on how many devices there are. None: no statistics of a batch.
      takes_span: `--span` can divide the examples into groups that are normalised together.
      updates_running_statistics: training updates running statistics, so that `--norm_momentum` means something.
      fixes_statistics: statistics of the training set, computed before the first update, are constants from then on.
      corrects_by_running_statistics: training reads the running statistics of the update before, so that an update
        must be one batch.
      follows_run_length: depends on the number of updates of the whole run.
      reaches_own_norms: applies to norms that a model makes itself, too.
    """

    name: str
    help: str
    make: Callable[[Settings], NormFactory] | None
    pools: Literal["global", "device"] | None = None
    takes_span: bool = False
    updates_running_statistics: bool = False
    fixes_statistics: bool = False
    corrects_by_running_statistics: bool = False
    follows_run_length: bool = False
    reaches_own_norms: bool = False

    @property
    def depends_on_devices(self) -> bool:
        """Whether a run's numbers depend on how many devices there are."""
        return self.pools == "device"


def _batch(settings: Settings, axis_name: str | None) -> NormFactory:
    momentum, span, _, dtype = settings
    return lambda **options: BatchNorm(momentum=momentum, axis_name=axis_name, span=span, dtype=dtype, **options)


def _renorm(settings: Settings) -> NormFactory:
    # The limits are widened over this training as over that of the paper.
    scale = RENORM_PAPER_STEPS / settings.total_steps
    return lambda **options: BatchRenorm(
        momentum=settings.momentum,
        dtype=settings.dtype,
        r_max=lambda step: relaxed_r_max(scale * step),
        d_max=lambda step: relaxed_d_max(scale * step),
        **options,
    )


def _frozen(settings: Settings) -> NormFactory:
    """Makes norms that are in training as they are in evaluation."""

    def make(**options: Any) -> Callable[..., jax.Array]:
        norm = BatchNorm(momentum=settings.momentum, dtype=settings.dtype, **options)
        return lambda x, *, use_running_average, **arrays: norm(x, use_running_average=True, **arrays)

    return make


def _group(settings: Settings) -> NormFactory:
    """Makes Flax's group norms, called as the others. They ignore a mask: each example is normalised by itself."""

    def make(*, axis: int = -1, **options: Any) -> Callable[..., jax.Array]:
        def apply(x, *, use_running_average, mask=None):
            del use_running_average, mask
            # Features are the last axis or the first one, and the examples at the other end.
            last = x if axis == -1 else jnp.swapaxes(x, 0, -1)
            groups = math.gcd(last.shape[-1], MAX_GROUPS)
            y = nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=settings.dtype, **options)(last)
            return y if axis == -1 else jnp.swapaxes(y, 0, -1)

        return apply

    return plain(make)


NORMS = Register(
    "norm",
    Norm(
        "batch",
        "statistics over the global batch",
        partial(_batch, axis_name=AXIS),
        pools="global",
        takes_span=True,
        updates_running_statistics=True,
        reaches_own_norms=True,
    ),
    Norm(
        "local",
        "statistics of each device's examples",
        partial(_batch, axis_name=None),
        pools="device",
        updates_running_statistics=True,
        reaches_own_norms=True,
    ),
    # Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017.
    Norm(
        "renorm",
        "those of each device, corrected towards the running ones: batch renormalization",
        _renorm,
        pools="device",
        updates_running_statistics=True,
        corrects_by_running_statistics=True,
        follows_run_length=True,
    ),
    Norm(
        "frozen",
        "statistics of the training set before the first update, as constants",
        _frozen,
        fixes_statistics=True,
    ),
    # Wu and He, "Group Normalization", arXiv 1803.08494, 2018.
    Norm("group", "each example's own statistics, over groups of features", _group),
    Norm("none", "no normalization", None),
)


def make(
    name: str, momentum: float, span: int | None = None, total_steps: int = 1, dtype: Any = None
) -> NormFactory | None:
    """Returns the norm that a model is given: a factory as `models.normalised.NormFactory`, or None.

    Args:
      name: a name in `NORMS`.
      momentum: the momentum of the running statistics.
      span: examples normalised together, where the norm takes a span; None: all.
      total_steps: updates of the whole training, over which a norm that follows its length changes.
      dtype: the type of the result and of the computation; None: what the input and the float32 parameters promote to,
        which is float32 for an input in bfloat16 and needs the memory of float32.

    Returns:
      A factory: options of `batchnorm_jax.linen.BatchNorm`, such as `axis`, `activation` and `scale_init`, to a norm.

    Raises:
      UsageError: there is no such norm.

    Source: Ioffe and Szegedy, arXiv 1502.03167, 2015; the sources of the others are named beside them.
    """
    norm = NORMS[name]
    return None if norm.make is None else norm.make(Settings(momentum, span, total_steps, dtype))
