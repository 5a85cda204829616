"""What a training step reads: a split that lives on the device, or batches read ahead of it on the host."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import data as datasets
from experiments._errors import UsageError
from experiments.training.config.options import TrainConfig
from experiments.training.config.plan import Position
from experiments.training.machine.devices import AXIS, place
from experiments.training.recipe.optimizers import OPTIMIZERS
from experiments.training.state import Batch, Indexed, Source

# Of the device's memory, the part that a training set may take before it is streamed.
RESIDENT_SHARE = 0.25
AHEAD = 2


class Feed:
    """Yields what each update reads: one source for each of its micro-batches, in the order of `epoch_segments`.

    Args:
      config: of the run.
      train: the training split.
      mesh: the devices.
      resident: keep the whole split on every device; else read it ahead on the host, each process its own part.
    """

    def __init__(self, config: TrainConfig, train: datasets.Split, mesh: Mesh, *, resident: bool):
        self._train, self._mesh = train, mesh
        self._seed, self._drop_remainder = config.seed, config.drop_remainder
        self._micro_batches, self._updates_per_batch = config.accumulation_steps, config.backwards_per_forward
        # The objective of a full batch must not change: its order is that of the first epoch.
        self._one_order = OPTIMIZERS[config.optimizer].full_batch
        self._arrays: Any = None
        if resident:
            everything = train.read(np.arange(train.size)) if not isinstance(train, datasets.Examples) else train
            self._arrays = place(tuple(everything), NamedSharding(mesh, PartitionSpec()))

    def updates(self, position: Position, step: int) -> Iterator[list[Source]]:
        """The sources of the updates of an epoch, from the one after `step` others on.

        All micro-batches of an update share one `Indexed` source; `Batch` sources are one each.
        """
        epoch = 0 if self._one_order else position.epoch
        segments = datasets.epoch_segments(
            self._train.size,
            position.phase.batch_size,
            seed=self._seed,
            epoch=epoch,
            drop_remainder=self._drop_remainder,
            multiple_of=self._mesh.size * self._micro_batches,
        )
        first = position.first_step
        for segment in segments:
            rows = len(segment.indices)
            done = max(0, (step - first) // self._updates_per_batch)
            if done < rows:
                yield from self._segment(segment, first, done, epoch)
            first += rows * self._updates_per_batch

    def _segment(self, segment: datasets.Segment, first: int, done: int, epoch: int) -> Iterator[list[Source]]:
        micro = self._micro_batches
        rows, batch_size = segment.indices.shape
        cut = [
            None if a is None else a.reshape(rows * micro, batch_size // micro) for a in (segment.indices, segment.mask)
        ]
        if self._arrays is not None:
            order, mask = place(cut, NamedSharding(self._mesh, PartitionSpec(None, AXIS)))
            start = place(np.int32(first), NamedSharding(self._mesh, PartitionSpec()))
            source = Indexed(self._arrays[0], self._arrays[1], order, mask, start)
            for _ in range(done, rows):
                yield [source] * micro
            return
        with ThreadPoolExecutor(1) as reader:
            indices, mask = cut
            assert indices is not None

            def read(row: int) -> Batch:
                return self.read(indices[row], None if mask is None else mask[row], epoch)

            submitted = (reader.submit(read, row) for row in range(done * micro, rows * micro))
            pending = list(itertools.islice(submitted, AHEAD * micro))
            for _ in range(done, rows):
                update = []
                for _ in range(micro):
                    update.append(pending.pop(0).result())
                    pending += itertools.islice(submitted, 1)
                yield update

    def read(self, indices: np.ndarray, mask: np.ndarray | None, epoch: int) -> Batch:
        """A batch from the host; each process reads the part of its own devices."""
        return read_batch(self._train, indices, mask, self._mesh, epoch)


def read_batch(
    split: datasets.Split, indices: np.ndarray, mask: np.ndarray | None, mesh: Mesh, epoch: int = 0
) -> Batch:
    """A batch read on the host and cut over the devices; each process reads the part of its own devices.

    Args:
      split: what to read.
      indices: of the global batch, shape (n,).
      mask: which of them count; None: all.
      mesh: the devices.
      epoch: of the random crops.
    """
    n = len(indices)
    cut = NamedSharding(mesh, PartitionSpec(AXIS))
    share = n // mesh.size
    shards: list[tuple[Any, ...]] = []
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    for place_in_mesh, device in enumerate(mesh.devices.flat):
        if device not in local:
            continue
        part = slice(place_in_mesh * share, (place_in_mesh + 1) * share)
        examples = split.read(indices[part], epoch)
        arrays = (*examples, *(() if mask is None else (mask[part],)))
        shards.append(tuple(jax.device_put(a, device) for a in arrays))
    whole = [
        jax.make_array_from_single_device_arrays((n, *parts[0].shape[1:]), cut, list(parts))
        for parts in zip(*shards, strict=True)
    ]
    return Batch(whole[0], whole[1], None if mask is None else whole[2])


def is_resident(config: TrainConfig, dataset: datasets.Dataset, mesh: Mesh, available: int | None) -> bool:
    """Whether the splits are to live on the devices.

    Args:
      config: whose `input` decides, or leaves it to the size.
      dataset: its splits.
      mesh: the devices; those of a CPU share its memory, and each has a copy.
      available: bytes of memory of a device; None: not known.

    Raises:
      UsageError: residence is asked for or needed, and the images are cropped at random as they are read.
    """
    splits = [dataset.train, *dataset.test.values()]
    streamed = any(datasets.is_streamed(split) for split in splits)
    full_batch = OPTIMIZERS[config.optimizer].full_batch
    needed = config.input == "resident" or full_batch
    if needed and streamed:
        what = f"--optimizer={config.optimizer}" if full_batch else "--input=resident"
        raise UsageError(
            f"{what} keeps the whole set on the device, and {dataset.name!r} is streamed; take a smaller one"
        )
    if needed or config.input == "streamed":
        return needed
    size = sum(a.nbytes for split in splits if isinstance(split, datasets.Examples) for a in split)
    if mesh.devices.flat[0].platform == "cpu":
        size *= len(mesh.local_devices)
    return not streamed and (available is None or size <= RESIDENT_SHARE * available)


def examples(sources: list[Source]) -> int:
    """The size of the global batch of an update, padding included."""
    return sum(s.order.shape[1] if isinstance(s, Indexed) else s.labels.shape[0] for s in sources)


def is_masked(sources: list[Source]) -> bool:
    """Whether some of the examples are padding."""
    return sources[0].mask is not None


def signature(sources: list[Source]) -> Any:
    """What decides which compiled program reads a source: its kind, shapes and types."""
    leaves, structure = jax.tree.flatten(sources[0])
    return structure, tuple((a.shape, a.dtype) for a in leaves)
