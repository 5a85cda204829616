"""A curve of a constant and a part in proportion, fitted to many sets of measurements at once, some of them censored.

y = (a + c x) exp(noise),   a, c >= 0,   noise ~ Normal(0, sigma)
"""

import math

import numpy as np
import scipy

# A part of the curve that is this many times smaller than the other at every point counts as none.
_REACH = 1e6
# The least relative noise. Measurements on the curve to the last digit would have an infinite likelihood.
_FLOOR = 1e-6


def fit_curves(log_x: np.ndarray, log_y: np.ndarray, censored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the logs of a and c, and sigma, by maximum likelihood.

    With c / a held fixed, only the location of log y and its noise are left to find; the best c / a is looked for from
    one end, where the curve is a constant, to the other, where it is a line through 0.

    Args:
      log_x: shape (points,).
      log_y: shape (sets, points).
      censored: shape (sets, points), True where y is only known to be larger than `log_y` says.

    Returns:
      Three arrays of shape (sets,); the log of a constant or slope that is none is -inf.
    """

    def location(log_ratio, rows=slice(None)):
        log_ratio = np.asarray(log_ratio)[..., None]
        return _location(log_y[rows] - np.logaddexp(0.0, log_ratio + log_x), censored[rows])

    low, high = -log_x.max() - math.log(_REACH), -log_x.min() + math.log(_REACH)
    grid, step = np.linspace(low, high, 3 + int((high - low) / 2), retstep=True)
    best = location(grid[:, None])[2].argmin(axis=0)
    ratio = grid[best]
    inside = np.flatnonzero((best > 0) & (best < len(grid) - 1))
    if inside.size:
        # SciPy does not load this module by itself; and its import is slow, so not for `--help`.
        from scipy.optimize import elementwise

        found = elementwise.find_minimum(
            lambda ratio, rows: location(ratio, rows.astype(int))[2],
            (ratio[inside] - step, ratio[inside], ratio[inside] + step),
            args=(inside,),
            tolerances={"xatol": 1e-6, "xrtol": 0.0, "fatol": 0.0, "frtol": 0.0},
        )
        # It fails where rounding alone tells one ratio from another: any of them will do.
        ratio[inside] = np.where(found.success, found.x, ratio[inside])
    constant, noise, _ = location(ratio)
    return (
        np.where(best == len(grid) - 1, -np.inf, constant),
        np.where(best == 0, -np.inf, constant + ratio),
        noise,
    )


def _location(residual: np.ndarray, censored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean, sigma and loss, shape (sets,), of normal numbers, some of which are lower bounds.

    In g = 1 / sigma and d = mean / sigma the log-likelihood is concave (Olsen, "Note on the uniqueness of the maximum
    likelihood estimator for the Tobit model", Econometrica, 1978):

        z = g r - d,   loss = sum over the known of (z^2 / 2 - log g) - sum over the censored of log Phi(-z)
    """
    known = np.sum(~censored, axis=-1)
    mean = residual.mean(axis=-1)
    g = 1 / np.sqrt(residual.var(axis=-1) + _FLOOR**2)
    if not censored.any():
        return mean, 1 / g, known * (0.5 - np.log(g))
    d = mean * g
    for _ in range(100):
        z = g[..., None] * residual - d[..., None]
        hazard = math.sqrt(2 / math.pi) / scipy.special.erfcx(z / math.sqrt(2))
        pull = np.where(censored, hazard, z)
        weight = np.where(censored, np.clip(hazard * (hazard - z), 0, 1), 1.0)
        total = np.sum(weight, axis=-1)
        centre = np.sum(weight * residual, axis=-1) / total
        # Newton's step in g and in d - centre g, which do not act on each other; g changes by a half at most.
        around = residual - centre[..., None]
        slope_g = known * (1 / g - g * _FLOOR**2) - np.sum(pull * around, axis=-1)
        slope_d = np.sum(pull, axis=-1)
        step_g = slope_g / (known * (1 / g**2 + _FLOOR**2) + np.sum(weight * around**2, axis=-1))
        step_d = slope_d / total + centre * step_g
        length = np.minimum(1.0, 0.5 * g / np.maximum(np.abs(step_g), 1e-300))
        g, d = g + length * step_g, d + length * step_d
        if np.all(slope_g * step_g + slope_d**2 / total < 1e-8):
            break
    z = g[..., None] * residual - d[..., None]
    loss = np.sum(np.where(censored, -scipy.special.log_ndtr(-z), z**2 / 2), axis=-1)
    return d / g, 1 / g, loss - known * (np.log(g) - (g * _FLOOR) ** 2 / 2)
