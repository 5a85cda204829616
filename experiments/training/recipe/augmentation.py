"""Random changes to training images, made on the device."""

import jax
import jax.numpy as jnp
from jax import lax

NAMES = ("none", "crop", "flip", "crop_flip")
# Pixels added on every side before the crop: He et al. 2015 for images of 32x32.
PADDING = 4


def augment(name: str, images: jax.Array, key: jax.Array, first: jax.Array | int, total: int) -> jax.Array:
    """Images cropped at a random place after padding with zeros, mirrored or not, or as they are.

    What an example gets depends on the key and on its place in the global batch, not on the device that it is on.

    Args:
      name: one of `NAMES`.
      images: this device's, of shape (n, height, width, channels).
      key: of the step.
      first: the place of the first of them in the global batch.
      total: the size of the global batch.

    Returns:
      Images of the same shape and dtype.

    Source: He et al., "Deep Residual Learning", arXiv 1512.03385, 2015, section 4.2.
    """
    n, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)

    def mine(drawn):
        return lax.dynamic_slice_in_dim(drawn, first, n)

    if name in ("crop", "crop_flip"):
        corners = mine(jax.random.randint(crop_key, (total, 2), 0, 2 * PADDING + 1))
        padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
        cut = jax.vmap(lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, channels)))
        images = cut(padded, corners)
    if name in ("flip", "crop_flip"):
        flips = mine(jax.random.bernoulli(flip_key, 0.5, (total,)))
        images = jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
    return images
