"""Other domains for the same images, which a trained model meets without having seen them, as records of `DOMAINS`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from experiments._variants import Register
from experiments.data.arrays import Examples

ROTATION_DEGREES = 25.0
# The side of an image over the deviation of a blur: 1.4 pixels in an image of 28.
BLUR_DIVISOR = 20
# The deviation of the noise, on the scale of 0 to 255.
NOISE_STD = 60.0


@dataclass(frozen=True)
class Domain:
    """A domain.

    Attributes:
      name: the value of `--domain`.
      help: a phrase for the help of the flag.
      change: maps images of shape (n, height, width, channels), floating point numbers from 0 to 255, to the same kind.
      move: does to labels of pixels what `change` does to the places of pixels; None: pixels stay in their places.
    """

    name: str
    help: str
    change: Callable[[np.ndarray], np.ndarray]
    move: Callable[[np.ndarray], np.ndarray] | None = None


def _inverted(images: np.ndarray) -> np.ndarray:
    return 255 - images


def _blurred(images: np.ndarray) -> np.ndarray:
    _, height, width, _ = images.shape
    return ndimage.gaussian_filter(images, (0, height / BLUR_DIVISOR, width / BLUR_DIVISOR, 0))


def _rotated(images: np.ndarray, order: int) -> np.ndarray:
    return ndimage.rotate(images, ROTATION_DEGREES, axes=(1, 2), reshape=False, order=order)


def _coloured(images: np.ndarray) -> np.ndarray:
    """Returns each channel in another ink on another paper; one channel: light grey ink on dark grey paper."""
    channels = images.shape[-1]
    paper, ink = np.linspace(90, 20, channels), np.linspace(150, 230, channels)
    return paper + images / 255 * (ink - paper)


def _noisy(images: np.ndarray) -> np.ndarray:
    return images + np.random.default_rng(0).normal(scale=NOISE_STD, size=images.shape)


DOMAINS = Register(
    "domain",
    Domain("inverted", "light for dark", _inverted),
    Domain("blurred", "by a Gaussian of a twentieth of the size", _blurred),
    # Labels of pixels take the nearest one: a class between two classes would be a third one.
    Domain("rotated", "by 25 degrees", partial(_rotated, order=1), move=partial(_rotated, order=0)),
    Domain("coloured", "other inks on other papers; light grey on dark grey for one channel", _coloured),
    Domain("noisy", "Gaussian noise of deviation 60 of 255, the same at each call", _noisy),
)


def to_domain(name: str, examples: Examples) -> Examples:
    """Returns the examples as a domain shows them, with the same labels.

    Args:
      name: a name in `DOMAINS`.
      examples: with one label per image or per pixel; labels of pixels move with the pixels, and are 0 where there was
        no pixel.

    Raises:
      UsageError: there is no such domain.

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
