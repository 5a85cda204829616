"""A small convolutional network for images of digits: trained on two cores in minutes."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments._errors import UsageError
from experiments.models import layout as layouts
from experiments.models.convolution import ConvMaxPool
from experiments.models.normalised import NormFactory, normalised

# The smallest image, in pixels, of which the third pool leaves something.
MIN_IMAGE_SIZE = 28
WIDTHS_AND_KERNELS = ((10, 5), (20, 5), (40, 3))


class SimpleCNN(nn.Module):
    """Three convolutions (10 of 5x5, 20 of 5x5, 40 of 3x3), each with max-pool 2, norm and ReLU, then a dense layer.

    Attributes:
      num_classes: the number of outputs.
      norm: makes the norms, a `models.normalised.NormFactory`; None: biases in their place.
      dtype: the type of the computation; parameters and outputs are float32.
      layout: the order of the activations' axes; None: the faster one on this machine.
    """

    num_classes: int
    norm: NormFactory | None = None
    dtype: jnp.dtype = jnp.dtype("float32")
    layout: layouts.Layout | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of shape (N, num_classes), for images of shape (N, H, W, C) with H and W of at least 28.

        Args:
          images: floating point numbers of about unit size.
          train: normalise by the batch's statistics and update the running ones.
          mask: shape (N,), True where an example counts towards the statistics.

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
        # NHWC order, so that the dense layer's rows mean the same in every layout.
        x = layout.to_nhwc(x).reshape(images.shape[0], -1)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
