"""The same images in other domains: what a trained model meets that training did not show it."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from experiments._errors import unknown_name
from experiments.data.arrays import Examples

# Each takes images of shape (n, height, width, channels) as floating point numbers from 0 to 255, and gives the same.
_AWAY = 25.0


def _inverted(images: np.ndarray) -> np.ndarray:
    return 255 - images


def _blurred(images: np.ndarray) -> np.ndarray:
    # In proportion to the image: a deviation of 1.4 pixels in one of 28.
    return ndimage.gaussian_filter(images, (0, images.shape[1] / 20, images.shape[2] / 20, 0))


def _rotated(images: np.ndarray) -> np.ndarray:
    return ndimage.rotate(images, _AWAY, axes=(1, 2), reshape=False, order=1)


def _coloured(images: np.ndarray) -> np.ndarray:
    """Each channel in another ink on another paper; one channel: light grey ink on dark grey paper."""
    channels = images.shape[-1]
    paper, ink = np.linspace(90, 20, channels), np.linspace(150, 230, channels)
    return paper + images / 255 * (ink - paper)


def _noisy(images: np.ndarray) -> np.ndarray:
    return images + np.random.default_rng(0).normal(scale=60, size=images.shape)


DOMAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": _inverted,
    "blurred": _blurred,
    "rotated": _rotated,
    "coloured": _coloured,
    "noisy": _noisy,
}


def to_domain(name: str, examples: Examples) -> Examples:
    """The examples as that domain shows them: the same things under the same labels.

    Args:
      name: "inverted", "blurred" (by a Gaussian of a twentieth of the size), "rotated" (by 25 degrees), "coloured"
        (other inks on other papers; of one channel light grey on dark grey) or "noisy" (Gaussian, of deviation 60 of
        255, the same at each call).
      examples: with a label each, or each pixel; labels of pixels are rotated too, and 0 where nothing was.

    Raises:
      UsageError: there is no such domain.

    Example:
      >>> zeros = Examples(np.zeros((1, 28, 28, 1), np.uint8), np.zeros(1, np.int32))
      >>> int(to_domain("inverted", zeros).images.min())
      255
    """
    if name not in DOMAINS:
        raise unknown_name("domain", name, tuple(DOMAINS), hint=" It is --domain.")
    images = np.clip(np.rint(DOMAINS[name](examples.images.astype(np.float32))), 0, 255).astype(np.uint8)
    labels = examples.labels
    if name == "rotated" and labels.ndim > 1:
        labels = ndimage.rotate(labels, _AWAY, axes=(1, 2), reshape=False, order=0)
    return Examples(images, labels)
