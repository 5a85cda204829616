"""Measures the distance between the statistics of a model's activations and those that normalise them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from batchnorm_jax import Moments
from batchnorm_jax.linen import moments_fn

from ..training.evaluation.checkpoint import restore
from ..training.step.single import standardised

# The number of training images whose activations are measured.
SHIFT_EXAMPLES = 1_000


def shift_of(workdir: Path) -> dict[str, float]:
    """Returns the shift of a finished run, as the fields of `records.questions.norm.Shift`.

    Args:
      workdir: the folder of the run.

    Returns:
      Medians over all features, from 1,000 training images: `mean`, |mean - fixed mean| / fixed standard deviation, and
      `std`, the ratio of the standard deviations.
    """
    restored = restore(workdir, num_devices=1)
    train, state = restored.data.train, restored.state
    images = train.read(np.random.default_rng(0).permutation(train.size)[:SHIFT_EXAMPLES]).images
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
