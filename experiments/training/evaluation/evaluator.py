"""Evaluation of whole splits: accuracy and loss, with every example counted exactly once."""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ... import data as datasets
from ...records.runs import Result
from ..machine.devices import AXIS, place
from ..state import Indexed, Source, TrainState
from ..step.feeding import read_batch

# Enough examples per call to keep a CPU core busy, and few enough to need little memory.
MAX_EXAMPLES_PER_DEVICE = 512
# Reading every image of a streamed split, which does not fit in memory, would take too long.
STREAM_SAMPLE_IMAGES = 2048


def pixel_statistics(train: datasets.Split) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of training pixels, one number per channel each, for pixels in [0, 1].

    All images in memory are counted; a streamed split is represented by 2,048 images, spread evenly over it. A channel
    with a single value gets a standard deviation of 1.
    """
    if isinstance(train, datasets.Examples):
        images = train.images
    else:
        images = train.read(
            np.linspace(0, train.size - 1, min(STREAM_SAMPLE_IMAGES, train.size), dtype=np.int64)
        ).images
    channels = images.shape[-1]
    # 256 levels: counting them is exact and needs no floating-point copy of the images.
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(channels)])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt(np.maximum(counts @ levels**2 / counts.sum(axis=1) - mean**2, 1e-12))
    # A channel that is constant in training carries no information there. Divided by a deviation near 0, small
    # differences in other data would become huge.
    std = np.where(np.count_nonzero(counts, axis=1) == 1, 1.0, std)
    # Images are standardised in float32, so the numbers that are stored are exactly those that are used.
    return mean.astype(np.float32).tolist(), std.astype(np.float32).tolist()


class Evaluator:
    """An evaluator of whole splits, which pads and masks the last batch of each.

    Args:
      step: the evaluation step, from `single.eval_step`.
      splits: the splits by name, in memory or streamed.
      mesh: the devices.
      resident: keep the splits that are in memory on the devices.
    """

    def __init__(self, step: Callable, splits: Mapping[str, datasets.Split], mesh: Mesh, *, resident: bool = True):
        self._step, self._splits, self._mesh, self._keep = step, splits, mesh, resident
        self._resident: dict[str, Indexed] = {}
        self._compiled: dict[str, Callable] = {}

    @property
    def names(self) -> set[str]:
        """Names of the splits."""
        return set(self._splits)

    def compile(self, state: TrainState) -> None:
        """Compiles the step for each split, and places the splits that are kept resident on the devices."""
        for name in self._splits:
            if name not in self._compiled:
                source, row = next(self._batches(name))
                self._compiled[name] = self._step.lower(state.params, state.batch_stats, source, row).compile()

    def __call__(self, state: TrainState) -> dict[str, Result]:
        """Evaluates every split.

        Returns:
          The result of each split, by name. With one label per pixel it has a `mean_iou`, the mean over the classes
          that occur among labels or predictions.
        """
        self.compile(state)
        return {name: self._evaluate(name, state) for name in self._splits}

    def _evaluate(self, name: str, state: TrainState) -> Result:
        compiled = self._compiled[name]
        sums = [compiled(state.params, state.batch_stats, *batch) for batch in self._batches(name)]
        totals = jax.tree.map(lambda *parts: np.sum(np.array(parts, np.float64), axis=0), *sums)
        mean_iou = None
        if "union" in totals:
            occurs = totals["union"] > 0
            mean_iou = float(np.mean(totals["intersection"][occurs] / totals["union"][occurs]))
        return Result(
            accuracy=float(totals["correct"] / totals["count"]),
            loss=float(totals["loss"] / totals["count"]),
            examples=round(float(totals["count"])),
            mean_iou=mean_iou,
        )

    def _batches(self, name: str) -> Iterator[tuple[Source, np.int32]]:
        split = self._splits[name]
        per_device = min(MAX_EXAMPLES_PER_DEVICE, -(-split.size // self._mesh.size))
        order, mask = datasets.padded_batches(np.arange(split.size, dtype=np.int32), per_device * self._mesh.size)
        if self._keep and isinstance(split, datasets.Examples):
            if name not in self._resident:
                whole = NamedSharding(self._mesh, PartitionSpec())
                cut = NamedSharding(self._mesh, PartitionSpec(None, AXIS))
                images, labels = place(tuple(split), whole)
                rows, counts = place((order, mask), cut)
                self._resident[name] = Indexed(images, labels, rows, counts, place(np.int32(0), whole))
            for row in range(len(order)):
                yield self._resident[name], np.int32(row)
        else:
            for indices, counts in zip(order, mask, strict=True):
                yield read_batch(split, indices, counts, self._mesh), np.int32(0)
