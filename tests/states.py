"""The register of the states that running statistics may be in before a batch; generic tests run over all of them."""

import jax.numpy as jnp
import numpy as np

# Distances of the running mean from the batch mean, in standard deviations: other images, another scale, a loss spike.
DISTANCES = (1e1, 1e2, 1e3, 1e4, 1e6, 1e8)


def _stale(distance):
    def state(mean, std):
        return mean + distance * std, (std * max(1.0, distance)) ** 2

    return state


def _filled(mean_value, var_value):
    return lambda mean, std: (np.full_like(mean, mean_value), np.full_like(std, var_value))


def _near(mean, std):
    return mean + 0.3 * std, 1.2 * std**2


def _one_bad(mean, std):
    bad_mean, bad_var = (a.copy() for a in _near(mean, std))
    bad_mean[0], bad_var[0] = np.nan, np.nan
    bad_mean[-1] += 1e5 * std[-1]
    return bad_mean, bad_var


def _after_a_spike(mean, std):
    """Returns the statistics after one batch of 10,000 times the size, averaged in with momentum 0.9."""
    return 0.9 * mean + 0.1 * 1e4 * (mean + 5), 0.9 * std**2 + 0.1 * (1e4 * std) ** 2


# Functions from the batch's true mean and standard deviation, of shape (*features), to the running mean and variance.
STATES = {
    "fresh": lambda mean, std: (np.zeros_like(mean), np.ones_like(std)),
    "near": _near,
    **{f"stale by {distance:g}": _stale(distance) for distance in DISTANCES},
    "stale by -1e+04": lambda mean, std: (mean - 1e4 * std, (1e4 * std) ** 2),
    "NaN": _filled(np.nan, np.nan),
    "infinite": _filled(np.inf, np.inf),
    "negative infinity": _filled(-np.inf, np.nan),
    "greatest finite": _filled(3e38, 3e38),
    "no variance": _filled(0.0, 0.0),
    "one feature bad": _one_bad,
    "after a spike": _after_a_spike,
}


def running(state, x):
    """Returns the running mean and variance in a state, in float32, for an input with the features on its last axis."""
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    mean, var = STATES[state](x.mean(0), x.std(0))
    with np.errstate(over="ignore"):
        return jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32)
