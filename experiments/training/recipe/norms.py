"""The norms that a model can be given."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from batchnorm_jax import relaxed_d_max, relaxed_r_max
from batchnorm_jax.linen import BatchNorm, BatchRenorm
from experiments._errors import unknown_name
from experiments.models.resnet import plain
from experiments.training.machine.devices import AXIS

NAMES = ("batch", "local", "renorm", "frozen", "group", "none")
# By the examples of a device alone, so that what they compute depends on how many devices there are.
PER_DEVICE = ("local", "renorm")
# The steps of the training that the limits of `batchnorm_jax.relaxed_r_max` were made for, about: the paper's baseline
# is at its best after 130,000.
RENORM_PAPER_STEPS = 130_000
# Of Wu and He; fewer where they do not divide the features.
MOST_GROUPS = 32


def make(
    name: str, momentum: float, span: int | None = None, total_steps: int = 1, dtype: Any = None
) -> Callable[..., Any] | None:
    """The norm that a model is given: a factory as `models.normalised.NormFactory`, or None.

    Args:
      name:
        'batch', statistics over the global batch;
        'local', each device's own;
        'renorm', each device's own, corrected towards the running ones;
        'frozen', the running statistics in training too, as constants;
        'group', an example's own, over groups of features: `flax.linen.GroupNorm`;
        'none'.
      momentum: of the running statistics.
      span: of 'batch': examples normalised together; None: all.
      total_steps: of the training, over which the limits of 'renorm' are widened as over that of its paper.
      dtype: of the result, the computation's; None: what the input and the float32 parameters promote to, which is
        float32 for an input in bfloat16 and takes the memory of it.

    Returns:
      A factory: options of `batchnorm_jax.linen.BatchNorm`, such as `axis`, `activation` and `scale_init`, to a norm.

    Raises:
      UsageError: there is no such norm.

    Sources: Ioffe and Szegedy, arXiv 1502.03167, 2015; Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017; Wu and
    He, "Group Normalization", arXiv 1803.08494, 2018.
    """
    if name not in NAMES:
        raise unknown_name("norm", name, NAMES)
    if name == "none":
        return None
    if name == "group":
        return plain(partial(_group, dtype=dtype))
    if name == "renorm":
        scale = RENORM_PAPER_STEPS / total_steps
        return lambda **options: BatchRenorm(
            momentum=momentum,
            dtype=dtype,
            r_max=lambda step: relaxed_r_max(scale * step),
            d_max=lambda step: relaxed_d_max(scale * step),
            **options,
        )
    if name == "frozen":
        return lambda **options: _by_running_average(BatchNorm(momentum=momentum, dtype=dtype, **options))
    axis_name = AXIS if name == "batch" else None
    return lambda **options: BatchNorm(momentum=momentum, axis_name=axis_name, span=span, dtype=dtype, **options)


def _by_running_average(norm: BatchNorm) -> Callable[..., jax.Array]:
    """The norm as it is in evaluation, in training too."""
    return lambda x, *, use_running_average, **arrays: norm(x, use_running_average=True, **arrays)


def _group(*, axis: int = -1, **options: Any) -> Callable[..., jax.Array]:
    """Flax's group norm, called as the others. A mask is of no use to it: every example is normalised by itself."""

    def apply(x, *, use_running_average, mask=None):
        del use_running_average, mask
        # Features are the last axis or the first one, and the examples at the other end.
        last = x if axis == -1 else jnp.swapaxes(x, 0, -1)
        y = nn.GroupNorm(num_groups=math.gcd(last.shape[-1], MOST_GROUPS), epsilon=1e-5, **options)(last)
        return y if axis == -1 else jnp.swapaxes(y, 0, -1)

    return apply
