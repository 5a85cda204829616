"""The handwritten digits of scikit-learn, which come with it: 8 by 8 pixels, 1,797 of them."""

from typing import NamedTuple

import numpy as np

# One digit in so many is held out.
HELD_OUT = 4
CLASSES = 10


class Digits(NamedTuple):
    """Some of the digits.

    Attributes:
      images: from 0 to 1, shape (n, 8, 8, 1).
      labels: from 0 to 9, shape (n,).
    """

    images: np.ndarray
    labels: np.ndarray


def load() -> tuple[Digits, Digits]:
    """Returns the digits to train on and those that are held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    is_held_out = np.arange(len(images)) % HELD_OUT == 0
    return Digits(images[~is_held_out], labels[~is_held_out]), Digits(images[is_held_out], labels[is_held_out])
