"""Random changes to training images, made on the device, each one declared record of `AUGMENTATIONS`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from ..._variants import Register

# Pixels added on every side before the crop: He et al. 2015 for images of 32x32.
PADDING_PIXELS = 4


@dataclass(frozen=True)
class Augmentation:
    """An augmentation.

    Attributes:
      name: the value of `--augmentation`.
      help: a phrase for the help of the flag.
      crops: cuts each image at a random place, after padding with zeros.
      flips: mirrors half of the images, chosen at random.
    """

    name: str
    help: str
    crops: bool = False
    flips: bool = False


NONE = Augmentation("none", "images as they are")
AUGMENTATIONS = Register(
    "augmentation",
    NONE,
    Augmentation("crop", "cut at a random place after padding with zeros", crops=True),
    Augmentation("flip", "half of them mirrored", flips=True),
    Augmentation("crop_flip", "both", crops=True, flips=True),
)


def augment(name: str, images: jax.Array, key: jax.Array, first: jax.Array | int, total: int) -> jax.Array:
    """Returns images that an augmentation has changed at random.

    The change of an example depends on the key and on its place in the global batch, not on the device that holds it.

    Args:
      name: a name in `AUGMENTATIONS`.
      images: those of this device, of shape (n, height, width, channels).
      key: the random key of the step.
      first: the place of the first image in the global batch.
      total: the size of the global batch.

    Returns:
      Images of the same shape and dtype.

    Raises:
      UsageError: there is no such augmentation.

    Source: He et al., "Deep Residual Learning", arXiv 1512.03385, 2015, section 4.2.
    """
    chosen = AUGMENTATIONS[name]
    n, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)

    def mine(drawn):
        return lax.dynamic_slice_in_dim(drawn, first, n)

    if chosen.crops:
        padding = (PADDING_PIXELS, PADDING_PIXELS)
        corners = mine(jax.random.randint(crop_key, (total, 2), 0, 2 * PADDING_PIXELS + 1))
        padded = jnp.pad(images, ((0, 0), padding, padding, (0, 0)))
        cut = jax.vmap(lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, channels)))
        images = cut(padded, corners)
    if chosen.flips:
        flips = mine(jax.random.bernoulli(flip_key, 0.5, (total,)))
        images = jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
    return images
