"""A split that does not fit in memory: examples are decoded, cropped and resized when they are read."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .arrays import Examples

# The ranges of a random crop's area, as a fraction of the image's area, and of its aspect ratio.
CROP_AREA_SHARES, CROP_ASPECT_RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
# The fraction of the shorter side that a central crop keeps.
CENTRAL_FRACTION = 0.875


class Stream:
    """A split that reads examples by number, in parallel, from a source with random access.

    If a size is given, images are cropped and resized to a square of that size. Training takes a random crop of each
    image (area 8% to 100%, aspect ratio 3/4 to 4/3), which is a function of the seed, the epoch and the number of the
    example alone, so that a resumed run reads the same crops. Evaluation takes the central part.

    Args:
      source: the source: `source[i]` gives {"image": uint8 of (height, width, channels), "label": an integer}.
      image_size: the height and the width of the resized images; None: all images have the same size, and keep it.
      random_crops: whether to take the random crops of training or the central crops of evaluation.
      seed: the seed of the random crops.

    Source: Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842, 2014, section 6 (random crops).
    """

    # What reads from disk during training; a user's own class may say so, too.
    is_streamed = True

    def __init__(self, source: Sequence[Any] | Any, image_size: int | None, *, random_crops: bool, seed: int = 0):
        self._source, self._size, self._random, self._seed = source, image_size, random_crops, seed
        self._pool = ThreadPoolExecutor(os.cpu_count())
        first = np.asarray(source[0]["image"]).shape
        self._shape = first if image_size is None else (image_size, image_size, first[-1])

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self._source)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (height, width, channels)."""
        return self._shape

    def read(self, indices: np.ndarray, epoch: int = 0) -> Examples:
        """Returns the examples with these numbers, cropped as in this epoch."""
        pairs = list(self._pool.map(lambda i: self._example(int(i), epoch), np.asarray(indices).ravel()))
        images = np.stack([image for image, _ in pairs])
        return Examples(images, np.array([label for _, label in pairs], np.int32))

    def _example(self, index: int, epoch: int):
        record = self._source[index]
        image = np.asarray(record["image"])
        if self._size is None:
            return image, record["label"]
        if self._random:
            box = _random_box(image.shape, np.random.default_rng((self._seed, epoch, index)))
        else:
            box = _central_box(image.shape)
        return _resized(image, box, self._size), record["label"]


def _random_box(shape, r: np.random.Generator) -> tuple[int, int, int, int]:
    height, width = shape[:2]
    for _ in range(10):
        area = r.uniform(*CROP_AREA_SHARES) * height * width
        ratio = np.exp(r.uniform(*np.log(CROP_ASPECT_RATIOS)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = r.integers(width - w + 1), r.integers(height - h + 1)
            return int(left), int(top), int(left + w), int(top + h)
    return _central_box(shape)


def _central_box(shape) -> tuple[int, int, int, int]:
    height, width = shape[:2]
    side = max(1, round(CENTRAL_FRACTION * min(height, width)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _resized(image: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    # PIL is slow to import, and data sets in memory do not need it.
    from PIL import Image

    flat = image[..., 0] if image.shape[-1] == 1 else image
    resized = Image.fromarray(flat).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(size, size, image.shape[-1])
