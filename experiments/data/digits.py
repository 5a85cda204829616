"""`digits`: real handwritten digits that need no network, as 28x28 images like MNIST's.

scikit-learn ships 1,797 digits of 43 people (UCI "Optical Recognition of Handwritten Digits", 8x8, 17 grey
levels). The last 360 are held out; no image has views on both sides.

- train: 60,000 random views of the first 1,437;
- test: 10,000 random views of the held-out 360;
- originals: the held-out 360 themselves, enlarged and otherwise untouched.
"""

import numpy as np

from experiments.data.arrays import Dataset, Examples, cached

HELD_OUT = 360
SIZE, SOURCE_SIZE = 28, 8
# From 8x8 to 24x24: the margin of 2 that is left holds the shifts, so that no view cuts a digit.
ENLARGE = 3
TRAIN_VIEWS, TEST_VIEWS = 60_000, 10_000
MAX_ROTATION = np.deg2rad(6.0)
MAX_SCALING = 0.06
MAX_SHIFT = 0.06 * SIZE
# A displacement of about half a pixel in a field that is smooth over a quarter of the image.
ELASTIC_POINTS, ELASTIC_STD = 4, 0.5
# Names the cache: raise it whenever the images that this file makes change.
VERSION = 1


def load() -> Dataset:
    """The data set; the views are made in a few seconds the first time and kept in the user's cache folder."""
    arrays = cached(f"digits-v{VERSION}", _make)
    splits = {
        name: Examples(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "test", "originals")
    }
    return Dataset("digits", splits["train"], {"test": splits["test"], "originals": splits["originals"]}, 10)


def _make() -> dict[str, np.ndarray]:
    from scipy import ndimage
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    small = np.asarray(pixels).reshape(-1, SOURCE_SIZE, SOURCE_SIZE) / 16
    images = np.asarray(ndimage.zoom(small, (1, ENLARGE, ENLARGE), order=3, mode="grid-constant", grid_mode=True))
    margin = (SIZE - images.shape[1]) // 2
    images = np.pad(images.clip(0, 1), ((0, 0), (margin, margin), (margin, margin)))
    labels = np.asarray(target).astype(np.int32)
    train, test = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    train_images, train_labels = views(images[train], labels[train], TRAIN_VIEWS, seed=0)
    test_images, test_labels = views(images[test], labels[test], TEST_VIEWS, seed=1)
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
        "originals_images": _as_bytes(images[test])[..., None],
        "originals_labels": labels[test],
    }


def views(images: np.ndarray, labels: np.ndarray, number: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random affine and elastic views, every image about equally often, in random order.

    A view is rotated by up to 6 degrees, scaled by up to 6% in each direction, shifted by up to 6% of the width, and
    displaced by a smooth random field.

    Args:
      images: shape (n, size, size), in [0, 1].
      labels: shape (n,).
      number: of views.
      seed: of the random numbers; the same seed gives the same views.

    Returns:
      Images of shape (number, size, size, 1) as uint8, and their labels.
    """
    from scipy import ndimage

    r = np.random.default_rng(seed)
    size = images.shape[1]
    source = r.permutation(np.arange(number) % len(images))
    angle = r.uniform(-MAX_ROTATION, MAX_ROTATION, number)
    scaling = 1 + r.uniform(-MAX_SCALING, MAX_SCALING, (2, number))
    shift = r.uniform(-MAX_SHIFT, MAX_SHIFT, (2, number))
    coarse = r.normal(size=(number, 2, ELASTIC_POINTS, ELASTIC_POINTS)) * ELASTIC_STD
    # Cubic interpolation from the coarse grid to the pixels is linear: one matrix a direction.
    smooth = ndimage.zoom(np.eye(ELASTIC_POINTS), (1, size / ELASTIC_POINTS), order=3, mode="nearest", grid_mode=True)

    centred = np.arange(size) - (size - 1) / 2
    rows, columns = np.meshgrid(centred, centred, indexing="ij")
    made = np.empty((number, size, size, 1), np.uint8)
    for i in range(number):
        cos, sin = np.cos(angle[i]), np.sin(angle[i])
        elastic = smooth.T @ coarse[i] @ smooth
        at = (
            (cos * rows - sin * columns) * scaling[0, i] + shift[0, i] + elastic[0] + (size - 1) / 2,
            (sin * rows + cos * columns) * scaling[1, i] + shift[1, i] + elastic[1] + (size - 1) / 2,
        )
        made[i, ..., 0] = _as_bytes(ndimage.map_coordinates(images[source[i]], at, order=1, mode="constant"))
    return made, labels[source]


def _as_bytes(images: np.ndarray) -> np.ndarray:
    return np.rint(images * 255).astype(np.uint8)
