"""The train suite: the compute time per epoch of the trainer's own step, beside that of a plain PyTorch loop."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import data as datasets
from ..records.benchmarks.train import OverheadRow, Start, StepRow, TrainFile, TrainRows
from ..training.config.options import TrainConfig
from ..training.evaluation import evaluator
from ..training.machine import devices
from ..training.state import Source
from ..training.step.feeding import Feed
from ..training.step.run import Run, prepare
from . import timing, torch_peer, trainer
from .suite import Chosen, Keep, Options, Suite, forget

OURS, TORCH = "batchnorm_jax", "torch"
PEERS = (TORCH,)
# The smallest batch size whose overhead is measured: steps of smaller batches are so short that the work around them
# takes a large share of the time.
MIN_OVERHEAD_BATCH_SIZE = 600


class Data(NamedTuple):
    """A data set.

    Attributes:
      dataset: the name of the data set.
      data_dir: the TFDS data directory; None: TFDS's own.
    """

    dataset: str
    data_dir: str | None


def recipe(batch_size: int, dataset: str, data_dir: str | None) -> TrainConfig:
    """Returns the recipe of the suite: `simple_cnn` without norms, heavy-ball SGD at rate 0.02 and momentum 0.5."""
    return TrainConfig(
        dataset=dataset,
        data_dir=data_dir,
        norm="none",
        batch_size=batch_size,
        optimizer="sgd",
        learning_rate=0.02,
        momentum=0.5,
        weight_decay=0.0,
        label_smoothing=0.0,
        schedule="constant",
        warmup_epochs=0,
        # More epochs than any number of rounds needs.
        epochs=10_000,
    )


def measure(chosen: Chosen, options: Options, keep: Keep = forget) -> TrainRows:
    """Measures parts of the suite: the first step, the trainer's overhead, and the step beside its peers."""
    data = Data(options.dataset, options.data_dir)
    results: dict[str, Any] = {}
    # Parts in separate processes come first: the other parts load JAX and PyTorch into this process's memory.
    for name in (name for name in PARTS if name in chosen.parts):

        def keep_part(value: Any, name: str = name) -> None:
            results[name] = value
            keep(TrainRows(**results))

        keep_part(PARTS[name](chosen, options.batch_sizes, data, keep_part))
    return TrainRows(**results)


def _start(chosen: Chosen, batch_sizes: Sequence[int], data: Data, keep: Keep) -> Start:
    del batch_sizes, data, keep
    return trainer.start(chosen.rounds)


def _overhead(chosen: Chosen, batch_sizes: Sequence[int], data: Data, keep: Keep) -> list[OverheadRow]:
    del keep
    large = [batch_size for batch_size in batch_sizes if batch_size >= MIN_OVERHEAD_BATCH_SIZE]
    return trainer.overhead(large, **data._asdict(), rounds=chosen.rounds)


def run(chosen: Chosen, batch_sizes: Sequence[int], data: Data, keep: Keep = forget) -> list[StepRow]:
    """Measures the training step at every batch size; this trainer and its peers take turns.

    Args:
      chosen: the peers, names from `PEERS`, and the timing.
      batch_sizes: the global batch sizes.
      data: the data set, of which only the shapes of the images matter here.
      keep: a function that is given the rows so far after each batch size.

    Returns:
      One row per batch size.
    """
    used = devices.set_up(None, math.gcd(*batch_sizes))
    loaded = datasets.load(*data)
    examples = loaded.train.read(np.arange(loaded.train.size))
    rows = []
    for batch_size in batch_sizes:
        config = recipe(batch_size, *data)
        (segment,) = datasets.epoch_segments(loaded.train.size, batch_size, seed=0, epoch=0)
        order = segment.indices
        variants = {OURS: _our_steps(config, loaded, used)}
        if TORCH in chosen.peers and torch_peer.available():
            variants[TORCH] = torch_peer.training_steps(
                config, *examples, order, loaded.num_classes, devices.cpu_cores()
            )
        measured = timing.in_turn(variants, rounds=chosen.rounds, seconds=chosen.seconds)
        row = StepRow(
            batch_size=batch_size,
            updates_per_epoch=len(order),
            devices=len(used),
            platform=used[0].platform,
            seconds_per_epoch={
                name: timing.spread(seconds * len(order) for seconds in values) for name, values in measured.items()
            },
            ratio={peer: timing.ratios(measured, OURS, peer) if peer in measured else None for peer in chosen.peers},
        )
        rows.append(row)
        print(describe(row), flush=True)
        keep(rows)
    return rows


def describe(row: StepRow) -> str:
    """Returns the line of the printed table."""
    texts = [f"batch {row.batch_size:>5}"]
    texts += [f"{name} {seconds} s per epoch" for name, seconds in row.seconds_per_epoch.items()]
    for peer, ratio in row.ratio.items():
        texts.append(f"ratio to {peer} {ratio}" if ratio else f"{peer} not measured (pip install {peer})")
    return "   ".join(texts)


# The parts in the order in which they are measured.
PARTS = {"start": _start, "overhead": _overhead, "steps": run}
SUITE = Suite(
    name="train",
    help="the training step and the trainer around it",
    parts=tuple(PARTS),
    peers=PEERS,
    seconds=2.0,
    measure=measure,
    file=TrainFile,
)


def _our_steps(config: TrainConfig, dataset, chosen) -> Callable[[int], None]:
    run = prepare(config, dataset, evaluator.pixel_statistics(dataset.train), chosen)
    feed = Feed(config, dataset.train, run.mesh, resident=True)
    updates = _updates(run, feed)
    state, first = run.state, next(updates)
    program = run.compile(state, first, run.plan)
    updates = itertools.chain([first], updates)

    def steps(number: int) -> None:
        nonlocal state
        for sources in itertools.islice(updates, number):
            state, _ = program.call(state, sources)
        jax.block_until_ready(state)

    return steps


def _updates(run: Run, feed: Feed) -> Iterator[list[Source]]:
    """Yields the sources of each update, without end."""
    step = 0
    while True:
        position = run.plan.locate(step)
        yield from feed.updates(position, step)
        step = position.last_step
