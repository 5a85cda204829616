"""Residual networks: ResNet-18 and ResNet-50, each convolution followed by a norm that its factory makes."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.models.normalised import NormFactory, normalised

# Below this height or width, in pixels, the usual first layers, which divide both by four, would leave too little.
SMALL_IMAGE_SIZE = 64
# The most blocks of one part that is recomputed. A longer part's chain of sums takes memory; with shorter parts more
# convolutions run again.
MAX_BLOCKS_PER_PART = 4


def plain(norm: Callable[..., Callable[..., jax.Array]]) -> NormFactory:
    """Returns a norm factory for these models, made from a norm without activations and residuals such as Flax's.

    Args:
      norm: `norm(**options)`, called as `module(x, use_running_average=...)`.
    """

    def make(activation=None, **options):
        module = norm(**options)

        def apply(x, residual=None, **arguments):
            x = module(x, **arguments)
            x = x if residual is None else x + residual
            return x if activation is None else activation(x)

        return apply

    return make


class ResNet(nn.Module):
    """A residual network for NHWC images, v1.5: a bottleneck's stride is in its 3x3 convolution.

    Attributes:
      stage_sizes: the number of blocks of each stage.
      bottleneck: blocks are 1x1, 3x3 and 1x1 convolutions, the last four times as wide; else two of 3x3.
      num_classes: the number of outputs.
      norm: makes the norms, a `models.normalised.NormFactory`; `plain` makes one from a norm without activations and
        residuals. None: biases in their place.
      width: features of the first stage.
      small_images: begin with a 3x3 convolution and no pool; None: where an image side is shorter than 64 pixels.
      zero_last_scale: each block starts as the identity, by a zero scale of its last norm (with no norm, a zero kernel
        of its last convolution).
      dtype: the type of the computation; parameters and outputs are float32.
      part_policy: a policy of `jax.checkpoint`. Each stage is cut into equal parts of at most four blocks, and the
        first part includes the layers before it; the backward pass recomputes each part, except the values that the
        policy saves. The last norm of a part, whose output is kept as the input of the next part, and the norms of
        shortcuts save nothing (`save_for_backward="nothing"`, which the norm must take). None: each operation saves
        what its backward pass needs.

    Source: He et al., "Deep Residual Learning", arXiv 1512.03385, 2015; the last norm of a block starts with scale
    zero, as in Goyal et al., arXiv 1706.02677, 2017, section 5.1.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool
    num_classes: int
    norm: NormFactory | None = None
    width: int = 64
    small_images: bool | None = None
    zero_last_scale: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")
    part_policy: Callable[..., Any] | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of shape (N, num_classes).

        Args:
          images: shape (N, H, W, channels), of about unit size.
          train: normalise by the batch's statistics and update the running ones.
          mask: shape (N,), True where an example counts towards the statistics.
        """
        he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
        zeros = nn.initializers.zeros

        def conv(x, width, size, stride=1, kernel_init=he_normal):
            return nn.Conv(
                width,
                (size, size),
                (stride, stride),
                padding=[(size // 2, size // 2)] * 2,
                use_bias=self.norm is None,
                dtype=self.dtype,
                kernel_init=kernel_init,
            )(x)

        def norm(x, activation=nn.relu, **options):
            return normalised(self.norm, x, train=train, mask=mask, activation=activation, **options)

        last_conv: dict[str, Any] = {}
        last_norm: dict[str, Any] = {}
        if self.zero_last_scale:
            if self.norm is None:
                last_conv["kernel_init"] = zeros
            else:
                last_norm["scale_init"] = zeros

        saves_nothing = {} if self.part_policy is None else {"save_for_backward": "nothing"}

        def block(x, width, stride, ends_part):
            if self.bottleneck:
                y = norm(conv(x, width, 1))
                y = norm(conv(y, width, 3, stride))
                y = conv(y, 4 * width, 1, **last_conv)
            else:
                y = conv(norm(conv(x, width, 3, stride)), width, 3, **last_conv)
            shortcut = x
            if x.shape != y.shape:
                shortcut = norm(conv(x, y.shape[-1], 1, stride), activation=None, **saves_nothing)
            return norm(y, residual=shortcut, **last_norm, **(saves_nothing if ends_part else {}))

        def stem(x):
            small = min(images.shape[1:3]) < SMALL_IMAGE_SIZE if self.small_images is None else self.small_images
            if small:
                return norm(conv(x, self.width, 3))
            x = norm(conv(x, self.width, 7, 2))
            padding: Any = ((1, 1), (1, 1))  # Flax takes it, its annotation does not.
            return nn.max_pool(x, (3, 3), (2, 2), padding=padding)

        def part(x, stage, first, length):
            if stage == first == 0:
                x = stem(x)
            for i in range(first, first + length):
                ends_part = i == first + length - 1
                x = block(x, self.width * 2**stage, 2 if stage > 0 and i == 0 else 1, ends_part)
            return x

        x = images.astype(self.dtype)
        for stage, blocks in enumerate(self.stage_sizes):
            count = math.ceil(blocks / MAX_BLOCKS_PER_PART)
            for piece in np.array_split(range(blocks), count):
                run = partial(part, stage=stage, first=int(piece[0]), length=len(piece))
                if self.part_policy is None:
                    x = run(x)
                else:
                    x = nn.remat(lambda _, x, run=run: run(x), policy=self.part_policy)(self, x)
        return nn.Dense(self.num_classes, dtype=jnp.float32)(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


def resnet50(**arguments) -> ResNet:
    """Returns ResNet-50: 53 convolutions, each with a norm."""
    return ResNet(stage_sizes=(3, 4, 6, 3), bottleneck=True, **arguments)


def resnet18(**arguments) -> ResNet:
    """Returns ResNet-18: 20 convolutions, each with a norm."""
    return ResNet(stage_sizes=(2, 2, 2, 2), bottleneck=False, **arguments)
