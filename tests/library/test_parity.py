"""batch_norm against the float64 reference over the product of transforms, dtypes, masks, pools and layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from allpairspy import AllPairs
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm_jax import batch_norm
from tests import reference
from tests.parity import (
    BATCH,
    COLLECTIVES,
    DEVICES,
    DTYPES,
    EPSILON,
    LAYOUTS,
    MASKS,
    POOLS,
    assert_parity,
    compare,
    draw,
    mask_of,
    run,
)
from tests.transforms import TRANSFORMS

UNIT_ROUNDOFF = 2.0**-24
# Of a sum in blocks.
A_FEW_ROUNDINGS = 8 * UNIT_ROUNDOFF
# Of a feature, where a test is of the error of its sums.
POSITIONS = 512
# Every pair of values of two factors is in some case.
CASES = [tuple(case) for case in AllPairs([list(f) for f in (TRANSFORMS, DTYPES, MASKS, POOLS, LAYOUTS, COLLECTIVES)])]


@pytest.mark.parametrize(("transform", "dtype", "mask", "pool", "layout", "collective"), CASES)
def test_parity_with_the_reference(transform, dtype, mask, pool, layout, collective):
    impossible = None
    if pool == "groups" and not TRANSFORMS[transform].has_groups:
        impossible = "give axis_name too"
    if pool == "span over devices" and transform == "jit_explicit":
        impossible = "would cross them"
    with jax.enable_x64(dtype == "float64"):
        if impossible:
            with pytest.raises(ValueError, match=impossible):
                compare(transform, dtype, mask, pool, layout, collective)
        else:
            compare(transform, dtype, mask, pool, layout, collective)


def test_the_cases_hold_every_pair():
    factors = [list(f) for f in (TRANSFORMS, DTYPES, MASKS, POOLS, LAYOUTS, COLLECTIVES)]
    for i, first in enumerate(factors):
        for j in range(i):
            assert {(c[i], c[j]) for c in CASES} == {(a, b) for a in first for b in factors[j]}


@settings(max_examples=15, deadline=None)
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
    x, w, scale, bias = draw(seed, shape, (channels,), "float32", offset)
    mask = mask_of("ragged", shape) if masked else None
    got = run(transform, x, w, scale, bias, mask, shift=jnp.zeros(channels))
    want = reference.forward_and_gradients(x, w, scale, bias, mask, axis=-1, epsilon=EPSILON)
    distance = float(np.max(want["mean"] ** 2 / (want["var"] + EPSILON)))
    # Of the sums; and about eight of what is done to one number: differences, squares, the division, the product.
    tolerance = max(DTYPES["float32"], (roundings(devices * batch * 6) + 8 * UNIT_ROUNDOFF) * (1 + distance))
    for name in ("dscale", "dbias"):
        # A sum whose terms cancel by chance has the error of its terms.
        assert np.max(np.abs(got.pop(name) - want[name])) <= tolerance * want["terms"], name
    assert_parity(got, want, tolerance)


def roundings(number):
    """The error to expect of a float32 sum of that many numbers, relative to the sum of their magnitudes.

    Added one after another: the square root of their number, in roundings (Higham and Mary, 2019,
    "A new approach to probabilistic rounding error analysis"). That is XLA's order for fewer than eight features on a
    CPU with AVX-512; mostly it sums in blocks, at a few roundings.
    """
    return number**0.5 * UNIT_ROUNDOFF


@pytest.mark.parametrize("distance", [0, 2, 5])
@pytest.mark.parametrize("ratio", [0, 1e4])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_near_the_shift_everything_is_right_to_1e_5(transform, ratio, distance):
    """At any distance of the mean from zero, up to five standard deviations from the shift."""
    errors = errors_at(transform, "psum", ratio, distance, features=256)
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("distance", [0, 2, 5])
@pytest.mark.parametrize("ratio", [0, 1e4])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_with_few_features_the_error_is_that_of_a_sum(transform, ratio, distance):
    errors = errors_at(transform, "psum", ratio, distance, features=5)
    assert max(errors.values()) <= roundings(POSITIONS) * (1 + distance**2), errors


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_ten_deviations_from_the_shift_the_error_is_what_the_docstring_says(transform):
    errors = errors_at(transform, "psum", 1e2, 10, features=256)
    # The largest of 256 errors is up to twice what is to be expected of one.
    sums = 2 * roundings(POSITIONS) if error_of_a_plain_sum(256) > A_FEW_ROUNDINGS else A_FEW_ROUNDINGS
    assert max(errors.values()) <= sums * (1 + 10**2), errors


def error_of_a_plain_sum(features):
    """The greatest relative error of XLA's own sum of as many positive numbers: its order differs by JAX and CPU."""
    shape = (DEVICES, BATCH, POSITIONS // (DEVICES * BATCH), features)
    squares = jnp.asarray(np.random.default_rng(3).normal(10, 1, size=shape) ** 2, jnp.float32)
    got, want = jax.jit(lambda x: x.sum((0, 1, 2)))(squares), np.asarray(squares, np.float64).sum((0, 1, 2))
    return np.max(np.abs(np.asarray(got, np.float64) - want) / want)


@pytest.mark.xfail(reason="two float32 sums per feature do not hold the variance so far from the shift", strict=False)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_ten_deviations_from_the_shift_everything_is_right_to_1e_5(transform):
    errors = errors_at(transform, "psum", 1e2, 10, features=256)
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("ratio", [1, 1e2, 1e4, 1e5])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_accurate_collective_needs_no_shift(transform, ratio):
    """collective="all_gather", from the first step, with no guess of the mean."""
    errors = errors_at(transform, "all_gather", ratio, None)
    assert max(errors.values()) <= 1e-5, errors
    assert max(errors["mean"], errors["var"]) <= 1e-6, errors


def errors_at(transform, collective, ratio, distance, features=5):
    """The normwise errors where mean/std is `ratio` and the shift `distance` deviations off (None: no shift).

    That of the mean is relative to the input's root mean square: a mean that is 0 by chance has no digits to be right.
    """
    shape = (DEVICES, BATCH, POSITIONS // (DEVICES * BATCH), features)
    r = np.random.default_rng(3)
    x = jnp.asarray(r.normal(size=shape) + ratio, jnp.float32)
    w = jnp.asarray(r.normal(size=shape), jnp.float32)
    scale, bias = (
        jnp.asarray(r.uniform(0.5, 1.5, features), jnp.float32),
        jnp.asarray(r.normal(size=features), jnp.float32),
    )
    shift = None if distance is None else jnp.asarray(np.asarray(x, np.float64).mean((0, 1, 2)) + distance, jnp.float32)
    got = run(transform, x, w, scale, bias, shift=shift, collective=collective)
    want = reference.forward_and_gradients(x, w, scale, bias, None, axis=-1, epsilon=EPSILON)
    errors = {name: reference.normwise_error(got[name], want[name]) for name in got if name != "count"}
    size = np.sqrt(np.max(want["mean"] ** 2 + want["var"]))
    return errors | {"mean": np.max(np.abs(got["mean"] - want["mean"])) / size}


def test_a_mask_may_differ_per_feature():
    x, w, scale, bias = draw(4, (8, 6, 3), (3,), "float32")
    mask = np.random.default_rng(5).random(x.shape) < 0.5
    for transform in TRANSFORMS:
        for collective in COLLECTIVES:
            got = run(transform, x, w, scale, bias, mask, collective=collective)
            want = reference.forward_and_gradients(x, w, scale, bias, mask, axis=-1, epsilon=EPSILON)
            assert_parity(got, want, DTYPES["float32"])


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_span_does_not_depend_on_the_number_of_devices(devices):
    """32 examples in spans of 8, inside a device or over several: the same results."""
    x, w, scale, bias = draw(5, (1, 32, 3, 4), (4,), "float32")
    want = run("one_device", x, w, scale, bias, span=8)
    got = run("shard_map", *(a.reshape(devices, -1, 3, 4) for a in (x, w)), scale, bias, span=8)
    for name in ("y", "dx"):
        assert reference.normwise_error(got[name].reshape(x.shape), want[name]) < 1e-5
    for name in ("mean", "var", "count"):
        assert reference.normwise_error(got[name][0], want[name][0]) < 1e-5
    for name in ("dscale", "dbias"):
        assert reference.normwise_error(got[name], want[name]) < 1e-5


def test_spans_and_groups_that_do_not_fit_are_refused():
    x = jnp.ones((8, 16, 3))
    with pytest.raises(
        ValueError, match=r"span=48 does not divide the 128 examples \(8 devices x 16\); spans that work"
    ):
        jax.vmap(lambda x: batch_norm(x, span=48, axis_name="i")[0], axis_name="i")(x)
    for groups in ([[0, 1], [2, 3]], [[0, 1, 2], [3, 4, 5, 6, 7]], [[0] * 4, [4, 5, 6, 7]]):
        with pytest.raises(ValueError, match="each of the 8 participants"):
            jax.vmap(lambda x, g=groups: batch_norm(x, axis_index_groups=g, axis_name="i")[0], axis_name="i")(x)
    with pytest.raises(ValueError, match="feature axis"):
        batch_norm(x, axis=0, span=2)
