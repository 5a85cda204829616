"""The fast convolution is the convolution of lax; the models agree over layouts, norms, masks, spans and dtypes."""

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
from experiments import models
from experiments._errors import UsageError
from experiments.models import alexnet
from experiments.models.convolution import conv_max_pool
from experiments.models.fcn import FCN
from experiments.models.layout import CHWN, NHWC
from experiments.models.normalised import normalised
from experiments.models.resnet import ResNet, plain
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


def loss_and_gradients(model, variables, images, mask=None, mutable=("batch_stats",)):
    """Of the squared logits of the examples that count, with the updated statistics."""

    def loss(params):
        y, updates = model.apply({**variables, "params": params}, images, train=True, mask=mask, mutable=list(mutable))
        counted = y if mask is None else jnp.where(jnp.expand_dims(mask, range(1, y.ndim)), y, 0)
        return jnp.sum(counted**2), updates

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


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
        variables = model.init(jax.random.key(0), images[:2], train=False)
        variables = {**variables, "params": jax.tree.map(lambda p: p.astype(jnp.float64), variables["params"])}
        if devices == 1:
            return jax.jit(partial(loss_and_gradients, model))(variables, images)

        def body(variables, images):
            params = jax.tree.map(lambda p: jax.lax.pcast(p, "batch", to="varying"), variables["params"])
            (loss, updates), gradients = loss_and_gradients(model, {**variables, "params": params}, images)
            loss, gradients = jax.lax.psum((loss, gradients), "batch")
            return (loss, updates), gradients

        mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        same = PartitionSpec()
        mapped = jax.shard_map(body, mesh=mesh, in_specs=(same, PartitionSpec("batch")), out_specs=same)
        return jax.jit(mapped)(variables, images)

    got, right = run(CHWN, devices, span), run(NHWC, 1, span)
    assert jax.tree.structure(got) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        assert normwise_error(a, b) < 1e-5
    if devices == 1:
        (of_all, _), _ = run(CHWN, 1, None)
        assert abs(of_all / right[0][0] - 1) > 1e-3


# Small ones of each, with images that they take, and how many norms they have.
SMALL = {
    "alexnet_bn": (alexnet.AlexNetBN, {}, 64, 7),
    "fcn": (FCN, {"features": (4, 6)}, 12, 5),
    "resnet18": (partial(ResNet, stage_sizes=(1, 1), bottleneck=False), {"width": 4}, 16, 6),
    "resnet50": (partial(ResNet, stage_sizes=(1, 1), bottleneck=True), {"width": 4}, 16, 9),
    "simple_cnn": (SimpleCNN, {}, 28, 3),
}
FACTORIES = {
    "batch": partial(BatchNorm, momentum=0.9),
    "flax": plain(partial(nn.BatchNorm, momentum=0.9)),
    "none": None,
}


def small(name, norm, **arguments):
    make, options, size, _ = SMALL[name]
    return make(num_classes=5, norm=norm, **{**options, **arguments}), size


def no_zero_scale(name):
    """Blocks that are the identity would hide what is in them."""
    return {"zero_last_scale": False} if name.startswith("resnet") else {}


@pytest.fixture
def narrow_dense_layers(monkeypatch):
    """Those of AlexNet take seconds to initialise, and these tests do not depend on their width."""
    monkeypatch.setattr(alexnet, "HIDDEN", (16, 16))


def test_every_model_is_tested():
    assert set(SMALL) == set(models.MODELS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", FACTORIES)
@pytest.mark.parametrize("name", SMALL)
def test_every_model_takes_every_norm(name, norm, dtype):
    model, size = small(name, FACTORIES[norm], dtype=jnp.dtype(dtype))
    images = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    norms = 0 if norm == "none" else SMALL[name][3]
    assert len(jax.tree.leaves(variables.get("batch_stats", {}))) == 2 * norms
    biases = sum(path[-1].key == "bias" for path, _ in jax.tree.leaves_with_path(variables["params"]))
    kernels = sum(path[-1].key == "kernel" for path, _ in jax.tree.leaves_with_path(variables["params"]))
    # A bias in each norm, and in the last layer; else one with each kernel.
    assert biases == (kernels if norm == "none" else norms + 1)

    shapes = []

    def conv_dtypes(next_call, args, kwargs, context):
        y = next_call(*args, **kwargs)
        if context.module.__class__.__name__ in ("Conv", "ConvMaxPool") and context.method_name == "__call__":
            shapes.append((args[0].dtype, y.dtype))
        return y

    def apply(variables, x):
        with nn.intercept_methods(conv_dtypes):
            return model.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    logits = jax.eval_shape(apply, variables, images)
    assert logits.shape == ((4, size, size, 5) if name == "fcn" else (4, 5)) and logits.dtype == jnp.float32
    # What a norm gives goes on in the dtype of the computation.
    assert {given for given, _ in shapes[1:]} | {got for _, got in shapes} == {jnp.dtype(dtype)}


def wide(name, norm, examples):
    """A small model with its variables and its images in float64, but for its logits, which are float32.

    In float32 it is rounding that decides some signs of a ReLU's input and some winners of a max pool, in which two
    right results differ.
    """
    model, size = small(name, norm, dtype=jnp.dtype("float64"), **no_zero_scale(name))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(examples, size, size, 3)))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    return model, jax.tree.map(lambda a: a.astype(jnp.float64), variables), images


def assert_same(got, want):
    """Loss and statistics, and gradients, which may be 0 but for rounding: a shift that the next norm takes out."""
    (got, gradients), (want, others) = got, want
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert normwise_error(a, b) < 1e-5
    largest = max(float(jnp.max(jnp.abs(a))) for a in jax.tree.leaves(others))
    for (path, a), b in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(others), strict=True):
        assert jnp.max(jnp.abs(a - b)) < 1e-5 * jnp.max(jnp.abs(b)) + 1e-7 * largest, path


@pytest.mark.usefixtures("narrow_dense_layers", "x64")
@pytest.mark.parametrize("name", SMALL)
def test_masked_examples_change_nothing(name):
    """The logits of those that count, the gradients and the statistics are those of a batch without the others."""
    model, variables, images = wide(name, FACTORIES["batch"], 8)
    mask = jnp.array([True, True, False, True, True, False, True, True])
    run = jax.jit(partial(loss_and_gradients, model))
    got, whole = run(variables, images, mask), run(variables, images[mask])
    assert_same(got, whole)
    (different, _), _ = run(variables, images)
    assert abs(different / whole[0][0] - 1) > 1e-3


@pytest.mark.usefixtures("narrow_dense_layers", "x64")
@pytest.mark.parametrize("name", ["fcn", "resnet18", "alexnet_bn"])
def test_our_norm_gives_what_flax_gives(name):
    """Fused with activation and residual, beside the same outside; with scales that are not 0."""
    results = []
    for norm in ("batch", "flax"):
        model, variables, images = wide(name, FACTORIES[norm], 6)
        results.append(jax.jit(partial(loss_and_gradients, model))(variables, images))
    assert_same(*results)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_residual_blocks_start_as_the_identity_unless_told_otherwise(norm):
    def zeros(**options):
        model, size = small("resnet50", FACTORIES[norm], **options)
        variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), jnp.zeros((1, size, size, 3)))
        kind = "scale" if norm == "batch" else "kernel"
        leaves = jax.tree.leaves_with_path(variables["params"])
        return sum(path[-1].key == kind and not np.any(a) for path, a in leaves)

    assert zeros() == 2
    assert zeros(zero_last_scale=False) == 0


@pytest.mark.parametrize(
    ("options", "size", "first"),
    [
        ({}, (63, 80), 3),
        ({}, (64, 64), 7),
        ({"small_images": True}, (64, 64), 3),
        ({"small_images": False}, (32, 32), 7),
    ],
)
def test_a_residual_network_chooses_its_first_layers_by_the_size_of_the_images(options, size, first):
    model = models.create("resnet18", num_classes=5, norm=BatchNorm, width=4, **options)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)["params"]["Conv_0"]["kernel"]
    )
    assert variables.shape == (first, first, 3, 4)


@pytest.mark.parametrize(("size", "flat"), [(63, 1), (64, 1), (67, 1), (224, 36), (227, 36)])
def test_alexnet_has_the_published_sizes(size, flat):
    """Counted from the paper's layers, without the groups; 6x6 positions are left of images of 224 or 227."""
    model = models.create("alexnet_bn", num_classes=1000, norm=BatchNorm)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)["params"])
    kernels = 3 * 96 * 121 + 96 * 256 * 25 + (256 * 384 + 384 * 384 + 384 * 256) * 9
    kernels += flat * 256 * 4096 + 4096 * 4096 + 4096 * 1000
    norms = 2 * (96 + 256 + 384 + 384 + 256 + 4096 + 4096)
    assert sum(a.size for a in jax.tree.leaves(params)) == kernels + norms + 1000


def test_a_fully_convolutional_network_sees_about_32_pixels_and_moves_with_the_image():
    model = FCN(3, partial(BatchNorm, momentum=0.9))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 1)), jnp.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    # A shift by the total pooling is a shift of the result, away from the edges.
    moved = apply(jnp.roll(images, (4, 8), (1, 2)))
    np.testing.assert_allclose(moved[:, 28:40, 28:40], apply(images)[:, 24:36, 20:32], rtol=1e-3, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: model.apply(variables, x, train=False)[0, 32, 32, 0]))(images)
    seen = np.flatnonzero(np.abs(gradient[0, :, :, 0]).max(axis=1))
    assert 30 <= seen[-1] - seen[0] + 1 <= 44


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("alexnet_bn", (62, 200), r"alexnet_bn takes images of at least 63x63, and these are 62x200"),
        ("simple_cnn", (28, 27), r"at least 28x28, and these are 28x27"),
        ("fcn", (48, 50), r"divisible by 4, its total pooling, and these are 48x50; .* to 48x52"),
    ],
)
def test_images_of_a_size_that_does_not_fit_are_refused(name, size, message):
    model = models.create(name, num_classes=5, norm=BatchNorm)
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False))


def test_unknown_model():
    with pytest.raises(ValueError, match=r"unknown model 'simple_cn'; there are: .*Did you mean 'simple_cnn'"):
        models.create("simple_cn", num_classes=10)
