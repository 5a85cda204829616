"""Measures the exactness of a layer where the mean is far from zero, and where the shift is far from the mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from batchnorm_jax import Moments, batch_norm

from ...records.benchmarks.norm import NO_SHIFT, AccuracyRow

EPSILON = 1e-5
# Values of mean/std of the input.
RATIOS = (1.0, 1e2, 1e4, 1e5)
# Distances of the shift from the mean, in standard deviations, at a mean/std of 100.
DISTANCES = (0, 1, 3, 5, 10)


def run(features: int = 256, positions: int = 4096) -> list[AccuracyRow]:
    """Measures normwise errors against float64 NumPy, the greatest over the features.

    Args:
      features: the number of features.
      positions: the number of positions that the statistics are computed from.

    Returns:
      One row per way to compute and position of the mean.
    """
    rows = []
    for ratio in RATIOS:
        x = _draw(ratio, features, positions)
        rows += [
            AccuracyRow(what=f"mean/std {ratio:g}, {NO_SHIFT}", name=name, **errors(x, layer))
            for name, layer in {
                "psum": lambda x: batch_norm(x, epsilon=EPSILON),
                "all_gather": lambda x: batch_norm(x, epsilon=EPSILON, collective="all_gather"),
                "flax": lambda x: flax_layer(x, use_fast_variance=True),
                "flax_stable": lambda x: flax_layer(x, use_fast_variance=False),
            }.items()
        ]
        # The default after the first update: the running mean is the shift.
        rows.append(
            AccuracyRow(what=f"mean/std {ratio:g}, shift 1 std off", name="default", **errors(x, _shifted(x, 1)))
        )
    for distance in DISTANCES:
        x = _draw(100.0, features, positions)
        rows.append(
            AccuracyRow(what=f"mean/std 100, shift {distance} std off", name="psum", **errors(x, _shifted(x, distance)))
        )
    return rows


def _shifted(x: np.ndarray, distance: float) -> Callable[[jax.Array], Any]:
    """Returns the layer whose shift lies at a distance from the mean of x."""
    shift = jnp.asarray(x.mean(0, dtype=np.float64) + distance, jnp.float32)
    return lambda x: batch_norm(x, epsilon=EPSILON, shift=shift)


def _draw(ratio: float, features: int, positions: int) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(positions, features)) + ratio).astype(np.float32)


def errors(x: np.ndarray, layer) -> dict[str, float]:
    """Returns the normwise errors against float64 of a layer without parameters: of the variance and of y."""
    y, moments = jax.jit(layer)(jnp.asarray(x))
    exact = x.astype(np.float64)
    mean, var = exact.mean(0), exact.var(0)
    wanted = (exact - mean) / np.sqrt(var + EPSILON)

    def error(got, want):
        return float(np.max(np.abs(np.asarray(got, np.float64) - want)) / np.max(np.abs(want)))

    return {"var": error(moments.var, var), "y": error(y, wanted)}


def flax_layer(x: jax.Array, *, use_fast_variance: bool):
    """Applies Flax's layer without parameters, and returns y and its `Moments`."""
    norm = nn.BatchNorm(
        use_running_average=False,
        momentum=0.0,
        epsilon=EPSILON,
        use_bias=False,
        use_scale=False,
        use_fast_variance=use_fast_variance,
    )
    y, updates = norm.apply(norm.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    stats: Any = updates["batch_stats"]
    return y, Moments(stats["mean"], stats["var"], jnp.asarray(len(x)))
