"""Residual networks: ResNet-18 and ResNet-50, each convolution followed by a norm that its factory makes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def plain(norm: Callable[..., nn.Module]) -> Callable[..., Callable]:
    """A factory for `ResNet` from one of norms that know neither activations nor residuals, as Flax's.

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
      bottleneck: blocks of 1x1, 3x3, 1x1 convolutions, the last four times as wide; else of two 3x3.
      num_classes: the number of outputs.
      norm: makes a norm, `norm(activation=..., scale_init=...)`, that is called as `module(x, residual=...,
        use_running_average=..., mask=...)` and applies the activation to the sum; `plain` makes it of one that does
        neither.
      width: of the first stage.
      small_images: a 3x3 first convolution and no pool, for images of about 32 pixels.
      dtype: of the computation; parameters and outputs are float32.

    Source: He et al., "Deep Residual Learning", arXiv 1512.03385, 2015; the last norm of a block starts with scale
    zero, as in Goyal et al., arXiv 1706.02677, 2017, section 5.1.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool
    num_classes: int
    norm: Callable[..., Callable]
    width: int = 64
    small_images: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Logits of shape (N, num_classes).

        Args:
          images: shape (N, H, W, channels), of about unit size.
          train: normalise by the batch's statistics and update the running ones.
          mask: shape (N,), True where an example counts towards the statistics.
        """
        arguments: dict[str, Any] = {"use_running_average": not train}
        if mask is not None:
            arguments["mask"] = mask.reshape(-1, 1, 1, 1)

        def conv(x, width, size, stride=1):
            return nn.Conv(
                width,
                (size, size),
                (stride, stride),
                padding=[(size // 2, size // 2)] * 2,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),
            )(x)

        def normalised(x, activation=nn.relu, residual=None, scale_init=nn.initializers.ones):
            norm = self.norm(activation=activation, scale_init=scale_init)
            return norm(x, **arguments) if residual is None else norm(x, residual=residual, **arguments)

        def block(x, width, stride):
            # The last norm starts at zero, so that a block starts as the identity.
            last = nn.initializers.zeros
            if self.bottleneck:
                y = normalised(conv(x, width, 1))
                y = normalised(conv(y, width, 3, stride))
                y = conv(y, 4 * width, 1)
            else:
                y = conv(normalised(conv(x, width, 3, stride)), width, 3)
            shortcut = x if x.shape == y.shape else normalised(conv(x, y.shape[-1], 1, stride), activation=None)
            return normalised(y, residual=shortcut, scale_init=last)

        x = images.astype(self.dtype)
        if self.small_images:
            x = normalised(conv(x, self.width, 3))
        else:
            x = normalised(conv(x, self.width, 7, 2))
            padding: Any = ((1, 1), (1, 1))  # Flax takes it, its annotation does not.
            x = nn.max_pool(x, (3, 3), (2, 2), padding=padding)
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                x = block(x, self.width * 2**stage, 2 if stage > 0 and i == 0 else 1)
        return nn.Dense(self.num_classes, dtype=jnp.float32)(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


def resnet50(**arguments) -> ResNet:
    """ResNet-50: 53 convolutions, each with a norm."""
    return ResNet(stage_sizes=(3, 4, 6, 3), bottleneck=True, **arguments)


def resnet18(**arguments) -> ResNet:
    """ResNet-18: 20 convolutions, each with a norm."""
    return ResNet(stage_sizes=(2, 2, 2, 2), bottleneck=False, **arguments)
