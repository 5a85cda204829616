"""batch_norm against the float64 reference, under every transform; its derivatives, collectives, residuals, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from batchnorm_jax import batch_norm, normalize
from tests import reference
from tests.transforms import AXIS, LOCAL_GRADIENTS, TRANSFORMS, make_mesh

TOLERANCE = {"float32": 1e-5, "bfloat16": 1.6e-2, "float16": 2e-3}
UNIT_ROUNDOFF = 2.0**-24
EPSILON = 1e-3


def run(transform, x, w, scale, bias, mask=None, shift=None, axis=-1):
    """y, dx with a row a device; dscale, dbias, mean, var, count reduced as that transform's user would."""

    def local(axis_name, sharded, replicated):
        x, w, *masks = sharded
        scale, bias, *shifts = replicated

        def loss(x, scale, bias):
            y, moments = batch_norm(
                x,
                scale,
                bias,
                axis=axis,
                epsilon=EPSILON,
                mask=masks[0] if masks else None,
                shift=shifts[0] if shifts else None,
                axis_name=axis_name,
            )
            return jnp.sum(y * w), (y, moments)

        (dx, dscale, dbias), (y, moments) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
        return (y, dx), (dscale, dbias, *moments)

    sharded = [x, w] + ([] if mask is None else [mask])
    replicated = [scale, bias] + ([] if shift is None else [shift])
    (y, dx), (dscale, dbias, mean, var, count) = TRANSFORMS[transform](local, sharded, replicated)
    for same in (mean, var, count):
        np.testing.assert_array_equal(same, np.broadcast_to(same[:1], same.shape))
    reduce = np.sum if transform in LOCAL_GRADIENTS else lambda a, axis: np.asarray(a)[0]
    dscale, dbias = reduce(np.asarray(dscale, np.float64), axis=0), reduce(np.asarray(dbias, np.float64), axis=0)
    return {"y": y, "dx": dx, "dscale": dscale, "dbias": dbias, "mean": mean[0], "var": var[0], "count": count[0]}


def draw(seed, shape, features, dtype, offset=1.0):
    r = np.random.default_rng(seed)
    x = jnp.asarray(r.normal(size=shape) * 2 + offset, dtype)
    w = jnp.asarray(r.normal(size=shape), dtype)
    scale = jnp.asarray(r.uniform(0.5, 1.5, features), jnp.float32)
    return x, w, scale, jnp.asarray(r.normal(size=features), jnp.float32)


def mask_of(kind, shape):
    """Masks of shape (devices, batch, 1, ...) with unequal numbers of examples on the devices."""
    r = np.random.default_rng(7)
    mask = r.random(shape[:2]) < 0.6
    mask[0, 0] = True
    if kind == "one device all masked":
        mask[-1] = False
    if kind == "everything masked":
        mask[:] = False
    return None if kind == "none" else mask.reshape(*shape[:2], *(1,) * (len(shape) - 2))


MASKS = ("none", "ragged", "one device all masked", "everything masked")
LAYOUTS = {
    "channel last": ((8, 3, 4, 2, 5), -1, (5,)),
    "channel first": ((8, 3, 5, 2, 4), 1, (5,)),
    "two feature axes": ((8, 3, 4, 2, 5), (1, -1), (4, 5)),
}


def assert_parity(got, want, tolerance):
    for name, value in got.items():
        expected = want[name].flat[0] if name == "count" and np.ndim(value) == 0 else want[name]
        assert reference.normwise_error(value, expected) <= tolerance, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_parity_with_the_reference(transform, kind, layout):
    shape, axis, features = LAYOUTS[layout]
    x, w, scale, bias = draw(0, shape, features, jnp.float32)
    mask = mask_of(kind, shape)
    got = run(transform, x, w, scale, bias, mask, axis=axis)
    want = reference.forward_and_gradients(x, w, scale, bias, mask, axis=axis, epsilon=EPSILON)
    assert_parity(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_parity_in_half_precision(transform, dtype):
    """The tolerance is that of one rounding of the result: the sums are taken in float32."""
    x, w, scale, bias = draw(1, (8, 4, 3, 5), (5,), dtype)
    mask = mask_of("ragged", x.shape)
    got = run(transform, x, w, scale, bias, mask)
    assert got["dx"].dtype == dtype and got["mean"].dtype == jnp.float32
    want = reference.forward_and_gradients(x, w, scale, bias, mask, axis=-1, epsilon=EPSILON)
    assert_parity(got, want, TOLERANCE[dtype])
    assert reference.normwise_error(got["mean"], want["mean"]) <= TOLERANCE["float32"]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_parity_in_float64(transform, x64):
    x, w, scale, bias = (a.astype(jnp.float64) for a in draw(2, (8, 4, 3, 5), (5,), jnp.float64))
    got = run(transform, x, w, scale, bias)
    want = reference.forward_and_gradients(x, w, scale, bias, None, axis=-1, epsilon=EPSILON)
    assert_parity(got, want, 1e-12)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    transform=st.sampled_from(sorted(TRANSFORMS)),
    devices=st.sampled_from([1, 2, 4, 8]),
    batch=st.integers(1, 5),
    channels=st.integers(1, 7),
    masked=st.booleans(),
    offset=st.floats(-20, 20),
)
def test_parity_at_random(seed, transform, devices, batch, channels, masked, offset):
    """Any number of devices and examples; a mean far from the shift costs the digits that the docstring says."""
    shape = (devices, batch, 6, channels)
    x, w, scale, bias = draw(seed, shape, (channels,), jnp.float32, offset)
    mask = mask_of("ragged", shape) if masked else None
    got = run(transform, x, w, scale, bias, mask, shift=jnp.zeros(channels))
    want = reference.forward_and_gradients(x, w, scale, bias, mask, axis=-1, epsilon=EPSILON)
    distance = float(np.max(want["mean"] ** 2 / (want["var"] + EPSILON)))
    assert_parity(got, want, max(TOLERANCE["float32"], 4 * UNIT_ROUNDOFF * (1 + distance)))


@pytest.mark.parametrize("distance", [0, 1, 5, 10])
@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e4])
def test_a_shift_keeps_the_variance_far_from_zero(ratio, distance):
    """Mean / deviation is `ratio`; the shift is `distance` deviations off. The bound is the docstring's, twice."""
    r = np.random.default_rng(3)
    x = (r.normal(size=(4096, 3)) + ratio).astype(np.float32)
    var = np.var(x.astype(np.float64), axis=0)
    shift = jnp.asarray(x.mean(axis=0, dtype=np.float64) + distance, jnp.float32)
    _, shifted = batch_norm(jnp.asarray(x), shift=shift)
    assert reference.normwise_error(shifted.var, var) <= 4 * UNIT_ROUNDOFF * (1 + distance**2)
    _, plain = batch_norm(jnp.asarray(x))
    assert reference.normwise_error(plain.var, var) > 1e-4


def test_masked_positions_may_hold_nan():
    x = jnp.array([[1.0], [3.0], [jnp.nan]])
    mask = jnp.array([[True], [True], [False]])
    _, moments = batch_norm(x, mask=mask)
    assert moments.mean.item() == 2.0 and moments.var.item() == 1.0 and moments.count.item() == 2.0

    # The gradient does not see it either, as long as the loss does not.
    x, mask = jnp.array([[1.0], [3.0], [4.0], [jnp.nan]]), jnp.array([[True], [True], [True], [False]])

    def loss(x, scale, mask=None):
        y, _ = batch_norm(x, scale, mask=mask)
        return jnp.sum((y if mask is None else jnp.where(mask, y, 0)) ** 3)

    got = jax.grad(loss, (0, 1))(x, jnp.ones(1), mask)
    want = jax.grad(loss, (0, 1))(x[:3], jnp.ones(1))
    np.testing.assert_allclose(got[0], np.append(want[0], [[0.0]], axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5)
    assert jnp.abs(want[0]).max() > 0.1


def test_a_mask_may_differ_per_feature():
    x, w, scale, bias = draw(4, (8, 6, 3), (3,), jnp.float32)
    mask = np.random.default_rng(5).random(x.shape) < 0.5
    for transform in TRANSFORMS:
        got = run(transform, x, w, scale, bias, mask)
        want = reference.forward_and_gradients(x, w, scale, bias, mask, axis=-1, epsilon=EPSILON)
        assert_parity(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_every_order_and_mode(masked, x64):
    r = np.random.default_rng(6)
    x, scale, bias = r.normal(size=(6, 3)), r.uniform(0.5, 1.5, 3), r.normal(size=3)
    mask = r.random((6, 1)) < 0.7 if masked else None

    def function(x, scale, bias):
        y, moments = batch_norm(x, scale, bias, mask=mask)
        return y, moments.mean, moments.var

    check_grads(function, (x, scale, bias), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


def test_hessian_vector_products_agree():
    x, w, scale, bias = draw(8, (16, 4), (4,), jnp.float32)

    def loss(x):
        return jnp.sum(jnp.sin(batch_norm(x, scale, bias)[0]) * w)

    forward_over_reverse = jax.jvp(jax.grad(loss), (x,), (w,))[1]
    reverse_over_reverse = jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), w))(x)
    assert reference.normwise_error(forward_over_reverse, reverse_over_reverse) < 1e-5


def test_finite_gradients_at_zero_variance():
    for x in (jnp.ones((5, 3)), jnp.full((1, 3), 2.0)):
        grads = jax.grad(lambda x, s: jnp.sum(batch_norm(x, s)[0] ** 2), (0, 1))(x, jnp.ones(3))
        assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("transform", ["pmap", "shard_map", "shard_map_unchecked"])
def test_one_collective_forward_and_one_backward(transform, masked):
    """Counted in compiled HLO of a train step, the gradients of x, scale and bias included, with their payloads."""
    features = 16
    x, w, scale, bias = draw(9, (8, 4, 3, 3, features), (features,), jnp.float32)
    mask = jnp.asarray(mask_of("ragged", x.shape)) if masked else None

    def local(x, w, mask, scale, bias):
        def loss(x, scale, bias):
            return jnp.sum(batch_norm(x, scale, bias, mask=mask, axis_name=AXIS)[0] * w)

        return jax.grad(loss, (0, 1, 2))(x, scale, bias)

    if transform == "pmap":
        mapped = jax.pmap(local, axis_name=AXIS, in_axes=(0, 0, 0, None, None))
        lowered = mapped.lower(x, w, mask, scale, bias)
    else:
        checked = transform == "shard_map"
        shard, whole = jax.P(AXIS), jax.P()
        parameters = whole if checked else shard
        mapped = jax.shard_map(
            lambda x, w, mask, scale, bias: local(*(a if a is None else a[0] for a in (x, w, mask)), scale, bias),
            mesh=make_mesh(8),
            in_specs=(shard, shard, shard, whole, whole),
            out_specs=(shard, parameters, parameters),
            check_vma=checked,
        )
        lowered = jax.jit(mapped).lower(x, w, mask, scale, bias)
    reduced = re.findall(r"(\S+) all-reduce(?:-start)?\(", lowered.compile().as_text())
    sizes = sorted(int(np.prod([int(d) for d in re.search(r"\[([\d,]+)\]", r).group(1).split(",")])) for r in reduced)
    assert sizes == [2 * features, 2 * features + masked]


def test_the_backward_pass_keeps_the_input_alone():
    """For a bfloat16 input, 2 bytes an element, and vectors of one number a feature."""
    x = jnp.ones((64, 8, 8, 16), jnp.bfloat16)
    _, pullback = jax.vjp(lambda x, s, b: batch_norm(x, s, b)[0], x, jnp.ones(16), jnp.zeros(16))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))
    assert kept <= 2 * x.size + 10 * 4 * 16


def test_normalize_against_numpy():
    x, _, scale, bias = draw(10, (32, 3, 5), (5,), jnp.float32)
    mean, var = jnp.arange(5.0), jnp.arange(1.0, 6.0)
    x64, mean64, var64 = (np.asarray(a, np.float64) for a in (x, mean, var))
    want = np.asarray(scale) * (x64 - mean64) / np.sqrt(var64 + EPSILON) + np.asarray(bias)
    assert reference.normwise_error(normalize(x, mean, var, scale, bias, epsilon=EPSILON), want) <= 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: batch_norm(x.astype(jnp.int32)), r"batch_norm: .*floating point.*int32.*astype"),
        (lambda x: batch_norm(x[:0]), r"batch_norm: .*\(0, 3\).*no positions"),
        (lambda x: batch_norm(x, axis=2), r"batch_norm: feature axis 2 is out of range .* rank 2; give one of -2 to 1"),
        (lambda x: batch_norm(x, jnp.ones(4)), r"batch_norm: scale has shape \(4,\).*shape \(3,\)"),
        (lambda x: batch_norm(x, mask=jnp.ones(4)), r"batch_norm: the mask has shape \(4,\).*give it shape \(4, 1\)"),
        (lambda x: batch_norm(x, axis_name="nowhere"), r"batch_norm: axis_name='nowhere' is not bound.*shard_map"),
        (lambda x: normalize(x, jnp.ones(3), jnp.ones(3), axis=5), r"normalize: feature axis 5 is out of range"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((4, 3)))
