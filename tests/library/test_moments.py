"""normalize, pool, update_running and conditioning: what is done with moments that are there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm_jax import Moments, conditioning, normalize, pool, update_running
from tests import reference
from tests.parity import EPSILON, draw


def test_normalize_against_numpy():
    x, residual, scale, bias = draw(10, (32, 3, 5), (5,), "float32")
    mean, var = jnp.arange(5.0), jnp.arange(1.0, 6.0)
    x64, mean64, var64 = (np.asarray(a, np.float64) for a in (x, mean, var))
    want = np.asarray(scale) * (x64 - mean64) / np.sqrt(var64 + EPSILON) + np.asarray(bias)
    assert reference.normwise_error(normalize(x, mean, var, scale, bias, epsilon=EPSILON), want) <= 1e-6
    got = normalize(x, mean, var, scale, bias, epsilon=EPSILON, residual=residual, activation=jax.nn.relu)
    assert reference.normwise_error(got, np.maximum(want + np.asarray(residual, np.float64), 0)) <= 1e-6


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5), seed=st.integers(0, 2**31), offset=st.floats(-1e3, 1e3)
)
def test_pooled_moments_are_those_of_the_union(sizes, seed, offset):
    r = np.random.default_rng(seed)
    sets = [(r.normal(size=(n, 3)) + offset).astype(np.float32) for n in sizes]
    mean = jnp.asarray(np.stack([s.mean(0, dtype=np.float64) if len(s) else np.full(3, 7) for s in sets]), jnp.float32)
    var = jnp.asarray(np.stack([s.var(0, dtype=np.float64) if len(s) else np.ones(3) for s in sets]), jnp.float32)
    got = pool(Moments(mean, var, jnp.asarray(sizes)))
    whole = np.concatenate(sets).astype(np.float64)
    assert got.count == len(whole)
    if len(whole):
        np.testing.assert_allclose(got.mean, whole.mean(0), rtol=1e-6, atol=1e-6 * (1 + abs(offset)))
        # The means that go in are rounded to float32.
        np.testing.assert_allclose(got.var, whole.var(0), rtol=1e-4, atol=1e-4 + 1e-6 * abs(offset))
    else:
        np.testing.assert_array_equal(got.mean, 0)
        np.testing.assert_array_equal(got.var, 1)


def test_pool_refuses_different_numbers_of_sets():
    with pytest.raises(ValueError, match=r"pool: .*\(2, 3\), \(2, 3\) and \(4,\)"):
        pool(Moments(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(4)))


def test_running_averages():
    old = (jnp.array([1.0, 1.0]), jnp.array([2.0, 2.0]))
    batch = Moments(jnp.array([3.0, jnp.nan]), jnp.array([4.0, 4.0]), jnp.array(5.0))
    mean, var = update_running(*old, batch, momentum=0.75, unbiased=True, skip_nonfinite=True)
    np.testing.assert_allclose(mean, [1.5, 1.0])
    np.testing.assert_allclose(var, [0.75 * 2 + 0.25 * 4 * 5 / 4, 2.0])
    assert np.isnan(update_running(*old, batch, momentum=0.75)[0][1])


def test_running_averages_in_half_precision_stay_where_the_batches_are():
    mean = jnp.linspace(0.5, 2, 128).astype(jnp.bfloat16)
    batch = Moments(mean.astype(jnp.float32), jnp.ones(128), jnp.array(8.0))
    running = mean, jnp.ones(128, jnp.bfloat16)
    for _ in range(100):
        running = update_running(*running, batch, momentum=0.99)
    np.testing.assert_array_equal(running[0], mean)


def test_conditioning_is_the_squared_distance_in_deviations():
    moments = Moments(jnp.array([3.0, 1.0, 0.0]), jnp.array([4.0, 1.0, 0.0]), jnp.array(8.0))
    assert conditioning(moments, jnp.array([-3.0, 0.0, 0.0])).item() == 9.0
    assert conditioning(moments._replace(count=jnp.array(0.0)), jnp.array([-3.0, 0.0, 0.0])).item() == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: normalize(x.astype(jnp.int32), jnp.ones(3), jnp.ones(3)), r"normalize: .*floating point.*int32"),
        (lambda x: normalize(x, jnp.ones(3), jnp.ones(3), axis=5), r"normalize: feature axis 5 is out of range"),
        (lambda x: normalize(x, jnp.ones(2), jnp.ones(3)), r"normalize: mean has shape \(2,\).*\(3,\)"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((4, 3)))
