"""The fast convolution is the convolution of lax; the models hold the same parameters in every layout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm_jax.linen import BatchNorm
from experiments import models
from experiments.models.convolution import conv_max_pool
from experiments.models.layout import CHWN, NHWC
from experiments.models.simple_cnn import SimpleCNN
from tests.reference import normwise_error


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    examples=st.integers(1, 3),
    height=st.integers(6, 11),
    width=st.integers(6, 11),
    channels=st.integers(1, 3),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (2, 5)]),
)
def test_conv_max_pool_is_the_same_in_both_layouts(seed, examples, height, width, channels, kernel):
    r = np.random.default_rng(seed)
    x = jnp.asarray(r.normal(size=(examples, height, width, channels)), jnp.float32)
    w = jnp.asarray(r.normal(size=(*kernel, channels, 4)), jnp.float32)

    @jax.jit
    def outputs_and_gradients(x, w):
        reference, pullback = jax.vjp(lambda x, w: conv_max_pool(x, w, NHWC), x, w)
        y, fast_pullback = jax.vjp(lambda x, w: CHWN.to_nhwc(conv_max_pool(CHWN.from_nhwc(x), w, CHWN)), x, w)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (y, *fast_pullback(cotangent)), (reference, *pullback(cotangent))

    for a, b in zip(*outputs_and_gradients(x, w), strict=True):
        assert normwise_error(a, b) < 1e-5


@pytest.mark.parametrize("norm", [None, partial(BatchNorm, momentum=0.9)])
def test_simple_cnn_is_the_same_in_both_layouts(norm):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(12, 28, 28, 1)), jnp.float32)
    mask = jnp.arange(12) < 9
    results = []
    for layout in (NHWC, CHWN):
        model = SimpleCNN(10, norm, layout=layout)
        variables = model.init(jax.random.key(0), images, train=False)

        def loss(params, model=model, variables=variables):
            y, updates = model.apply(
                {**variables, "params": params}, images, train=True, mask=mask, mutable=["batch_stats"]
            )
            return jnp.sum(y[:9] ** 2), (y, updates)

        results.append((variables, jax.jit(jax.grad(loss, has_aux=True))(variables["params"])))
    (variables, result), (others, other) = results
    assert jax.tree.structure(variables) == jax.tree.structure(others)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(result), strict=True):
        assert normwise_error(a, b) < 1e-4


def test_unknown_model():
    with pytest.raises(ValueError, match=r"unknown model 'simple_cn'; there are: .*Did you mean 'simple_cnn'"):
        models.create("simple_cn", num_classes=10)
