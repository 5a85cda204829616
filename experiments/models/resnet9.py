"""ResNet-9, the network of the fast training runs on CIFAR-10."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from .._errors import UsageError
from .normalised import NormFactory, normalised

# The smallest side of an image, in pixels, with which the third pool has an output.
MIN_IMAGE_SIZE = 8
# Per stage: the features as a multiple of the width, and whether a residual block follows.
STAGES = ((2, True), (4, False), (8, True))
# The logits are multiplied by it, so that they begin small.
LOGIT_SCALE = 0.125


class ResNet9(nn.Module):
    """Eight 3x3 convolutions, each with norm and ReLU, and a dense layer.

    The first convolution is followed by three stages, each a convolution and a max-pool by 2; the first and the last
    stage end in a residual block of two convolutions. The maximum over all positions goes into the dense layer.

    Attributes:
      num_classes: the number of outputs.
      norm: the factory of the norms, a `models.normalised.NormFactory`; None: biases in place of norms.
      width: the number of features of the first convolution.
      dtype: the compute dtype; parameters and outputs are float32.

    Source: Page, "How to Train Your ResNet", part 4, myrtle.ai/learn/how-to-train-your-resnet, 2018. Its dense layer
    has no bias.
    """

    num_classes: int
    norm: NormFactory | None = None
    width: int = 64
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of shape (N, num_classes), for images of shape (N, H, W, channels), H and W at least 8.

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
                f"model resnet9 takes images of at least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}, and these are "
                f"{height}x{width}"
            )

        def block(x: jax.Array, features: int) -> jax.Array:
            x = nn.Conv(
                features,
                (3, 3),
                use_bias=self.norm is None,
                dtype=self.dtype,
                kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            )(x)
            return normalised(self.norm, x, train=train, mask=mask, activation=nn.relu)

        x = block(images.astype(self.dtype), self.width)
        for multiple, is_residual in STAGES:
            features = multiple * self.width
            x = nn.max_pool(block(x, features), (2, 2), (2, 2))
            if is_residual:
                x = x + block(block(x, features), features)
        logits = nn.Dense(self.num_classes, dtype=jnp.float32)(jnp.max(x, axis=(1, 2)).astype(jnp.float32))
        return LOGIT_SCALE * logits
