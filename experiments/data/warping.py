"""Warps many images at once by smooth maps of their coordinates, with the same result on every machine.

Every result is computed by elementwise sums and products in a fixed order. Matrix products are avoided, because their
last digits depend on the library and on its number of threads.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy

# More threads lose more time to the interpreter's lock than they save.
MAX_THREADS = 4


def in_blocks(make: Callable[[int, int], None], number: int, block: int) -> None:
    """Calls `make(start, stop)` for blocks that cover `range(number)`, in parallel threads, which NumPy allows.

    The blocks are the same on every machine, so the results do not depend on the number of threads.

    Args:
      make: a function that writes its results to memory that no other call writes to.
      number: the end of the range.
      block: the size of a block, which should be small enough for its arrays to stay in a core's cache.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, MAX_THREADS)) as pool:
        # Making a list waits for every block, and raises the error of a block that failed.
        list(pool.map(lambda start: make(start, min(start + block, number)), range(0, number, block)))


def framed(images: np.ndarray) -> np.ndarray:
    """Prepares images of shape (n, height, width) for `sample`: as float32, in a frame of zeros."""
    # The frame has one pixel in front and two behind, so that a point on its outer edge has neighbours too.
    return np.pad(images.astype(np.float32), ((0, 0), (1, 2), (1, 2)))


def sample(images: np.ndarray, which: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolates bilinearly between the pixels of images that are zero beyond their edges.

    Args:
      images: the result of `framed`.
      which: the number of the image to read for each result, shape (k,).
      at: the rows and the columns to read, shape (k, 2, height, width); (0, 0) is the centre of the first pixel.

    Returns:
      float32, of shape (k, height, width): `scipy.ndimage.map_coordinates(order=1, mode="grid-constant")` to rounding.

    Example:
      >>> columns = np.array([0.5, 1.5, 9.0]).reshape(1, 1, 1, 3)
      >>> at = np.concatenate([np.zeros_like(columns), columns], axis=1)
      >>> sample(framed(np.array([[[1.0, 3.0]]])), np.array([0]), at)
      array([[[2. , 1.5, 0. ]]], dtype=float32)
    """
    _, height, width = images.shape
    flat = images.reshape(-1)
    y, x = (
        np.clip(at[:, axis], -1, size - 3).astype(np.float32) + np.float32(1)
        for axis, size in enumerate((height, width))
    )
    i, j = y.astype(np.int32), x.astype(np.int32)
    # Arrays are changed in place from here on, because moving them takes most of the time.
    y -= i
    x -= j
    i *= width
    i += j
    i += (which * (height * width)).astype(np.int32)[:, None, None]

    def between_columns(i):
        left, right = flat.take(i), flat.take(i + 1)
        right -= left
        right *= x
        right += left
        return right

    upper = between_columns(i)
    i += width
    lower = between_columns(i)
    lower -= upper
    lower *= y
    lower += upper
    return lower


def affine(matrices: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """Returns coordinates for `sample`: matrix (p - centre) + offset, for every pixel p of a square.

    Args:
      matrices: the matrices, which act on (row, column), shape (k, 2, 2).
      offsets: the points that the centre of the square is mapped to, shape (k, 2).
      size: the side of the square.

    Returns:
      float32, of shape (k, 2, size, size).
    """
    centred = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    matrices, offsets = matrices.astype(np.float32), offsets.astype(np.float32)
    from_rows = matrices[:, :, 0, None] * centred + offsets[:, :, None]
    from_columns = matrices[:, :, 1, None] * centred
    return from_rows[..., :, None] + from_columns[..., None, :]


def rotations(angles: np.ndarray, scaling: np.ndarray) -> np.ndarray:
    """Returns matrices for `affine`: rotations, followed by a scaling of rows and columns.

    Args:
      angles: the angles in radians, shape (k,).
      scaling: the factors for rows and columns, shape (k, 2).

    Returns:
      An array of shape (k, 2, 2).
    """
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=1) * scaling[:, :, None]


def smooth_basis(points: int, size: int, beyond: str = "nearest") -> np.ndarray:
    """Returns cubic interpolation from `points` to `size` values, a linear map, as a matrix of shape (points, size).

    Args:
      points: the number of given values.
      size: the number of interpolated values.
      beyond: the assumption about values beyond the ends, a mode of `scipy.ndimage.zoom`.
    """
    return np.asarray(scipy.ndimage.zoom(np.eye(points), (1, size / points), order=3, mode=beyond, grid_mode=True))


def smooth(values: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Returns smooth fields from their values at a few points: basis^T values basis.

    Args:
      values: the values at the points, shape (..., points, points).
      basis: the result of `smooth_basis`, shape (points, size).

    Returns:
      float32, of shape (..., size, size).
    """
    values, basis = values.astype(np.float32), basis.astype(np.float32)
    rows = basis[0, :, None] * values[..., 0, None, :]
    for k in range(1, len(basis)):
        rows += basis[k, :, None] * values[..., k, None, :]
    fields = rows[..., 0, None] * basis[0]
    for k in range(1, len(basis)):
        fields += rows[..., k, None] * basis[k]
    return fields


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Returns images in [0, 1] as uint8."""
    return np.rint(images * np.float32(255)).astype(np.uint8)
