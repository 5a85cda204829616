"""Compares `batch_norm` with the reference, and registers the dtypes, layouts, masks and pools to compare."""

import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax import batch_norm
from tests import reference
from tests.transforms import TRANSFORMS

DEVICES, BATCH = 8, 4
EPSILON = 1e-3

# Normwise tolerances by dtype. In half precision the result (2^-9 and 2^-12) and dx are rounded once, because sums are
# in float32.
DTYPES = {"float32": 1e-5, "bfloat16": 1.6e-2, "float16": 2e-3, "float64": 1e-12, "complex64": 1e-5}
LAYOUTS = {
    "channel last": ((4, 6, 5), -1, (5,)),
    "channel first": ((5, 6, 4), 1, (5,)),
    "two feature axes": ((4, 20, 5), (1, -1), (4, 5)),
}
MASKS = ("none", "ragged", "one device all masked", "everything masked")
# Which examples are normalised together: the options of batch_norm, and the global indices of the examples of each set.
EVEN_AND_ODD = [list(range(0, DEVICES, 2)), list(range(1, DEVICES, 2))]
POOLS = {
    "all": ({}, None),
    "groups": (
        {"axis_index_groups": EVEN_AND_ODD},
        [[d * BATCH + i for d in group for i in range(BATCH)] for group in EVEN_AND_ODD],
    ),
    "span inside a device": ({"span": 2}, [[i, i + 1] for i in range(0, DEVICES * BATCH, 2)]),
    "span over devices": (
        {"span": 2 * BATCH},
        [list(range(i, i + 2 * BATCH)) for i in range(0, DEVICES * BATCH, 2 * BATCH)],
    ),
}
COLLECTIVES = ("psum", "all_gather")


def draw(seed, shape, features, dtype, offset=1.0):
    r = np.random.default_rng(seed)

    def normal(shape):
        values = r.normal(size=shape)
        return values + 1j * r.normal(size=shape) if jnp.issubdtype(dtype, jnp.complexfloating) else values

    x = jnp.asarray(normal(shape) * 2 + offset, dtype)
    w = jnp.asarray(normal(shape), dtype)
    parameters = jnp.float64 if dtype == "float64" else jnp.float32
    return (
        x,
        w,
        jnp.asarray(r.uniform(0.5, 1.5, features), parameters),
        jnp.asarray(r.normal(size=features), parameters),
    )


def mask_of(kind, shape):
    """Returns a mask of shape (devices, batch, 1, ...) with different numbers of examples on the devices."""
    r = np.random.default_rng(7)
    mask = r.random(shape[:2]) < 0.6
    mask[0, 0] = True
    if kind == "one device all masked":
        mask[-1] = False
    if kind == "everything masked":
        mask[:] = False
    return None if kind == "none" else mask.reshape(*shape[:2], *(1,) * (len(shape) - 2))


def run(transform, x, w, scale, bias, mask=None, shift=None, *, norm=batch_norm, **options):
    """Runs a norm and its gradients under a transform.

    Returns:
      A dict of y, dx, mean, var and count, with one row per device, and of dscale and dbias, summed over the devices
      where a user of the transform would do so.
    """

    def local(axis_name, sharded, replicated):
        x, w, *masks = sharded
        scale, bias, *shifts = replicated

        def loss(x, scale, bias):
            y, moments = norm(
                x,
                scale,
                bias,
                mask=masks[0] if masks else None,
                shift=shifts[0] if shifts else None,
                axis_name=axis_name,
                epsilon=EPSILON,
                **options,
            )
            return jnp.sum((jnp.conj(w) * y).real), (y, moments)

        (dx, dscale, dbias), (y, moments) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
        # JAX's gradient of a real function of complex numbers is the conjugate of the direction of ascent.
        return (y, jnp.conj(dx)), (*moments, dscale, dbias)

    sharded = [x, w] + ([] if mask is None else [mask])
    replicated = [scale, bias] + ([] if shift is None else [shift])
    of_shares, (mean, var, count, *gradients) = TRANSFORMS[transform].run(local, sharded, replicated)
    got = {**dict(zip(("y", "dx"), of_shares, strict=False)), "mean": mean, "var": var, "count": count}
    for name, value in zip(("dscale", "dbias"), gradients, strict=False):
        rows = np.asarray(value, np.float64)
        got[name] = rows.sum(0) if TRANSFORMS[transform].local_gradients else rows[0]
    return got


def assert_parity(got, want, tolerance):
    for name, value in got.items():
        expected = want[name]
        if name == "count" and np.ndim(value) == 1:
            # One count for all features.
            expected = expected.reshape(expected.shape[0], -1)[:, 0]
        assert reference.normwise_error(value, expected) <= tolerance, name


def compare(transform, dtype, mask, pool, layout, collective, shift=None, seed=0):
    """Runs one combination of the registers, and raises an AssertionError if it differs from the reference."""
    rest, axis, features = LAYOUTS[layout]
    shape = (DEVICES, BATCH, *rest)
    x, w, scale, bias = draw(seed, shape, features, dtype)
    options, sets = POOLS[pool]
    mask = mask_of(mask, shape)
    got = run(transform, x, w, scale, bias, mask, shift, axis=axis, collective=collective, **options)
    averaged = "span" in options
    want = reference.forward_and_gradients(
        x, w, scale, bias, mask, axis=axis, epsilon=EPSILON, sets=sets, averaged=averaged
    )
    want["dbias"] = want["dbias"].real  # The bias is real even if the input is complex.
    statistics = {name: got.pop(name) for name in ("mean", "var", "count")}
    assert_parity(got, want, DTYPES[dtype])
    # Statistics are never in half precision, so their tolerance is that of float32 at most.
    assert_parity(statistics, want, min(DTYPES[dtype], DTYPES["float32"]))
    assert statistics["var"].dtype == ("float64" if dtype == "float64" else "float32")
