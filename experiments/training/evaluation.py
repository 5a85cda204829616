"""The accuracy and loss on a whole split, every example counted once."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.data import Examples, padded_batches
from experiments.training.devices import AXIS, replicated
from experiments.training.steps import Resident, TrainState

# Examples a device per call: enough to keep a CPU core busy, and little memory.
PER_DEVICE = 512


def pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the pixels of uint8 images, per channel, of values from 0 to 1."""
    channels = images.shape[-1]
    # 256 levels: counting them is exact and needs no floating-point copy of the images.
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(channels)])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt(np.maximum(counts @ levels**2 / counts.sum(axis=1) - mean**2, 1e-12))
    return mean.astype(np.float32), std.astype(np.float32)


def put(examples: Examples, statistics: tuple[np.ndarray, np.ndarray], mesh: Mesh) -> Resident:
    """A split on every device of the mesh, with the pixel statistics by which its images are standardised."""
    return Resident(*jax.device_put((*examples, *statistics), replicated(mesh)))


def evaluate(step: Callable, state: TrainState, data: Resident, mesh: Mesh) -> dict[str, float | int]:
    """Runs an evaluation step over a split, its last batch padded and masked.

    Args:
      step: from `steps.eval_step`.
      state: the parameters and running statistics to evaluate.
      data: the split.
      mesh: the devices.

    Returns:
      `accuracy` and `loss`, means over the split, and `examples`, how many were counted.
    """
    examples = data.labels.shape[0]
    per_device = min(PER_DEVICE, -(-examples // mesh.size))
    batches = zip(*padded_batches(np.arange(examples, dtype=np.int32), per_device * mesh.size), strict=True)
    cut = NamedSharding(mesh, PartitionSpec(AXIS))
    sums = [step(state.params, state.batch_stats, data, *jax.device_put(batch, cut)) for batch in batches]
    totals = jax.tree.map(lambda *parts: float(np.sum(np.array(parts, np.float64))), *sums)
    return {
        "accuracy": totals["correct"] / totals["count"],
        "loss": totals["loss"] / totals["count"],
        "examples": round(totals["count"]),
    }
