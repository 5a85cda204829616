"""The fast convolution is the convolution of lax, and models and norms are the same in every layout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from batchnorm_jax.linen import BatchNorm
from experiments.models.convolution import conv_max_pool
from experiments.models.layout import CHWN, NHWC
from experiments.models.normalised import normalised
from experiments.models.simple_cnn import SimpleCNN
from tests.reference import normwise_error
from tests.rig import UNOPTIMISED, loss_and_gradients


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
        variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)

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


class Normalised(nn.Module):
    """One norm alone, in a layout."""

    norm: object
    layout: object
    activation: object = None

    @nn.compact
    def __call__(self, x, residual=None, mask=None, train=True):
        given, residual = (None if a is None else self.layout.from_nhwc(a) for a in (x, residual))
        y = normalised(
            self.norm, given, train=train, mask=mask, residual=residual, activation=self.activation, layout=self.layout
        )
        return self.layout.to_nhwc(y)


@pytest.mark.parametrize("span", [None, 2, 6])
def test_a_norm_in_another_layout_is_the_same(span):
    """With its mask, its residual and its activation."""
    r = np.random.default_rng(0)
    x, residual = (jnp.asarray(r.normal(size=(12, 4, 5, 3)), jnp.float32) for _ in range(2))
    mask = jnp.arange(12) % 5 != 1
    norm = partial(BatchNorm, momentum=0.9, span=span)
    results = []
    for layout in (NHWC, CHWN):
        model = Normalised(norm, layout, jnp.tanh)
        variables = model.init(jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, variables["params"]) == {"BatchNorm_0": {"scale": (3,), "bias": (3,)}}
        results.append(model.apply(variables, x, residual, mask, mutable=["batch_stats"]))
    for a, b in zip(jax.tree.leaves(results[1]), jax.tree.leaves(results[0]), strict=True):
        assert normwise_error(a, b) < 1e-6


def test_a_span_that_does_not_fit_is_refused_in_any_layout():
    for layout in (NHWC, CHWN):
        model = Normalised(partial(BatchNorm, momentum=0.9, span=8), layout)
        x = jnp.ones((12, 4, 5, 3))
        variables = model.init(jax.random.key(0), x)
        with pytest.raises(ValueError, match=r"span=8 does not divide the 12 examples .* work here: 1, 2, 3, 4, 6, 12"):
            model.apply(variables, x, mutable=["batch_stats"])
        # An evaluation by the running statistics, which are 0 and 1, takes any number of examples.
        y = model.apply(variables, x, train=False)
        np.testing.assert_allclose(y, np.full(x.shape, 1 / np.sqrt(1 + 1e-5)), rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("span", [2, 8])
def test_a_span_is_the_same_in_both_layouts_and_on_several_devices(devices, span, x64):
    """A span of 2 is inside a device's 4 examples, one of 8 across two devices; NHWC on one device is what is right.

    In float64: where two numbers are normalised together, it is their rounding that decides the gradients.
    """
    images = jnp.asarray(np.random.default_rng(1).normal(size=(16, 28, 28, 1)))
    # Examples of different contrast, so that it matters which are normalised together.
    images = images * jnp.linspace(0.2, 3, 16).reshape(-1, 1, 1, 1)

    def run(layout, devices, span):
        norm = partial(BatchNorm, momentum=0.9, span=span, axis_name="batch" if devices > 1 else None)
        model = SimpleCNN(10, norm, layout=layout, dtype=jnp.dtype("float64"))
        init = jax.jit(partial(model.init, train=False), compiler_options=UNOPTIMISED)
        variables = init(jax.random.key(0), images[:2])
        variables = {**variables, "params": jax.tree.map(lambda p: p.astype(jnp.float64), variables["params"])}
        if devices == 1:
            return jax.jit(partial(loss_and_gradients, model), compiler_options=UNOPTIMISED)(variables, images)

        def body(variables, images):
            params = jax.tree.map(lambda p: jax.lax.pcast(p, "batch", to="varying"), variables["params"])
            (loss, updates), gradients = loss_and_gradients(model, {**variables, "params": params}, images)
            loss, gradients = jax.lax.psum((loss, gradients), "batch")
            return (loss, updates), gradients

        mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        same = PartitionSpec()
        mapped = jax.shard_map(body, mesh=mesh, in_specs=(same, PartitionSpec("batch")), out_specs=same)
        return jax.jit(mapped, compiler_options=UNOPTIMISED)(variables, images)

    got, right = run(CHWN, devices, span), run(NHWC, 1, span)
    assert jax.tree.structure(got) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        assert normwise_error(a, b) < 1e-5
    if devices == 1:
        (of_all, _), _ = run(CHWN, 1, None)
        assert abs(of_all / right[0][0] - 1) > 1e-3
