"""Pooled batch normalization in float64 NumPy, written from the formulas and independent of the library."""

import numpy as np


def forward_and_gradients(x, w, scale, bias, mask, *, axis, epsilon):
    """For inputs (devices, batch, ...) pooled over every device: y, and the gradients of sum(w y).

    Returns a dict of y, dx of the shape of `x`; dscale, dbias, mean, var, of shape (*features); count.
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    features = sorted(a % (x.ndim - 1) + 1 for a in ([axis] if isinstance(axis, int) else axis))
    reduced = tuple(i for i in range(x.ndim) if i not in features)
    wide = tuple(x.shape[i] if i in features else 1 for i in range(x.ndim))
    m = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    n = m.sum(axis=reduced).reshape(wide)
    safe = np.maximum(n, 1)
    mean = np.where(m, x, 0).sum(axis=reduced, keepdims=True) / safe
    var = (np.where(m, x - mean, 0) ** 2).sum(axis=reduced, keepdims=True) / safe
    var = np.where(n > 0, var, 1)
    std = np.sqrt(var + epsilon)
    x_hat = (x - mean) / std
    g = np.reshape(scale, wide) / std
    sum_w = w.sum(axis=reduced, keepdims=True)
    sum_wx = (w * x_hat).sum(axis=reduced, keepdims=True)
    dx = np.where(n > 0, g * (w - m * (sum_w + x_hat * sum_wx) / safe), 0)
    shape = tuple(x.shape[i] for i in features)
    return {
        "y": g * (x - mean) + np.reshape(bias, wide),
        "dx": dx,
        "dscale": np.where(n > 0, sum_wx, 0).reshape(shape),
        "dbias": np.where(n > 0, sum_w, 0).reshape(shape),
        "mean": mean.reshape(shape),
        "var": var.reshape(shape),
        "count": n.reshape(shape),
    }


def normwise_error(a, b):
    """max|a - b| / max|b|, the error measure of every comparison here."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    assert np.isfinite(a).all()
    return np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)
