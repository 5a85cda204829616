"""How many digits a layer keeps where the mean is far from zero, and where it is far from the shift."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from batchnorm_jax import Moments, batch_norm

EPSILON = 1e-5
# mean/std of the input, with no guess of the mean: the first step of training.
RATIOS = (1.0, 1e2, 1e4, 1e5)
# How far the shift is from the mean, in standard deviations, at a mean/std of 100.
DISTANCES = (0, 1, 3, 5, 10)


def run(features: int = 256, positions: int = 4096) -> list[dict[str, Any]]:
    """Normwise errors against float64 NumPy, the greatest over the features.

    Returns:
      A row a way to compute and a place of the mean: the errors of the variance and of y.
    """
    rows = []
    for ratio in RATIOS:
        x = _draw(ratio, features, positions)
        rows += [
            {"what": f"mean/std {ratio:g}, no shift", "name": name, **errors(x, layer)}
            for name, layer in {
                "psum": lambda x: batch_norm(x, epsilon=EPSILON),
                "all_gather": lambda x: batch_norm(x, epsilon=EPSILON, collective="all_gather"),
                "flax": lambda x: flax_layer(x, use_fast_variance=True),
                "flax_stable": lambda x: flax_layer(x, use_fast_variance=False),
            }.items()
        ]
        # The default, once there is a running mean: the shift.
        near = jnp.asarray(x.mean(0, dtype=np.float64) + 1, jnp.float32)
        layer = lambda x, shift=near: batch_norm(x, epsilon=EPSILON, shift=shift)  # noqa: E731
        rows.append({"what": f"mean/std {ratio:g}, shift 1 std off", "name": "default", **errors(x, layer)})
    for distance in DISTANCES:
        x = _draw(100.0, features, positions)
        shift = jnp.asarray(x.mean(0, dtype=np.float64) + distance, jnp.float32)
        layer = lambda x, shift=shift: batch_norm(x, epsilon=EPSILON, shift=shift)  # noqa: E731
        rows.append({"what": f"mean/std 100, shift {distance} std off", "name": "psum", **errors(x, layer)})
    return rows


def _draw(ratio: float, features: int, positions: int) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(positions, features)) + ratio).astype(np.float32)


def errors(x: np.ndarray, layer) -> dict[str, float]:
    """The normwise errors of the variance and of y that a layer without parameters gives of `x`, against float64."""
    y, moments = jax.jit(layer)(jnp.asarray(x))
    exact = x.astype(np.float64)
    mean, var = exact.mean(0), exact.var(0)
    wanted = (exact - mean) / np.sqrt(var + EPSILON)

    def error(got, want):
        return float(np.max(np.abs(np.asarray(got, np.float64) - want)) / np.max(np.abs(want)))

    return {"var": error(moments.var, var), "y": error(y, wanted)}


def flax_layer(x: jax.Array, *, use_fast_variance: bool):
    """Returns y and the `Moments` of Flax's layer without parameters."""
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
