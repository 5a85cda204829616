"""Sources of batches for a training step: a split resident on the devices, or batches that the host reads ahead."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ... import data as datasets
from ..._errors import UsageError
from ..config.options import TrainConfig
from ..config.plan import Position
from ..machine.devices import AXIS, place
from ..recipe.optimizers import OPTIMIZERS
from ..state import Batch, Indexed, Source

# The largest share of a device's memory that a resident data set may take; the rest is for the training step.
RESIDENT_MEMORY_SHARE = 0.25
# Updates whose batches the host reads ahead: one to wait ready while the next is read. More would only take memory.
UPDATES_READ_AHEAD = 2


class Feed:
    """The batches of a training run, in the order of `epoch_segments`: one source per micro-batch of each update.

    Args:
      config: configuration of the run.
      train: the training split.
      mesh: the devices.
      resident: True: keep the whole split on every device. False: read ahead on the host, where each process reads
        the part for its own devices.
    """

    def __init__(self, config: TrainConfig, train: datasets.Split, mesh: Mesh, *, resident: bool):
        self._train, self._mesh = train, mesh
        self._seed, self._drop_remainder = config.seed, config.drop_remainder
        self._micro_batches, self._updates_per_batch = config.accumulation_steps, config.backwards_per_forward
        # The line search needs an objective that never changes, so every epoch has the order of the first one.
        self._one_order = OPTIMIZERS[config.optimizer].full_batch
        self._arrays: Any = None
        if resident:
            everything = train.read(np.arange(train.size)) if not isinstance(train, datasets.Examples) else train
            self._arrays = place(tuple(everything), NamedSharding(mesh, PartitionSpec()))

    def examples(self, sources: list[Source]) -> int:
        """Returns the size of the global batch of an update, padding included."""
        return examples(sources)

    def signature(self, sources: list[Source]) -> Any:
        """Returns a key that is equal for updates that one program can read: type, shapes and dtypes."""
        leaves, structure = jax.tree.flatten(sources[0])
        return structure, tuple((a.shape, a.dtype) for a in leaves)

    def updates(self, position: Position, step: int) -> Iterator[list[Source]]:
        """Yields the sources of each remaining update of an epoch.

        Args:
          position: the epoch, as `Plan.locate` gives it.
          step: the number of updates made so far, those of earlier epochs included.

        Yields:
          One source per micro-batch: the same `Indexed` for all of them, or a `Batch` for each.
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
            pending = list(itertools.islice(submitted, UPDATES_READ_AHEAD * micro))
            for _ in range(done, rows):
                update = []
                for _ in range(micro):
                    update.append(pending.pop(0).result())
                    pending += itertools.islice(submitted, 1)
                yield update

    def read(self, indices: np.ndarray, mask: np.ndarray | None, epoch: int) -> Batch:
        """Returns a batch of the training split, read on the host; see `read_batch`."""
        return read_batch(self._train, indices, mask, self._mesh, epoch)


def read_batch(
    split: datasets.Split, indices: np.ndarray, mask: np.ndarray | None, mesh: Mesh, epoch: int = 0
) -> Batch:
    """Reads a batch on the host and shards it over the devices; each process reads only the part for its own devices.

    Args:
      split: the split to read from.
      indices: indices of the examples of the global batch, shape (n,).
      mask: True for each example that counts, shape (n,); None: all count.
      mesh: the devices.
      epoch: the epoch, counted from 0, which seeds the random crops.
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
    """Returns whether the splits of a data set are kept on the devices.

    Args:
      config: configuration of the run; where its `input` is "auto", the size of the data set decides.
      dataset: the data set.
      mesh: the devices; on a CPU they share the host's memory, and each device holds a copy.
      available: memory of one device in bytes; None: unknown.

    Raises:
      UsageError: the configuration needs a resident data set, and this one can only be streamed.
    """
    splits = [dataset.train, *dataset.test.values()]
    streamed = any(datasets.is_streamed(split) for split in splits)
    full_batch = OPTIMIZERS[config.optimizer].full_batch
    needed = config.input == "resident" or full_batch
    if needed and streamed:
        what = f"--optimizer={config.optimizer}" if full_batch else "--input=resident"
        raise UsageError(
            f"{what} keeps the whole set on the device, and {dataset.name!r} can only be streamed; choose a data set "
            "that fits in memory"
        )
    if needed or config.input == "streamed":
        return needed
    size = sum(a.nbytes for split in splits if isinstance(split, datasets.Examples) for a in split)
    if mesh.devices.flat[0].platform == "cpu":
        size *= len(mesh.local_devices)
    return not streamed and (available is None or size <= RESIDENT_MEMORY_SHARE * available)


def shapes(config: TrainConfig, train: datasets.Split, mesh: Mesh, *, resident: bool) -> list[Source]:
    """Returns the shapes, dtypes and shardings of the sources of a run's first update, to compile the update from.

    Args:
      config: configuration of the run.
      train: the training split.
      mesh: the devices.
      resident: whether the split is kept on every device.
    """
    micro = config.accumulation_steps
    first, size = train.read(np.arange(1)), config.batch_size // micro

    def shaped(shape: tuple[int, ...], dtype: Any, *axes: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    if not resident:
        images, labels = (shaped((size, *a.shape[1:]), a.dtype, AXIS) for a in first)
        return [Batch(images, labels, None) for _ in range(micro)]
    images, labels = (shaped((train.size, *a.shape[1:]), a.dtype) for a in first)
    order = shaped((train.size // config.batch_size * micro, size), np.int32, None, AXIS)
    return [Indexed(images, labels, order, None, shaped((), np.int32)) for _ in range(micro)]


def examples(sources: list[Source]) -> int:
    """Returns the size of the global batch of an update, padding included."""
    return sum(s.order.shape[1] if isinstance(s, Indexed) else s.labels.shape[0] for s in sources)


def is_masked(sources: list[Source]) -> bool:
    """Returns whether some of the examples of an update are padding."""
    return sources[0].mask is not None
