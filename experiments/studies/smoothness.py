"""Measures of how noisy a training is: the swing of its loss, and the gradient noise scale as it goes on."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from batchnorm_jax.batch_size import NoiseEstimate, noise_scale_interval

from ..records.questions.smoothness import NoiseWindow
from ..records.runs import NoiseRow, TrainRow
from ..training.storage import metrics

# The most windows of a run; the measurements of each are averaged before they are divided.
WINDOWS = 5
# The fewest measurements of which `noise_scale_interval` makes an interval.
MIN_MEASUREMENTS = 8
CONFIDENCE = 0.95
# Options of a run whose rate and batch stay as they are.
CONSTANT = {"schedule": "constant", "warmup_epochs": 0, "weight_decay": 0.0, "label_smoothing": 0.0}


def losses(workdir: Path) -> list[float]:
    """Returns the loss of every update of a run, to four digits."""
    return [float(f"{row.loss:.4g}") for row in metrics.read(workdir / metrics.FILE) if isinstance(row, TrainRow)]


def noise(workdir: Path) -> list[list[float]]:
    """Returns the noise measurements of a run: the update, the loss there, and the estimates of |G|^2 and tr Sigma."""
    rows = metrics.read(workdir / metrics.FILE)
    loss = {row.step: row.loss for row in rows if isinstance(row, TrainRow)}
    return [[row.step, loss[row.step], row.gradient_norm2, row.trace] for row in rows if isinstance(row, NoiseRow)]


def swing(values: Sequence[float]) -> float:
    """Returns how far one loss is from the next: the root mean square of the differences over the square root of 2.

    It is the standard deviation of losses that scatter independently about a slow trend.

    Example:
      >>> round(swing([1.0, 2.0, 1.0, 2.0]), 3)
      0.707
    """
    return float(np.sqrt(np.mean(np.square(np.diff(values))) / 2))


def noise_windows(measured: Sequence[Sequence[float]]) -> list[NoiseWindow]:
    """Returns the noise scale in some windows of a run, from its measurements as `noise` returns them."""
    found = []
    if not measured:
        return found
    for part in np.array_split(np.array(measured, float), min(WINDOWS, max(1, len(measured) // MIN_MEASUREMENTS))):
        steps, losses, norm2, trace = part.T
        scale, interval = pooled_noise_scale(NoiseEstimate(norm2, trace))
        found.append(
            NoiseWindow(update=float(np.median(steps)), loss=float(losses.mean()), scale=scale, interval=interval)
        )
    return found


def pooled_noise_scale(measured: NoiseEstimate) -> tuple[float, tuple[float, float]]:
    """Returns the noise scale of measurements that are averaged before they are divided, and its interval.

    Both ends of the interval are open, (0, inf), where the measurements are too few.

    Args:
      measured: the measurements, arrays of shape (measurements,), of examples drawn anew each time.
    """
    norm2, trace = float(np.mean(measured.gradient_norm2)), float(np.mean(measured.trace))
    scale = trace / norm2 if norm2 > 0 else math.inf
    try:
        # Examples that are drawn anew need no blocks.
        low, high = noise_scale_interval(measured, block=1, confidence=CONFIDENCE)
    except ValueError:
        return scale, (0.0, math.inf)
    return scale, (float(low), float(high))
