"""A small fully convolutional network for segmentation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from .._errors import UsageError
from .normalised import NormFactory, normalised

POOL = (2, 2)


class FCN(nn.Module):
    """A fully convolutional network: an encoder whose levels halve the size, and a decoder that sums the levels.

    A level of the encoder has two 3x3 convolutions, each with a norm and a ReLU. In the decoder, a 1x1 convolution maps
    a level to the number of features of the level above; the result is enlarged, normalised, and added to the encoder's
    output at that level.

    Attributes:
      num_classes: the number of classes.
      norm: the factory of the norms, a `models.normalised.NormFactory`; None: biases in place of norms.
      dtype: the compute dtype; parameters and outputs are float32.
      features: the number of features of each level. With three levels, the logits of a pixel depend on a square of
        about 32 pixels.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", arXiv 1411.4038, 2014.
    """

    num_classes: int
    norm: NormFactory | None = None
    dtype: jnp.dtype = jnp.dtype("float32")
    features: Sequence[int] = (16, 32, 64)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of shape (N, H, W, num_classes).

        Args:
          images: the images, standardised to about unit size, shape (N, H, W, channels). H and W must be divisible by
            2 per pool, which is 4 with three levels.
          train: True: normalise by the batch's statistics and update the running ones; False: use the running ones.
          mask: True where an example counts towards the statistics, shape (N,); None: all examples count.

        Raises:
          UsageError: the height or the width is not divisible.
        """
        height, width = images.shape[1:3]
        total = 2 ** (len(self.features) - 1)
        if height % total or width % total or not height * width:
            raise UsageError(
                f"model fcn takes images whose height and width are divisible by {total}, its total pooling, and these "
                f"are {height}x{width}; pad or crop them, for instance to "
                f"{_upwards(height, total)}x{_upwards(width, total)}"
            )

        def conv(x, features, size):
            return nn.Conv(
                features,
                (size, size),
                use_bias=self.norm is None,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
            )(x)

        def norm(x, residual=None):
            return normalised(self.norm, x, train=train, mask=mask, residual=residual, activation=nn.relu)

        x = images.astype(self.dtype)
        levels = []
        for level, features in enumerate(self.features):
            x = x if level == 0 else nn.max_pool(x, POOL, POOL)
            for _ in range(2):
                x = norm(conv(x, features, 3))
            levels.append(x)
        for skip in reversed(levels[:-1]):
            x = conv(x, skip.shape[-1], 1)
            x = jax.image.resize(x, skip.shape, "bilinear")
            x = norm(x, residual=skip)
        return nn.Conv(self.num_classes, (3, 3), dtype=self.dtype)(x).astype(jnp.float32)


def _upwards(size: int, divisor: int) -> int:
    return max(-(-size // divisor), 1) * divisor
