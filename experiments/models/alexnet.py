"""AlexNet with a norm after each layer in place of local response normalization and dropout."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from .._errors import UsageError
from .normalised import NormFactory, normalised

# The smallest side of an image, in pixels, with which each of the three pools finds a 3x3 window.
MIN_IMAGE_SIZE = 63
POOL, POOL_STRIDE = (3, 3), (2, 2)
# The features, size, stride and padding of each convolution, and whether a pool follows it.
CONVOLUTIONS = (
    (96, 11, 4, 2, True),
    (256, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)
HIDDEN = (4096, 4096)


class AlexNetBN(nn.Module):
    """AlexNet: five convolutions and three dense layers; a norm and a ReLU follow each layer except the last.

    Two details differ from the original. Its convolutions were split into two groups, one per GPU; these are not. Its
    first convolution was not padded; this one is padded by 2. With the padding, images of 227 pixels get one more row
    before the pool, and images of 64 pixels are large enough.

    Attributes:
      num_classes: the number of outputs.
      norm: the factory of the norms, a `models.normalised.NormFactory`; None: biases in place of norms.
      dtype: the compute dtype; parameters and outputs are float32.

    Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012; the norm in
    place of local response normalization as in You et al., arXiv 1708.03888, 2017, section 3.
    """

    num_classes: int
    norm: NormFactory | None = None
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of shape (N, num_classes), for images of shape (N, H, W, channels), H and W at least 63.

        Args:
          images: the images, standardised to about unit size.
          train: True: normalise by the batch's statistics and update the running ones; False: use the running ones.
          mask: True where an example counts towards the statistics, shape (N,); None: all examples count.

        Raises:
          UsageError: the images are smaller.
        """
        height, width = images.shape[1:3]
        if min(height, width) < MIN_IMAGE_SIZE:
            raise UsageError(
                f"model alexnet_bn takes images of at least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}, and these are "
                f"{height}x{width}; for smaller ones there are resnet18 and simple_cnn"
            )
        shared = {"use_bias": self.norm is None, "dtype": self.dtype, "kernel_init": nn.initializers.he_normal()}
        x = images.astype(self.dtype)
        for features, size, stride, padding, pool in CONVOLUTIONS:
            x = nn.Conv(features, (size, size), (stride, stride), padding=padding, **shared)(x)
            x = normalised(self.norm, x, train=train, mask=mask, activation=nn.relu)
            if pool:
                x = nn.max_pool(x, POOL, POOL_STRIDE)
        x = x.reshape(x.shape[0], -1)
        for features in HIDDEN:
            x = nn.Dense(features, **shared)(x)
            x = normalised(self.norm, x, train=train, mask=mask, activation=nn.relu)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
