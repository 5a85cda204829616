"""How much the loss swings from update to update, by batch size, and the gradient noise scale as training goes on."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments._errors import UsageError
from experiments.studies.jobs import Job
from experiments.training.noise.estimate import MIN_BLOCKS, NoiseEstimate, noise_scale_interval
from experiments.training.storage import metrics

# Of a run's measurements of noise, the most groups that are averaged before they are divided; of an interval each takes
# eight.
WINDOWS = 5
CONFIDENCE = 0.95


class Setting(NamedTuple):
    """What to run.

    Attributes:
      batch_sizes: whose losses are looked at.
      steps: of each, the first of a training.
      noise_batch_size: of the run whose noise scale is measured.
      noise_rate: its peak rate.
      noise_steps: its length.
      noise_every: updates between two measurements.
    """

    batch_sizes: tuple[int, ...]
    steps: int
    noise_batch_size: int
    noise_rate: float
    noise_steps: int
    noise_every: int


CONSTANT = {"schedule": "constant", "warmup_epochs": 0, "weight_decay": 0.0, "label_smoothing": 0.0}


def jobs(options: dict[str, Any], setting: Setting, rate: float = 0.02, momentum: float = 0.5) -> list[Job]:
    """Every batch size at one rate; they tell `losses`."""
    recipe = {"optimizer": "sgd", "learning_rate": rate, "momentum": momentum}
    return [
        Job(f"swing-b{batch_size}", {**options, **CONSTANT, **recipe, "batch_size": batch_size, "steps": setting.steps})
        for batch_size in setting.batch_sizes
    ]


def noise_job(options: dict[str, Any], setting: Setting) -> Job:
    """The run whose noise scale is measured; it tells `noise`."""
    recipe = {
        "optimizer": "nesterov",
        "learning_rate": setting.noise_rate,
        "batch_size": setting.noise_batch_size,
        "steps": setting.noise_steps,
        "noise_every": setting.noise_every,
    }
    return Job(f"noise-b{setting.noise_batch_size}", {**options, **CONSTANT, **recipe})


def losses(workdir: Path) -> list[float]:
    """The loss of every update of a run, to four digits."""
    return [float(f"{row['loss']:.4g}") for row in metrics.read(workdir / metrics.FILE) if row["kind"] == "train"]


def noise(workdir: Path) -> list[list[float]]:
    """Of every measurement of a run: the update, the loss there, and the estimates of |G|^2 and tr Sigma."""
    rows = metrics.read(workdir / metrics.FILE)
    loss = {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
    return [
        [row["step"], loss[row["step"]], row["gradient_norm2"], row["trace"]] for row in rows if row["kind"] == "noise"
    ]


def swing(values: Sequence[float]) -> float:
    """How far one loss is from the next: the root mean square of the differences over the square root of 2.

    Of losses that scatter independently about a slow trend it is their standard deviation.

    Example:
      >>> round(swing([1.0, 2.0, 1.0, 2.0]), 3)
      0.707
    """
    return float(np.sqrt(np.mean(np.square(np.diff(values))) / 2))


def analyse(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The swing by batch size and the power of it, and the noise scale along the run, of the rows of both kinds of job.

    Returns:
      `sizes`: of each batch size its `swing`, the mean `loss`, and the `losses` of every update. `power`: of the batch
      size in the swing, by least squares of logarithms, or None. `noise`: for each of some windows of the run the
      middle `update`, the mean `loss`, the `scale` and its `interval`; infinite where a window does not tell the
      gradient from noise. `noise_batch_size`: of that run.
    """
    sizes = []
    for row in rows:
        if "losses" in row:
            values = row["losses"]
            sizes.append(
                {
                    "batch_size": row["options"]["batch_size"],
                    "swing": swing(values),
                    "loss": statistics.mean(values),
                    "losses": values,
                }
            )
    sizes.sort(key=lambda entry: entry["batch_size"])
    power = None
    if len(sizes) > 1:
        batch_sizes, swings = ([entry[name] for entry in sizes] for name in ("batch_size", "swing"))
        power = float(np.polyfit(np.log(batch_sizes), np.log(swings), 1)[0])
    found = next((row for row in rows if "noise" in row), None)
    windows = [] if found is None else noise_windows(found["noise"])
    size = None if found is None else found["options"]["batch_size"]
    return {"sizes": sizes, "power": power, "noise": windows, "noise_batch_size": size, "confidence": CONFIDENCE}


def noise_windows(measured: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """The noise scale in some windows of a run, from its measurements as `noise` gives them.

    Returns:
      Of each window the middle `update`, the mean `loss`, the `scale` in examples and its `interval`.
    """
    found = []
    if not measured:
        return found
    for part in np.array_split(np.array(measured, float), min(WINDOWS, max(1, len(measured) // MIN_BLOCKS))):
        steps, losses, norm2, trace = part.T
        scale = trace.mean() / norm2.mean() if norm2.mean() > 0 else math.inf
        try:
            # Measurements are of examples drawn anew, so they need no blocks.
            interval = noise_scale_interval(NoiseEstimate(norm2, trace), block=1, confidence=CONFIDENCE)
        except UsageError:
            interval = (0.0, math.inf)
        found.append(
            {
                "update": float(np.median(steps)),
                "loss": float(losses.mean()),
                "scale": float(scale),
                "interval": list(interval),
            }
        )
    return found
