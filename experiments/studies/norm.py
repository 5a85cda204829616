"""Which statistics to normalise by, over per-device batch sizes.

Two sets of training runs, on as many devices as are given:

- the grid: every norm at every per-device batch size, for classification (`simple_cnn`) and for segmentation (`fcn`),
  the same number of updates each;
- the rates: batch statistics and statistics that are frozen before the first update, at peak rates a factor of about
  three apart.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from batchnorm_jax import Moments
from batchnorm_jax.linen import moments_fn
from experiments.studies.jobs import Job
from experiments.training.evaluation.checkpoint import restore
from experiments.training.step.single import standardised

NORMS: dict[str, dict[str, Any]] = {
    "local": {"norm": "local"},
    "synchronised": {"norm": "batch"},
    "span 16": {"norm": "batch", "span": 16},
    "span 32": {"norm": "batch", "span": 32},
    "span 64": {"norm": "batch", "span": 64},
    "renorm": {"norm": "renorm"},
    "group": {"norm": "group"},
    "frozen": {"norm": "frozen"},
}
# The norms of `NORMS` that are compared over peak rates.
RATE_NORMS = ("synchronised", "frozen")
# The running statistics are averages over some 20 updates at every batch size: runs are short.
_COMMON = {"warmup_epochs": 0, "weight_decay": 0.0, "label_smoothing": 0.0, "norm_momentum": 0.95}
TASKS: dict[str, dict[str, Any]] = {
    "classification": {
        **_COMMON,
        "dataset": "digits",
        "model": "simple_cnn",
        "optimizer": "nesterov",
        "learning_rate": 0.05,
    },
    "segmentation": {
        **_COMMON,
        "dataset": "shapes",
        "model": "fcn",
        "optimizer": "adamw",
        "learning_rate": 0.003,
    },
}
PER_DEVICE_BATCH_SIZES = (1, 2, 4, 8, 32)
# Of the runs at several rates.
RATES_PER_DEVICE = 8


class Budget(NamedTuple):
    """How many updates a run is given: as many as make `examples`, within limits.

    Attributes:
      examples: to see.
      least: updates.
      most: updates.
    """

    examples: int
    least: int
    most: int

    def updates(self, batch_size: int) -> int:
        """The updates of a run. Only runs of the same batch size are compared."""
        return min(self.most, max(self.least, self.examples // batch_size))


class Size(NamedTuple):
    """How much of the study to run.

    Attributes:
      budgets: of a run, by task.
      per_device_batch_sizes: of the grid.
      seeds: of every run, by task.
      rates: peak rates of the second part.
      norms: of the grid.
    """

    budgets: dict[str, Budget]
    seeds: dict[str, tuple[int, ...]]
    per_device_batch_sizes: tuple[int, ...] = PER_DEVICE_BATCH_SIZES
    rates: tuple[float, ...] = (0.005, 0.015, 0.05, 0.15, 0.5)
    norms: tuple[str, ...] = tuple(NORMS)


PRESETS = {
    # A segmentation of 48x48 pixels takes as long as thirty classifications, so it has fewer seeds.
    "full": Size(
        {"classification": Budget(76_800, 300, 300), "segmentation": Budget(5_760, 30, 200)},
        seeds={"classification": (0, 1, 2), "segmentation": (0, 1)},
    ),
    "quick": Size(
        {"classification": Budget(25_600, 100, 100), "segmentation": Budget(1_280, 10, 40)},
        seeds={"classification": (0,), "segmentation": (0,)},
        per_device_batch_sizes=(1, 4),
        rates=(0.015, 0.15),
        # Most of a short run is compiling: those that make the point.
        norms=("local", "synchronised", "frozen"),
    ),
}


def same_as(norm: str, per_device: int, num_devices: int) -> str | None:
    """The norm that computes the same at this size, and is run in place of this one; "" if this one cannot be.

    Example:
      >>> same_as("span 32", 4, 8), same_as("span 16", 1, 8), same_as("span 16", 4, 8)
      ('synchronised', '', None)
    """
    span = NORMS[norm].get("span")
    if span is None:
        return None
    if span > per_device * num_devices:
        return ""
    return {per_device * num_devices: "synchronised", per_device: "local"}.get(span)


def grid_jobs(size: Size, tasks: Sequence[str], num_devices: int) -> list[Job]:
    """Every norm of `size` at every per-device batch size, but those that compute the same as another.

    Norms are innermost, so that runs whose times are compared stand next to each other.
    """
    return [
        Job(
            f"grid-{task}-{norm.replace(' ', '')}-p{per_device}-seed{seed}",
            {
                **_options(task, per_device, num_devices, seed),
                **NORMS[norm],
                "steps": size.budgets[task].updates(num_devices * per_device),
            },
        )
        for task in tasks
        for seed, per_device, norm in itertools.product(size.seeds[task], size.per_device_batch_sizes, size.norms)
        if same_as(norm, per_device, num_devices) is None
    ]


def rate_jobs(size: Size, num_devices: int) -> list[Job]:
    """Returns the runs of each norm of `RATE_NORMS` at every rate."""
    task = "classification"
    norms = [NORMS[name]["norm"] for name in RATE_NORMS]
    return [
        Job(
            f"rate-{norm}-{rate:g}-seed{seed}",
            {
                **_options(task, RATES_PER_DEVICE, num_devices, seed),
                "norm": norm,
                "steps": size.budgets[task].updates(num_devices * RATES_PER_DEVICE),
                "learning_rate": rate,
            },
        )
        for seed, rate, norm in itertools.product(size.seeds[task], size.rates, norms)
    ]


def _options(task: str, per_device: int, num_devices: int, seed: int) -> dict[str, Any]:
    return {**TASKS[task], "batch_size": num_devices * per_device, "num_devices": num_devices, "seed": seed}


def shift_of(workdir: Path) -> dict[str, float]:
    """How far what enters the norms of a finished run is from the statistics that they normalise by.

    Returns:
      By 1,000 training images, the median over all features of |mean - fixed mean| / fixed standard deviation (`mean`)
      and of the ratio of standard deviations (`std`).
    """
    restored = restore(workdir, num_devices=1)
    train, state = restored.data.train, restored.state
    images = train.read(np.random.default_rng(0).permutation(train.size)[:1_000]).images
    fixed = jax.tree.leaves(state.batch_stats, is_leaf=_is_norm)
    moments = moments_fn(restored.model, mode="layerwise", train=False)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    there = jax.jit(lambda images: moments(variables, standardised(images, restored.recipe)))(images)
    now = jax.tree.leaves(there, is_leaf=lambda node: isinstance(node, Moments))
    pairs = list(zip(fixed, now, strict=True))
    means = [np.abs(b.mean - a["mean"]) / np.sqrt(a["var"]) for a, b in pairs]
    stds = [np.sqrt(b.var / a["var"]) for a, b in pairs]
    return {"mean": float(np.median(np.concatenate(means))), "std": float(np.median(np.concatenate(stds)))}


def _is_norm(node: Any) -> bool:
    return isinstance(node, Mapping) and "mean" in node
