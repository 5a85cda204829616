"""Residual networks: ResNet-18 and ResNet-50, with a norm from a factory after each convolution."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .normalised import NormFactory, normalised

# Images with a shorter side, in pixels, get a small stem: the usual first layers divide both sides by four, which would
# leave too little of these images.
SMALL_IMAGE_SIZE = 64
# The most blocks of a part that is recomputed as a whole. In longer parts the chain of sums takes more memory; with
# shorter parts more convolutions run again.
MAX_BLOCKS_PER_PART = 4


def plain(norm: Callable[..., Callable[..., jax.Array]]) -> NormFactory:
    """Makes a norm factory for these models from a norm that takes no activations and residuals, such as Flax's.

    Args:
      norm: a function such that `norm(**options)` returns a module called as `module(x, use_running_average=...)`.
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
      bottleneck: whether a block has 1x1, 3x3 and 1x1 convolutions, the last four times as wide, or two 3x3
        convolutions.
      num_classes: the number of outputs.
      norm: the factory of the norms, a `models.normalised.NormFactory`; `plain` makes one from a norm without
        activations and residuals. None: biases in place of norms.
      width: the number of features of the first stage.
      small_images: whether the network begins with a 3x3 convolution and no pool; None: it does if a side of the images
        is shorter than 64 pixels.
      zero_last_scale: whether each block starts as the identity, by a zero scale of its last norm (without norms, by a
        zero kernel of its last convolution).
      dtype: the compute dtype; parameters and outputs are float32.
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
          images: the images, standardised to about unit size, shape (N, H, W, channels).
          train: True: normalise by the batch's statistics and update the running ones; False: use the running ones.
          mask: True where an example counts towards the statistics, shape (N,); None: all examples count.
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
            padding: Any = ((1, 1), (1, 1))  # Flax accepts this padding, but its type annotation does not.
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
    """Makes ResNet-50, which has 53 convolutions, each with a norm."""
    return ResNet(stage_sizes=(3, 4, 6, 3), bottleneck=True, **arguments)


def resnet18(**arguments) -> ResNet:
    """Makes ResNet-18, which has 20 convolutions, each with a norm."""
    return ResNet(stage_sizes=(2, 2, 2, 2), bottleneck=False, **arguments)


def resnet18_narrow(**arguments) -> ResNet:
    """Makes ResNet-18 with 16 features in place of 64 and the stem of large images, so that a CPU can train it.

    Images of 32x32 take a two-hundredth of the computing.
    """
    return resnet18(width=16, small_images=False, **arguments)
