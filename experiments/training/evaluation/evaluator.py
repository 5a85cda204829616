"""The accuracy and loss on whole splits, every example counted once."""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import data as datasets
from experiments.records.runs import Result
from experiments.training.machine.devices import AXIS, place
from experiments.training.state import Indexed, Source, TrainState
from experiments.training.step.feeding import read_batch

# Examples a device per call: enough to keep a CPU core busy, and little memory.
PER_DEVICE = 512
# Of images too many to count the pixels of them all.
SAMPLE = 2048


def pixel_statistics(train: datasets.Split) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels of training images, per channel, of values from 0 to 1.

    Of a stream, those of some 2,000 images spread over it. A channel of one value has a deviation of 1.
    """
    if isinstance(train, datasets.Examples):
        images = train.images
    else:
        images = train.read(np.linspace(0, train.size - 1, min(SAMPLE, train.size), dtype=np.int64)).images
    channels = images.shape[-1]
    # 256 levels: counting them is exact and needs no floating-point copy of the images.
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(channels)])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt(np.maximum(counts @ levels**2 / counts.sum(axis=1) - mean**2, 1e-12))
    # What is the same in all of training tells nothing there, and must not be blown up where it is not.
    std = np.where(np.count_nonzero(counts, axis=1) == 1, 1.0, std)
    # Of the precision in which images are standardised.
    return mean.astype(np.float32).tolist(), std.astype(np.float32).tolist()


class Evaluator:
    """Evaluates splits, their last batches padded and masked.

    Args:
      step: from `single.eval_step`.
      splits: by name, in memory or streamed.
      mesh: the devices.
      resident: keep splits that are in memory on the devices.
    """

    def __init__(self, step: Callable, splits: Mapping[str, datasets.Split], mesh: Mesh, *, resident: bool = True):
        self._step, self._splits, self._mesh, self._keep = step, splits, mesh, resident
        self._resident: dict[str, Indexed] = {}
        self._compiled: dict[str, Callable] = {}

    @property
    def names(self) -> set[str]:
        """The names of the splits."""
        return set(self._splits)

    def compile(self, state: TrainState) -> None:
        """Puts the splits that are in memory on the devices, and compiles the step for each split."""
        for name in self._splits:
            if name not in self._compiled:
                source, row = next(self._batches(name))
                self._compiled[name] = self._step.lower(state.params, state.batch_stats, source, row).compile()

    def __call__(self, state: TrainState) -> dict[str, Result]:
        """Evaluates every split.

        Returns:
          The result of each split by its name; `mean_iou` is the mean over the classes that occur, and is there with a
          class for every pixel.
        """
        self.compile(state)
        return {name: self._evaluate(name, state) for name in self._splits}

    def _evaluate(self, name: str, state: TrainState) -> Result:
        compiled = self._compiled[name]
        sums = [compiled(state.params, state.batch_stats, *batch) for batch in self._batches(name)]
        totals = jax.tree.map(lambda *parts: np.sum(np.array(parts, np.float64), axis=0), *sums)
        mean_iou = None
        if "union" in totals:
            there = totals["union"] > 0
            mean_iou = float(np.mean(totals["intersection"][there] / totals["union"][there]))
        return Result(
            accuracy=float(totals["correct"] / totals["count"]),
            loss=float(totals["loss"] / totals["count"]),
            examples=round(float(totals["count"])),
            mean_iou=mean_iou,
        )

    def _batches(self, name: str) -> Iterator[tuple[Source, np.int32]]:
        split = self._splits[name]
        per_device = min(PER_DEVICE, -(-split.size // self._mesh.size))
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
