"""Seconds of computing per epoch: the trainer's own step beside a plain PyTorch loop."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from experiments import data as datasets
from experiments.benchmarking import timing, torch_peer
from experiments.training import devices, evaluation
from experiments.training.config import TrainConfig
from experiments.training.loop import prepare

OURS, TORCH = "batchnorm_jax", "torch"
PEERS = (TORCH,)


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
    )


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
    rows = []
    for batch_size in batch_sizes:
        config = recipe(batch_size, dataset, data_dir)
        order, mask = datasets.epoch_order(len(loaded.train.labels), batch_size, seed=0, epoch=0)
        variants = {OURS: _our_steps(config, loaded, chosen, order, mask)}
        if TORCH in peers and torch_peer.available():
            variants[TORCH] = torch_peer.training_steps(
                config, *loaded.train, order, loaded.num_classes, devices.cpu_cores()
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


def _our_steps(config: TrainConfig, dataset, chosen, order, mask) -> Callable[[int], None]:
    run = prepare(config, dataset, chosen)
    data = evaluation.put(dataset.train, evaluation.pixel_statistics(dataset.train.images), run.mesh)
    batches = jax.device_put((order, mask), NamedSharding(run.mesh, PartitionSpec(None, devices.AXIS)))
    compiled = run.train_step.lower(run.state, data, *batches).compile()
    state = run.state

    def steps(number: int) -> None:
        nonlocal state
        for _ in range(number):
            state, _ = compiled(state, data, *batches)
        jax.block_until_ready(state)

    return steps
