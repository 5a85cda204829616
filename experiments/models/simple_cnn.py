"""A small convolutional network for images of digits, which trains on two CPU cores in minutes."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from .._errors import UsageError
from . import layout as layouts
from .convolution import ConvMaxPool
from .normalised import NormFactory, normalised

# The smallest side of an image, in pixels, with which the third pool has an output.
MIN_IMAGE_SIZE = 28
WIDTHS_AND_KERNELS = ((10, 5), (20, 5), (40, 3))


class SimpleCNN(nn.Module):
    """Three convolutions (10 of 5x5, 20 of 5x5, 40 of 3x3), each with max-pool 2, norm and ReLU, then a dense layer.

    Attributes:
      num_classes: the number of outputs.
      norm: the factory of the norms, a `models.normalised.NormFactory`; None: biases in place of norms.
      dtype: the compute dtype; parameters and outputs are float32.
      layout: the order of the activations' axes; None: the faster layout on the devices at hand.
    """

    num_classes: int
    norm: NormFactory | None = None
    dtype: jnp.dtype = jnp.dtype("float32")
    layout: layouts.Layout | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of shape (N, num_classes), for images of shape (N, H, W, C) with H and W of at least 28.

        Args:
          images: the images, standardised to about unit size.
          train: True: normalise by the batch's statistics and update the running ones; False: use the running ones.
          mask: True where an example counts towards the statistics, shape (N,); None: all examples count.

        Raises:
          UsageError: the images are smaller.
        """
        if min(images.shape[1:3]) < MIN_IMAGE_SIZE:
            raise UsageError(
                f"model simple_cnn takes images of at least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}, and these are "
                f"{images.shape[1]}x{images.shape[2]}"
            )
        layout = self.layout or layouts.preferred()
        x = layout.from_nhwc(images)
        for width, size in WIDTHS_AND_KERNELS:
            x = ConvMaxPool(width, (size, size), layout, use_bias=self.norm is None, dtype=self.dtype)(x)
            x = normalised(self.norm, x, train=train, mask=mask, activation=nn.relu, layout=layout)
        # Back to NHWC, so that the rows of the dense layer's kernel have the same meaning in every layout.
        x = layout.to_nhwc(x).reshape(images.shape[0], -1)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
