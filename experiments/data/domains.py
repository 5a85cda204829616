"""The domains: changes of images that a model has not seen in training, each one declared record of `DOMAINS`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy

from .._variants import Register
from .arrays import Examples

ROTATION_DEGREES = 25.0
# The side of an image divided by the standard deviation of the blur, which is 1.4 pixels in an image of 28 pixels.
BLUR_DIVISOR = 20
# The standard deviation of the noise, on the scale from 0 to 255.
NOISE_STD = 60.0


@dataclass(frozen=True)
class Domain:
    """A domain: a change of images, with the matching change of labels per pixel.

    Attributes:
      name: the value of `--domain`.
      help: a phrase for the help of the flag.
      change: a function that maps images to images, both floating point numbers from 0 to 255 of shape (n, height,
        width, channels).
      move: a function that moves labels of pixels as `change` moves the pixels; None: `change` moves no pixels.
    """

    name: str
    help: str
    change: Callable[[np.ndarray], np.ndarray]
    move: Callable[[np.ndarray], np.ndarray] | None = None


def _inverted(images: np.ndarray) -> np.ndarray:
    return 255 - images


def _blurred(images: np.ndarray) -> np.ndarray:
    _, height, width, _ = images.shape
    return scipy.ndimage.gaussian_filter(images, (0, height / BLUR_DIVISOR, width / BLUR_DIVISOR, 0))


def _rotated(images: np.ndarray, order: int) -> np.ndarray:
    return scipy.ndimage.rotate(images, ROTATION_DEGREES, axes=(1, 2), reshape=False, order=order)


def _coloured(images: np.ndarray) -> np.ndarray:
    """Changes the ink and the paper of each channel; a single channel becomes light grey ink on dark grey paper."""
    channels = images.shape[-1]
    paper, ink = np.linspace(90, 20, channels), np.linspace(150, 230, channels)
    return paper + images / 255 * (ink - paper)


def _noisy(images: np.ndarray) -> np.ndarray:
    return images + np.random.default_rng(0).normal(scale=NOISE_STD, size=images.shape)


DOMAINS = Register(
    "domain",
    Domain("inverted", "light for dark", _inverted),
    Domain("blurred", "by a Gaussian of a twentieth of the size", _blurred),
    # Labels are not interpolated (order 0), because a value between two classes would be a third class.
    Domain("rotated", "by 25 degrees", partial(_rotated, order=1), move=partial(_rotated, order=0)),
    Domain("coloured", "other inks on other papers; light grey on dark grey for one channel", _coloured),
    Domain("noisy", "Gaussian noise of deviation 60 of 255, the same at each call", _noisy),
)


def to_domain(name: str, examples: Examples) -> Examples:
    """Returns examples changed to a domain; their labels stay, or move with the pixels.

    Args:
      name: a name in `DOMAINS`.
      examples: examples with one label per image or per pixel. Labels of pixels move with the pixels, and are 0 where
        there was no pixel.

    Raises:
      UsageError: the domain is not known.

    Example:
      >>> zeros = Examples(np.zeros((1, 28, 28, 1), np.uint8), np.zeros(1, np.int32))
      >>> int(to_domain("inverted", zeros).images.min())
      255
    """
    if name not in DOMAINS:
        raise DOMAINS.unknown(name, hint=" It is --domain.")
    domain = DOMAINS[name]
    images = np.clip(np.rint(domain.change(examples.images.astype(np.float32))), 0, 255).astype(np.uint8)
    labels = examples.labels if domain.move is None or examples.labels.ndim == 1 else domain.move(examples.labels)
    return Examples(images, labels)
