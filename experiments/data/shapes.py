"""The data set `shapes`: real handwritten digits on cluttered canvases, with one class per pixel; needs no network.

A canvas of 48x48 pixels holds two to four of scikit-learn's digits, as in `digits`, at sizes of 14 to 24 pixels.
Beneath the digits lie small pieces cut out of other digits. They are drawn with the same pen and labelled as
background, so that only the shape tells a digit from a piece. Noise lies over everything. No digit, whole or in pieces,
is in both splits.

- train: 6,000 canvases from the first 1,437 digits;
- test: 1,000 canvases from the 360 held-out digits.
"""

from typing import NamedTuple

import numpy as np

from . import digits, warping
from .arrays import Dataset, Examples, cached
from .outline import Outline

SIZE = 48
NUM_CLASSES = 11
TRAIN_CANVASES, TEST_CANVASES = 6_000, 1_000
FEWEST_DIGITS, MOST_DIGITS = 2, 4
SMALLEST_DIGIT, LARGEST_DIGIT = 14, 24
MAX_ROTATION = np.deg2rad(10.0)
# Two digits share at most this fraction of the smaller one's square. Ink fills about a third of a square.
MAX_OVERLAP = 0.15
# The number of random places that are tried for each digit.
CANDIDATES = 32
FRAGMENTS = 8
FRAGMENT_RADIUS = (2.5, 5.0)
INK = (0.55, 1.0)
BACKGROUND = (0.05, 0.3)
SHADING_POINTS, SHADING_STD, NOISE_STD = 4, 0.08, 0.06
# A pixel belongs to a digit that covers at least this fraction of the pixel.
MIN_COVERAGE = 0.5
# The sides, in pixels, of the squares in which a digit and a fragment are drawn: a rotated digit of 24 pixels fits.
DIGIT_PATCH, FRAGMENT_PATCH = 28, 12
# The number of canvases per block. Each block has one generator of random numbers, so this number decides the canvases,
# like all numbers above.
BLOCK = 256
# A part of the name of the cached file: raise it whenever the canvases that this module makes change.
VERSION = 1


def load() -> Dataset:
    """Loads the data set, which is made once and cached; labels are 0 for background and d + 1 for the digit d."""
    arrays = cached(f"shapes-v{VERSION}", _make)
    # The cache stores labels as uint8, a quarter of the size.
    train, test = (
        Examples(arrays[f"{side}_images"], arrays[f"{side}_labels"].astype(np.int32)) for side in ("train", "test")
    )
    return Dataset("shapes", train, {"test": test}, NUM_CLASSES, independent=False)


def outline() -> Outline:
    """Returns the sizes and shapes of the data set, without making it."""
    examples = {"train": TRAIN_CANVASES, "test": TEST_CANVASES}
    return Outline(examples, (SIZE, SIZE, 1), NUM_CLASSES, per_pixel=True, independent=False)


def _make() -> dict[str, np.ndarray]:
    images, labels = digits.originals()
    sides = {
        "train": (slice(None, -digits.HELD_OUT), TRAIN_CANVASES),
        "test": (slice(-digits.HELD_OUT, None), TEST_CANVASES),
    }
    made = {}
    for seed, (side, (chosen, number)) in enumerate(sides.items()):
        made[f"{side}_images"], made[f"{side}_labels"] = canvases(images[chosen], labels[chosen], number, seed=seed)
    return made


def canvases(images: np.ndarray, labels: np.ndarray, number: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws random canvases and the class of each pixel.

    Args:
      images: the digits, shape (n, 28, 28), in [0, 1].
      labels: the labels of the digits, 0 to 9, shape (n,).
      number: the number of canvases.
      seed: the seed of the random numbers; the same seed gives the same canvases.

    Returns:
      Images of shape (number, 48, 48, 1) and classes of shape (number, 48, 48), both uint8.
    """
    pens = _Pens(warping.framed(images), labels, (images.shape[1] - 1) / 2)
    shading = warping.smooth_basis(SHADING_POINTS, SIZE)
    made = np.empty((number, SIZE, SIZE, 1), np.uint8)
    classes = np.empty((number, SIZE, SIZE), np.uint8)

    def make(start, stop):
        r = np.random.default_rng((seed, start))
        made[start:stop, ..., 0], classes[start:stop] = _draw_canvases(pens, shading, r, stop - start)

    warping.in_blocks(make, number, BLOCK)
    return made, classes


class Places(NamedTuple):
    """The places of the digits of several canvases.

    Attributes:
      centres: the rows and columns of the digits' centres, whole numbers, shape (number, 4, 2).
      sizes: the sides of the digits' squares in pixels, shape (number, 4).
      present: True for each of the four digits that is drawn, shape (number, 4).
    """

    centres: np.ndarray
    sizes: np.ndarray
    present: np.ndarray


def places(r: np.random.Generator, number: int) -> Places:
    """Returns random sizes and places of two to four digits per canvas, which lie inside the canvas and overlap little.

    A third or fourth digit without room is left out. If a second digit has no room, all places of that canvas are drawn
    again.
    """
    drawn = _tried_places(r, number)
    while (again := np.flatnonzero(drawn.present.sum(axis=1) < FEWEST_DIGITS)).size:
        for kept, new in zip(drawn, _tried_places(r, again.size), strict=True):
            kept[again] = new
    return drawn


def _tried_places(r, number):
    sizes = r.uniform(SMALLEST_DIGIT, LARGEST_DIGIT, (number, MOST_DIGITS))
    wanted = r.integers(FEWEST_DIGITS, MOST_DIGITS + 1, number)
    present = np.zeros(sizes.shape, bool)
    centres = np.zeros((number, MOST_DIGITS, 2), int)
    rows = np.arange(number)
    for k in range(MOST_DIGITS):
        margin = np.ceil(sizes[:, k, None, None] / 2)
        tried = np.floor(margin + r.random((number, CANDIDATES, 2)) * (SIZE + 1 - 2 * margin)).astype(int)
        overlap = _overlap(tried, sizes[:, k], centres[:, :k], sizes[:, :k], present[:, :k])
        # The first of the best places: a random place without overlap, if any was tried.
        best = overlap.argmin(axis=1)
        centres[:, k] = tried[rows, best]
        present[:, k] = (k < wanted) & (overlap[rows, best] <= MAX_OVERLAP)
    return Places(centres, sizes, present)


def _overlap(tried, size, centres, sizes, present):
    """Returns the largest overlap of each tried place with an earlier square, as a fraction of the smaller square."""
    largest = np.zeros(tried.shape[:2])
    for j in range(sizes.shape[1]):
        apart = np.abs(tried - centres[:, j, None])
        both, smaller = (size + sizes[:, j]) / 2, np.minimum(size, sizes[:, j])
        shared = np.clip(both[:, None, None] - apart, 0, smaller[:, None, None]).prod(axis=-1)
        largest = np.maximum(largest, np.where(present[:, j, None], shared / smaller[:, None] ** 2, 0))
    return largest


class _Pens(NamedTuple):
    """The digits to draw with: framed images, their labels, and the coordinate of their centres."""

    images: np.ndarray
    labels: np.ndarray
    centre: float


def _draw_canvases(pens: _Pens, shading, r: np.random.Generator, number: int):
    """Returns images and classes, uint8, of shape (number, 48, 48)."""
    # The margin makes room for patches that extend beyond the canvas.
    margin = DIGIT_PATCH // 2
    padded = SIZE + 2 * margin
    canvas, classes = np.zeros((number, padded, padded), np.float32), np.zeros((number, padded, padded), np.uint8)
    inside = (slice(None), slice(margin, -margin), slice(margin, -margin))
    level = r.uniform(*BACKGROUND, (number, 1, 1))
    canvas[inside] = level + SHADING_STD * warping.smooth(r.normal(size=(number, *shading.shape[:1] * 2)), shading)

    for _ in range(FRAGMENTS):
        coverage = _fragments(pens, r, number)
        centres = r.integers(0, SIZE, (number, 2))
        _blend(canvas, coverage, centres + margin, r.uniform(*INK, number))
    where = places(r, number)
    for k in range(MOST_DIGITS):
        which = r.integers(0, len(pens.labels), number)
        turned = warping.rotations(r.uniform(-MAX_ROTATION, MAX_ROTATION, number), _scaling(where.sizes[:, k]))
        coverage = warping.sample(
            pens.images, which, warping.affine(turned, np.full((number, 2), pens.centre), DIGIT_PATCH)
        )
        coverage *= where.present[:, k, None, None]
        patch = _blend(canvas, coverage, where.centres[:, k] + margin, r.uniform(*INK, number))
        classes[patch] = np.where(coverage >= MIN_COVERAGE, pens.labels[which, None, None] + 1, classes[patch])
    canvas[inside] += NOISE_STD * r.standard_normal((number, SIZE, SIZE), np.float32)
    return warping.as_bytes(canvas[inside].clip(0, 1)), classes[inside]


def _fragments(pens: _Pens, r: np.random.Generator, number: int) -> np.ndarray:
    """Returns discs cut out of digits of any size and direction, each too small to hold a whole digit."""
    which = r.integers(0, len(pens.labels), number)
    sizes = r.uniform(SMALLEST_DIGIT, LARGEST_DIGIT, number)
    turned = warping.rotations(r.uniform(-np.pi, np.pi, number), _scaling(sizes))
    offsets = pens.centre + r.uniform(-0.5, 0.5, (number, 2)) * pens.centre
    coverage = warping.sample(pens.images, which, warping.affine(turned, offsets, FRAGMENT_PATCH))
    centred = np.arange(FRAGMENT_PATCH) - (FRAGMENT_PATCH - 1) / 2
    distance = np.hypot(centred[:, None], centred)
    coverage *= (r.uniform(*FRAGMENT_RADIUS, number)[:, None, None] + 0.5 - distance).clip(0, 1)
    return coverage


def _scaling(sizes: np.ndarray) -> np.ndarray:
    """Returns the pixels of an original per pixel of the canvas, in both directions, for digits of these sizes."""
    whole = digits.SOURCE_SIZE * digits.ENLARGE_FACTOR
    return np.repeat((whole / sizes)[:, None], 2, axis=1)


def _blend(canvas, coverage, centres, ink):
    """Draws one patch on each canvas, with ink of one brightness, and returns the index of the drawn pixels."""
    side = np.arange(coverage.shape[1]) - coverage.shape[1] // 2
    rows, columns = centres[:, 0, None] + side, centres[:, 1, None] + side
    patch = (np.arange(len(canvas))[:, None, None], rows[:, :, None], columns[:, None, :])
    below = canvas[patch]
    canvas[patch] = below + coverage * (ink.astype(np.float32)[:, None, None] - below)
    return patch
