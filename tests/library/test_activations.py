"""Activations of `jax.nn` in any guise take the path of the original; what only resembles them does not."""

import copy
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from batchnorm_jax import batch_norm, linen
from batchnorm_jax import nnx as ours_nnx
from batchnorm_jax._activations import inverse, recognised, static
from batchnorm_jax._core import normalize_by_batch

ORIGINALS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "leaky_relu of 0.2": partial(jax.nn.leaky_relu, negative_slope=0.2),
    "elu of 0.5": partial(jax.nn.elu, alpha=0.5),
}


def wrapped(function):
    @functools.wraps(function)
    def wrapper(x):
        return function(x)

    return wrapper


class Callable:
    __hash__ = None

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        return self.function(x)


GUISES = {
    "a copy": copy.copy,
    "a deep copy": copy.deepcopy,
    "a partial": partial,
    "jitted": jax.jit,
    "a jitted deep copy": lambda f: jax.jit(copy.deepcopy(f)),
    "named": lambda f: jax.named_call(f, name="activation"),
    "in a scope": lambda f: jax.named_scope("activation")(f),
    "checkpointed": jax.checkpoint,
    "a lambda": lambda f: lambda x: f(x),
    "wrapped": wrapped,
    "a callable without a hash": Callable,
}


@pytest.mark.parametrize("guise", GUISES)
@pytest.mark.parametrize("name", ORIGINALS)
def test_a_guise_is_seen_through(name, guise):
    original = ORIGINALS[name]
    assert static(GUISES[guise](original)) is recognised(original)


def test_the_options_are_those_given():
    y = jnp.array([-1.0, 2.0])
    for given in (
        lambda x: jax.nn.leaky_relu(x, 0.2),
        partial(jax.nn.leaky_relu, negative_slope=jnp.float32(0.2)),
        partial(jax.nn.leaky_relu, negative_slope=np.float64(0.2)),
    ):
        np.testing.assert_allclose(inverse(recognised(given))(y), [-5, 2], rtol=1e-6)
    assert recognised(lambda x: x) is None and recognised(jnp.asarray) is None


LOOKALIKES = {
    "another derivative at 0": lambda x: jnp.maximum(x, 0),
    "twice": lambda x: 2 * jax.nn.leaky_relu(x),
    "shifted": lambda x: jax.nn.relu(x) - 1,
    "narrowed": lambda x: jax.nn.relu(x.astype(jnp.bfloat16)).astype(x.dtype),
    "two slopes": lambda x: jnp.where(x >= 0, 0.5 * x, 0.2 * x),
    "on a copy, and negated": lambda x: -copy.deepcopy(jax.nn.elu)(x),
    "no rule for a scalar": lambda x: x / jnp.linalg.norm(x),
    "an error": lambda x: x.no_such_attribute,
    "gelu": jax.nn.gelu,
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_lookalike_is_left_as_it_is(name):
    assert static(LOOKALIKES[name]) is LOOKALIKES[name]


def test_a_rule_of_ones_own_is_kept():
    own = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    own.defjvps(lambda g, ans, x: 3 * g)
    assert recognised(own) is own


@pytest.mark.parametrize("guise", GUISES)
def test_a_norm_that_keeps_its_output_takes_a_guise(guise):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)

    def gradient(activation):
        options = {"activation": activation, "save_for_backward": "output"}
        return jax.grad(lambda x: jnp.sin(batch_norm(x, **options)[0]).sum())(x)

    guised = GUISES[guise](jax.nn.leaky_relu)
    np.testing.assert_array_equal(gradient(guised), gradient(jax.nn.leaky_relu))
    linen.BatchNorm(activation=guised, save_for_backward="output")


def test_a_model_that_is_copied_is_the_same_model():
    """As for a target network, or an average of the parameters."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    options = {"activation": nn.leaky_relu, "save_for_backward": "output"}
    norm = ours_nnx.BatchNorm(3, **options, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(copy.deepcopy(norm)(x), norm(x))
    module = linen.BatchNorm(use_running_average=False, **options)
    variables = module.init(jax.random.key(0), x)
    y, _ = copy.deepcopy(module).apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, module.apply(variables, x, mutable=["batch_stats"])[0])


def test_a_partial_that_is_made_anew_compiles_nothing():
    def call():
        return batch_norm(jnp.ones((8, 3)), activation=partial(jax.nn.leaky_relu, negative_slope=0.3))[0]

    call()
    before = normalize_by_batch._cache_size()
    call()
    assert normalize_by_batch._cache_size() == before
