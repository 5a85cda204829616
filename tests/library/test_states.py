"""Training from any state of the running statistics: every interface under every transform, against the reference."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from allpairspy import AllPairs
from flax import nnx

import batchnorm_jax.linen
import batchnorm_jax.nnx
from batchnorm_jax import Moments, batch_norm, batch_renorm, conditioning
from experiments.benchmarking.norm import accuracy
from tests import reference
from tests.parity import BATCH, DEVICES, DTYPES, EPSILON, assert_parity, draw, mask_of, run
from tests.states import STATES, running
from tests.transforms import TRANSFORMS

MOMENTUM = 0.9


def _function(x, scale, bias, stats, mask, axis_name):
    return batch_norm(x, scale, bias, shift=stats[0], mask=mask, axis_name=axis_name, epsilon=EPSILON)[0]


def _accurate(x, scale, bias, stats, mask, axis_name):
    options = {"axis_name": axis_name, "epsilon": EPSILON, "collective": "all_gather"}
    return batch_norm(x, scale, bias, shift=stats[0], mask=mask, **options)[0]


def _renorm(x, scale, bias, stats, mask, axis_name):
    """With the limits of the first steps, in which nothing of the running statistics has a part."""
    options = {"axis_name": axis_name, "epsilon": EPSILON, "r_max": 1.0, "d_max": 0.0}
    return batch_renorm(x, *stats, scale, bias, mask=mask, **options)[0]


def _linen(kind):
    def call(x, scale, bias, stats, mask, axis_name):
        norm = kind(use_running_average=False, momentum=MOMENTUM, epsilon=EPSILON, axis_name=axis_name)
        variables = _variables(scale, bias, stats)
        if kind is batchnorm_jax.linen.BatchRenorm:
            variables["batch_stats"]["steps"] = jnp.zeros((), jnp.int32)
        return norm.apply(variables, x, mask=mask, mutable=["batch_stats"])[0]

    return call


def _synchronized_linen(x, scale, bias, stats, mask, axis_name):
    norm = nn.BatchNorm(use_running_average=False, momentum=MOMENTUM, epsilon=EPSILON)
    with batchnorm_jax.linen.synchronize(axis_name):
        return norm.apply(_variables(scale, bias, stats), x, mask=mask, mutable=["batch_stats"])[0]


def _nnx(x, scale, bias, stats, mask, axis_name):
    options = {"momentum": MOMENTUM, "epsilon": EPSILON, "axis_name": axis_name}
    return _filled(batchnorm_jax.nnx.BatchNorm(x.shape[-1], rngs=nnx.Rngs(0), **options), scale, bias, stats)(
        x, mask=mask
    )


def _synchronized_nnx(x, scale, bias, stats, mask, axis_name):
    norm = nnx.BatchNorm(x.shape[-1], rngs=nnx.Rngs(0), momentum=MOMENTUM, epsilon=EPSILON)
    batchnorm_jax.nnx.synchronize(norm, axis_name=axis_name)
    return _filled(norm, scale, bias, stats)(x, mask=mask)


def _variables(scale, bias, stats):
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": dict(zip(("mean", "var"), stats, strict=True))}


def _filled(norm, scale, bias, stats):
    variables = (norm.scale, norm.bias, norm.mean, norm.var)
    for variable, value in zip(variables, (scale, bias, *stats), strict=True):
        variable.set_value(value)
    return norm


INTERFACES = {
    "function": _function,
    "all_gather": _accurate,
    "batch_renorm": _renorm,
    "linen": _linen(batchnorm_jax.linen.BatchNorm),
    "linen BatchRenorm": _linen(batchnorm_jax.linen.BatchRenorm),
    "synchronized linen": _synchronized_linen,
    "nnx": _nnx,
    "synchronized nnx": _synchronized_nnx,
}
MASKS = ("none", "ragged")
# Of the mean, in standard deviations. Far from zero only a near state, or the accurate collective, has the digits.
OFFSETS = {"at zero": 0.5, "far": 1e3}
CASES = [tuple(c) for c in AllPairs([list(f) for f in (TRANSFORMS, STATES, INTERFACES, MASKS)])]


@pytest.mark.parametrize(("transform", "state", "interface", "mask"), CASES)
def test_training_does_not_depend_on_the_running_statistics(transform, state, interface, mask):
    assert_right(transform, state, interface, mask, "at zero")


@pytest.mark.parametrize("interface", INTERFACES)
def test_near_running_statistics_keep_the_digits_far_from_zero(interface):
    assert_right("shard_map", "near", interface, "none", "far")


def assert_right(transform, state, interface, mask, place):
    shape = (DEVICES, BATCH, 3, 5)
    x, w, scale, bias = draw(3, shape, (5,), "float32", 2 * OFFSETS[place])
    mask = mask_of(mask, shape)
    stats = running(state, x)

    def norm(x, scale, bias, *, mask, shift, axis_name, epsilon):
        del epsilon
        # Without moments: a module does not tell them.
        y = INTERFACES[interface](x, scale, bias, shift, mask, axis_name)
        return y, Moments(*(jnp.zeros(5),) * 3)

    got = run(transform, x, w, scale, bias, mask, stats, norm=norm)
    want = reference.forward_and_gradients(x, w, scale, bias, mask, axis=-1, epsilon=EPSILON)
    assert_parity({name: got[name] for name in ("y", "dx", "dscale", "dbias")}, want, DTYPES["float32"])


def around(place):
    return np.asarray(np.random.default_rng(1).normal(size=(512, 64)) + place, np.float32)


@functools.cache
def errors_of_flax(place):
    return accuracy.errors(around(place), lambda x: accuracy.flax_layer(x, use_fast_variance=True))


@pytest.mark.parametrize("place", [0.0, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("state", STATES)
def test_at_least_as_accurate_as_flax(state, place):
    """Variance and result, on the same input.

    A quarter is granted, and a rounding of the greatest value: the same sums in another order differ by as much.
    """
    x = around(place)
    mean, _ = running(state, x)
    ours = accuracy.errors(x, lambda x: batch_norm(x, epsilon=accuracy.EPSILON, shift=mean))
    flax = errors_of_flax(place)
    for name in ("var", "y"):
        assert ours[name] <= 1.25 * flax[name] + 2.0**-23, (name, ours, flax)


def test_a_shift_that_is_not_finite_counts_as_zero():
    moments = Moments(jnp.array([3.0]), jnp.array([1.0]), jnp.array(8.0))
    for bad in (np.nan, np.inf, -np.inf):
        assert conditioning(moments, jnp.array([bad])).item() == 9.0


@pytest.mark.parametrize("interface", ["linen", "nnx"])
def test_after_one_bad_batch_training_goes_on(interface):
    """An infinity in one batch: the next, clean one gives what it gives from a fresh layer."""
    r = np.random.default_rng(0)
    good, spoilt = (jnp.asarray(r.normal(size=(32, 3)), jnp.float32) for _ in range(2))
    spoilt = spoilt.at[3, 1].set(jnp.inf)
    if interface == "linen":
        norm = batchnorm_jax.linen.BatchNorm(use_running_average=False)
        variables = norm.init(jax.random.key(0), good)
        want, _ = norm.apply(variables, good, mutable=["batch_stats"])
        _, updates = norm.apply(variables, spoilt, mutable=["batch_stats"])
        got, _ = norm.apply({**variables, **updates}, good, mutable=["batch_stats"])
    else:
        norm = batchnorm_jax.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        want = norm(good)
        norm(spoilt)
        got = norm(good)
    assert reference.normwise_error(got, want) < 1e-6
