"""Pooled batch normalization in float64 NumPy, written from the formulas and independent of the library."""

import numpy as np


def forward_and_gradients(x, w, scale, bias, mask, *, axis, epsilon, sets=None, averaged=False):
    """Computes y, and the gradients of Re sum(conj(w) y), for inputs of shape (devices, batch, ...).

    Args:
      x: the input.
      w: the weights of the loss.
      scale: shape (*features).
      bias: shape (*features).
      mask: None, or broadcastable to `x`.
      axis: the feature axis or axes of a device's share.
      epsilon: added to the variance.
      sets: disjoint lists of the global indices of examples that are normalised together; None: one set of all.
      averaged: return for each device the mean of mean, var and count over all sets that have a position, in place of
        the values of the device's own set.

    Returns:
      A dict of y and dx, of the shape of `x`; dscale and dbias, of shape (*features); "terms", the sum of the
      magnitudes of the terms that dscale and dbias are sums of; and mean, var and count, of shape (devices, *features).
    """
    kind = np.complex128 if np.iscomplexobj(x) else np.float64
    x, w = np.asarray(x, kind), np.asarray(w, kind)
    devices, batch = x.shape[:2]
    m = np.ones(x.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask), x.shape)
    sets = [list(range(devices * batch))] if sets is None else sets
    features = sorted(a % (x.ndim - 1) for a in ([axis] if isinstance(axis, int) else axis))
    shape = tuple(x.shape[1 + f] for f in features)

    def flat(a):
        return a.reshape(-1, *a.shape[2:])

    y, dx = np.zeros_like(flat(x)), np.zeros_like(flat(x))
    dscale, dbias = np.zeros(shape), np.zeros(shape, kind)
    moments, terms = [], 0.0
    for chosen in sets:
        one = _one_set(flat(x)[chosen], flat(w)[chosen], scale, bias, flat(m)[chosen], features, epsilon)
        y[chosen], dx[chosen] = one["y"], one["dx"]
        dscale, dbias = dscale + one["dscale"], dbias + one["dbias"]
        terms = terms + one["terms"]
        moments.append([one["mean"], one["var"], one["count"]])
    moments = [np.stack(kind) for kind in zip(*moments, strict=True)]
    if averaged:
        alive = moments[2] > 0
        number = np.maximum(alive.sum(0), 1)
        mean = np.where(alive, moments[0], 0).sum(0) / number
        var = np.where(alive.any(0), np.where(alive, moments[1], 0).sum(0) / number, 1)
        per_device = [np.stack([a] * devices) for a in (mean, var, moments[2].sum(0) / number)]
    else:
        own = [next(i for i, chosen in enumerate(sets) if d * batch in chosen) for d in range(devices)]
        per_device = [a[own] for a in moments]
    return {
        "y": y.reshape(x.shape),
        "dx": dx.reshape(x.shape),
        "dscale": dscale,
        "dbias": dbias,
        "terms": terms,
        **dict(zip(("mean", "var", "count"), per_device, strict=True)),
    }


def _one_set(x, w, scale, bias, m, features, epsilon):
    reduced = tuple(i for i in range(x.ndim) if i not in features)
    wide = tuple(x.shape[i] if i in features else 1 for i in range(x.ndim))
    n = m.sum(axis=reduced, keepdims=True)
    safe = np.maximum(n, 1)
    mean = np.where(m, x, 0).sum(axis=reduced, keepdims=True) / safe
    var = (np.abs(np.where(m, x - mean, 0)) ** 2).sum(axis=reduced, keepdims=True) / safe
    var = np.where(n > 0, var, 1)
    std = np.sqrt(var + epsilon)
    x_hat = (x - mean) / std
    g = np.asarray(scale, np.float64).reshape(wide) / std
    sum_w = w.sum(axis=reduced, keepdims=True)
    sum_wx = np.real(np.conj(x_hat) * w).sum(axis=reduced, keepdims=True)
    dx = np.where(n > 0, g * (w - m * (sum_w + x_hat * sum_wx) / safe), 0)
    shape = tuple(x.shape[i] for i in features)
    return {
        "y": g * (x - mean) + np.asarray(bias).reshape(wide),
        "dx": dx,
        "dscale": np.where(n > 0, sum_wx, 0).reshape(shape),
        "dbias": np.where(n > 0, sum_w, 0).reshape(shape),
        "terms": max(np.abs(w).sum(axis=reduced).max(), np.abs(w * x_hat).sum(axis=reduced).max()),
        "mean": mean.reshape(shape),
        "var": var.reshape(shape),
        "count": n.reshape(shape),
    }


def normwise_error(a, b):
    """Returns max|a - b| / max|b|, the error measure of all comparisons."""
    kind = np.complex128 if np.iscomplexobj(a) or np.iscomplexobj(b) else np.float64
    a, b = np.asarray(a, kind), np.asarray(b, kind)
    assert a.shape == b.shape, (a.shape, b.shape)
    assert np.isfinite(a).all()
    return np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)
