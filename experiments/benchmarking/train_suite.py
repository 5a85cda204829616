"""The training suite: above all seconds of computing per epoch, the trainer's own step beside a plain PyTorch loop."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments import data as datasets
from experiments.benchmarking import timing, torch_peer, trainer
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation import evaluator
from experiments.training.machine import devices
from experiments.training.state import Source
from experiments.training.step.feeding import Feed
from experiments.training.step.run import Run, prepare

OURS, TORCH = "batchnorm_jax", "torch"
PEERS = (TORCH,)
PARTS = ("start", "overhead", "steps")
# Smaller batches make steps so short that what surrounds them is no small share.
OVERHEAD_FROM = 600


def recipe(batch_size: int, dataset: str, data_dir: str | None) -> TrainConfig:
    """`simple_cnn` without norm, heavy-ball SGD at rate 0.02 and momentum 0.5."""
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
        # More than any number of rounds takes.
        epochs=10_000,
    )


def measure(
    parts: Sequence[str],
    batch_sizes: Sequence[int],
    *,
    dataset: str,
    data_dir: str | None,
    peers: Sequence[str],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Measures parts of the suite: the first step, the trainer's overhead, and the step beside its peers."""
    rows: dict[str, Any] = {}
    data: dict[str, Any] = {"dataset": dataset, "data_dir": data_dir}
    # Processes of their own come first: afterwards this one has JAX and PyTorch in memory.
    if "start" in parts:
        rows["start"] = trainer.start(rounds)
    if "overhead" in parts:
        rows["overhead"] = trainer.overhead([b for b in batch_sizes if b >= OVERHEAD_FROM], **data, rounds=rounds)
    if "steps" in parts:
        rows["steps"] = run(batch_sizes, **data, peers=peers, rounds=rounds, seconds=seconds)
    return rows


def run(
    batch_sizes: Sequence[int],
    *,
    dataset: str,
    data_dir: str | None,
    peers: Sequence[str] = PEERS,
    rounds: int = 7,
    seconds: float = 2.0,
) -> list[dict[str, Any]]:
    """Measures every batch size, ours and the peers in turn.

    Args:
      batch_sizes: global batch sizes.
      dataset: to train on; its images decide the shapes and nothing else that matters here.
      data_dir: the TFDS data directory.
      peers: names from `PEERS`.
      rounds: timings of each.
      seconds: about how long one timing takes.

    Returns:
      A row a batch size: the updates per epoch, seconds per epoch of each (median, least, greatest), and the ratio
      of ours to each peer's, taken round by round. A peer that is not installed is None: not measured.
    """
    chosen = devices.set_up(None, math.gcd(*batch_sizes))
    loaded = datasets.load(dataset, data_dir)
    examples = loaded.train.read(np.arange(loaded.train.size))
    rows = []
    for batch_size in batch_sizes:
        config = recipe(batch_size, dataset, data_dir)
        (segment,) = datasets.epoch_segments(loaded.train.size, batch_size, seed=0, epoch=0)
        order = segment.indices
        variants = {OURS: _our_steps(config, loaded, chosen)}
        if TORCH in peers and torch_peer.available():
            variants[TORCH] = torch_peer.training_steps(
                config, *examples, order, loaded.num_classes, devices.cpu_cores()
            )
        measured = timing.in_turn(variants, rounds=rounds, seconds=seconds)
        row: dict[str, Any] = {
            "batch_size": batch_size,
            "updates_per_epoch": len(order),
            "devices": len(chosen),
            "platform": chosen[0].platform,
            "seconds_per_epoch": {
                name: timing.spread([s * len(order) for s in values])._asdict() for name, values in measured.items()
            },
            "ratio": {
                peer: timing.spread(
                    [ours / theirs for ours, theirs in zip(measured[OURS], measured[peer], strict=True)]
                )._asdict()
                if peer in measured
                else None
                for peer in peers
            },
        }
        rows.append(row)
        print(describe(row), flush=True)
    return rows


def describe(row: dict[str, Any]) -> str:
    """One line for a person."""
    texts = [f"batch {row['batch_size']:>5}"]
    texts += [f"{name} {timing.Spread(**s)} s per epoch" for name, s in row["seconds_per_epoch"].items()]
    for peer, ratio in row["ratio"].items():
        texts.append(
            f"ratio to {peer} {timing.Spread(**ratio)}" if ratio else f"{peer} not measured (pip install {peer})"
        )
    return "   ".join(texts)


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
    """Epoch after epoch."""
    step = 0
    while True:
        position = run.plan.locate(step)
        yield from feed.updates(position, step)
        step = position.last_step
