"""The data set `digits`: real handwritten digits as 28x28 images like MNIST's, which need no network.

scikit-learn ships 1,797 digits of 43 people (UCI "Optical Recognition of Handwritten Digits", 8x8, 17 grey
levels). The last 360 are held out, and no original has views in both `train` and `test`.

- train: 60,000 random views of the first 1,437 originals;
- test: 10,000 random views of the 360 held-out originals;
- originals: the 360 held-out originals themselves, enlarged and otherwise unchanged.
"""

import numpy as np

from . import warping
from .arrays import Dataset, Examples, cached
from .outline import Outline

HELD_OUT = 360
SIZE, SOURCE_SIZE = 28, 8
# Originals are enlarged from 8x8 to 24x24. The remaining margin of 2 pixels holds the shifts, so that no view cuts a
# digit.
ENLARGE_FACTOR = 3
TRAIN_VIEWS, TEST_VIEWS = 60_000, 10_000
MAX_ROTATION = np.deg2rad(6.0)
MAX_SCALING = 0.06
MAX_SHIFT = 0.06 * SIZE
# The elastic field has this number of points per side, so that it is smooth over a quarter of the image, and
# displacements with this standard deviation in pixels.
ELASTIC_POINTS, ELASTIC_STD = 4, 0.5
# The number of views that one thread makes at once; the views do not depend on it.
BLOCK = 256
# A part of the name of the cached file: raise it whenever the images that this module makes change.
VERSION = 2


def load() -> Dataset:
    """Loads the data set; the first call makes the views, in about two seconds, and caches them on disk."""
    arrays = cached(f"digits-v{VERSION}", _make)
    splits = {
        name: Examples(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "test", "originals")
    }
    return Dataset(
        "digits", splits["train"], {"test": splits["test"], "originals": splits["originals"]}, 10, independent=False
    )


def outline() -> Outline:
    """Returns the sizes and shapes of the data set, without making it."""
    examples = {"train": TRAIN_VIEWS, "test": TEST_VIEWS, "originals": HELD_OUT}
    return Outline(examples, (SIZE, SIZE, 1), 10, independent=False)


def originals() -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-learn's digits as 28x28 images in [0, 1], and their labels; the last 360 are held out."""
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    small = np.asarray(pixels).reshape(-1, SOURCE_SIZE, SOURCE_SIZE) / 16
    images = warping.smooth(small, warping.smooth_basis(SOURCE_SIZE, ENLARGE_FACTOR * SOURCE_SIZE, "grid-constant"))
    margin = (SIZE - images.shape[1]) // 2
    images = np.pad(images.clip(0, 1), ((0, 0), (margin, margin), (margin, margin)))
    return images, np.asarray(target).astype(np.int32)


def _make() -> dict[str, np.ndarray]:
    images, labels = originals()
    train, test = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    train_images, train_labels = views(images[train], labels[train], TRAIN_VIEWS, seed=0)
    test_images, test_labels = views(images[test], labels[test], TEST_VIEWS, seed=1)
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
        "originals_images": warping.as_bytes(images[test])[..., None],
        "originals_labels": labels[test],
    }


def views(images: np.ndarray, labels: np.ndarray, number: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random affine and elastic views in random order, about the same number of each image.

    A view is rotated by up to 6 degrees, scaled by up to 6% in each direction, shifted by up to 6% of the width, and
    displaced by a smooth random field.

    Args:
      images: the originals, shape (n, size, size), in [0, 1].
      labels: the labels of the originals, shape (n,).
      number: the number of views.
      seed: the seed of the random numbers; the same seed gives the same views.

    Returns:
      Images of shape (number, size, size, 1) as uint8, and their labels.
    """
    r = np.random.default_rng(seed)
    size = images.shape[1]
    source = r.permutation(np.arange(number) % len(images))
    angle = r.uniform(-MAX_ROTATION, MAX_ROTATION, number)
    scaling = 1 + r.uniform(-MAX_SCALING, MAX_SCALING, (2, number))
    shift = r.uniform(-MAX_SHIFT, MAX_SHIFT, (2, number))
    elastic = r.normal(size=(number, 2, ELASTIC_POINTS, ELASTIC_POINTS)) * ELASTIC_STD

    matrices = warping.rotations(angle, scaling.T)
    centres = shift.T + (size - 1) / 2
    basis = warping.smooth_basis(ELASTIC_POINTS, size)
    sources = warping.framed(images)
    made = np.empty((number, size, size, 1), np.uint8)

    def make(start, stop):
        at = warping.affine(matrices[start:stop], centres[start:stop], size)
        at += warping.smooth(elastic[start:stop], basis)
        made[start:stop, ..., 0] = warping.as_bytes(warping.sample(sources, source[start:stop], at))

    warping.in_blocks(make, number, BLOCK)
    return made, labels[source]
