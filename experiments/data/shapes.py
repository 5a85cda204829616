"""`shapes`: real handwritten digits on cluttered canvases, with one class per pixel; needs no network.

A canvas of 48x48 holds two to four of scikit-learn's digits, the same as in `digits`, at sizes of 14 to 24 pixels.
Beneath the digits lie small pieces cut out of other digits, drawn with the same pen and labelled as background, so that
only its shape tells a digit from a piece; noise lies over everything. No digit, whole or in pieces, is in both splits.

- train: 6,000 canvases from the first 1,437 digits;
- test: 1,000 canvases from the held-out 360.
"""

from typing import NamedTuple

import numpy as np

from experiments.data import digits, warping
from experiments.data.arrays import Dataset, Examples, cached

SIZE = 48
NUM_CLASSES = 11
TRAIN_CANVASES, TEST_CANVASES = 6_000, 1_000
FEWEST_DIGITS, MOST_DIGITS = 2, 4
SMALLEST_DIGIT, LARGEST_DIGIT = 14, 24
MAX_ROTATION = np.deg2rad(10.0)
# Two digits share at most this fraction of the smaller one's square. Ink fills about a third of a square.
MAX_OVERLAP = 0.15
# Random places that are tried for each digit.
CANDIDATES = 32
FRAGMENTS = 8
FRAGMENT_RADIUS = (2.5, 5.0)
INK = (0.55, 1.0)
BACKGROUND = (0.05, 0.3)
SHADING_POINTS, SHADING_STD, NOISE_STD = 4, 0.08, 0.06
# A pixel belongs to a digit that covers at least this fraction of it.
COVERED = 0.5
# The sides of the squares in which a digit and a fragment are drawn: a rotated digit of 24 pixels fits.
DIGIT_PATCH, FRAGMENT_PATCH = 28, 12
# Each block has one generator of random numbers, so this number, like all others above, decides the canvases.
BLOCK = 256
# Names the cache: raise it whenever the canvases that this file makes change.
VERSION = 1


def load() -> Dataset:
    """Returns the data set, made once and kept; labels are 0 for background and d + 1 for the digit d."""
    arrays = cached(f"shapes-v{VERSION}", _make)
    # The cache keeps labels as bytes, a quarter of the size.
    train, test = (
        Examples(arrays[f"{side}_images"], arrays[f"{side}_labels"].astype(np.int32)) for side in ("train", "test")
    )
    return Dataset("shapes", train, {"test": test}, NUM_CLASSES, independent=False)


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
    """Draws canvases.

    Args:
      images: digits, shape (n, 28, 28), in [0, 1].
      labels: 0 to 9, shape (n,).
      number: the number of canvases.
      seed: decides the random numbers; the same seed gives the same canvases.

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
      centres: rows and columns, whole numbers, shape (number, 4, 2).
      sizes: the sides of their squares in pixels, shape (number, 4).
      present: True for those of the four digits that are drawn, shape (number, 4).
    """

    centres: np.ndarray
    sizes: np.ndarray
    present: np.ndarray


def places(r: np.random.Generator, number: int) -> Places:
    """Returns random sizes and places of two to four digits per canvas, which lie inside it and overlap little.

    A third or fourth digit for which there is no room is left out; without room for a second, the whole canvas is drawn
    anew.
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
        # The first of the best places, which is a random one of those without overlap, if there are any.
        best = overlap.argmin(axis=1)
        centres[:, k] = tried[rows, best]
        present[:, k] = (k < wanted) & (overlap[rows, best] <= MAX_OVERLAP)
    return Places(centres, sizes, present)


def _overlap(tried, size, centres, sizes, present):
    """Returns, for each tried place, the largest fraction of the smaller square that it shares with a square there."""
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
    # A margin, so that no patch ends outside.
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
        classes[patch] = np.where(coverage >= COVERED, pens.labels[which, None, None] + 1, classes[patch])
    canvas[inside] += NOISE_STD * r.standard_normal((number, SIZE, SIZE), np.float32)
    return warping.as_bytes(canvas[inside].clip(0, 1)), classes[inside]


def _fragments(pens: _Pens, r: np.random.Generator, number: int) -> np.ndarray:
    """Returns discs cut out of digits of any size and direction, each too small to hold a digit."""
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
    """Returns the pixels of an image per pixel of the canvas, in both directions, for digits of these sizes."""
    whole = digits.SOURCE_SIZE * digits.ENLARGE
    return np.repeat((whole / sizes)[:, None], 2, axis=1)


def _blend(canvas, coverage, centres, ink):
    """Draws one patch on each canvas, with ink of one brightness; returns the index of the drawn pixels."""
    side = np.arange(coverage.shape[1]) - coverage.shape[1] // 2
    rows, columns = centres[:, 0, None] + side, centres[:, 1, None] + side
    patch = (np.arange(len(canvas))[:, None, None], rows[:, :, None], columns[:, None, :])
    below = canvas[patch]
    canvas[patch] = below + coverage * (ink.astype(np.float32)[:, None, None] - below)
    return patch
