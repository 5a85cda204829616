"""The models agree over norms, masks and dtypes, and refuse images that they cannot take. Layouts: test_layouts.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from batchnorm_jax.linen import BatchNorm
from experiments import models
from experiments._errors import UsageError
from experiments.models import alexnet
from experiments.models.fcn import FCN
from experiments.models.resnet import ResNet, plain
from experiments.models.resnet9 import ResNet9
from experiments.models.simple_cnn import SimpleCNN
from tests.reference import normwise_error
from tests.rig import UNOPTIMISED, loss_and_gradients

# Small ones of each, with images that they take, and how many norms they have.
SMALL = {
    "alexnet_bn": (alexnet.AlexNetBN, {}, 64, 7),
    "fcn": (FCN, {"features": (4, 6)}, 12, 5),
    "resnet18": (partial(ResNet, stage_sizes=(1, 1), bottleneck=False), {"width": 4}, 16, 6),
    "resnet50": (partial(ResNet, stage_sizes=(1, 1), bottleneck=True), {"width": 4}, 16, 9),
    "resnet9": (ResNet9, {"width": 4}, 8, 8),
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
    return {"zero_last_scale": False} if models.is_residual(name) else {}


@pytest.fixture
def narrow_dense_layers(monkeypatch):
    """Those of AlexNet take seconds to initialise, and these tests do not depend on their width."""
    monkeypatch.setattr(alexnet, "HIDDEN", (16, 16))


def test_every_model_is_tested():
    assert {*SMALL, "resnet18_narrow"} == {*models.MODELS.names}


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
    assert (
        logits.shape == ((4, size, size, 5) if models.MODELS[name].per_pixel else (4, 5))
        and logits.dtype == jnp.float32
    )
    # What a norm gives goes on in the dtype of the computation.
    assert {given for given, _ in shapes[1:]} | {got for _, got in shapes} == {jnp.dtype(dtype)}


def wide(name, norm, examples):
    """A small model with its variables and its images in float64, but for its logits, which are float32.

    In float32 it is rounding that decides some signs of a ReLU's input and some winners of a max pool, in which two
    right results differ.
    """
    model, size = small(name, norm, dtype=jnp.dtype("float64"), **no_zero_scale(name))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(examples, size, size, 3)))
    init = jax.jit(partial(model.init, train=False), compiler_options=UNOPTIMISED)
    variables = init(jax.random.key(0), images)
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
    run = jax.jit(partial(loss_and_gradients, model), compiler_options=UNOPTIMISED)
    got, whole = run(variables, images, mask), run(variables, images[mask])
    assert_same(got, whole)
    (different, _), _ = run(variables, images, jnp.ones_like(mask))
    assert abs(different / whole[0][0] - 1) > 1e-3


@pytest.mark.usefixtures("narrow_dense_layers", "x64")
@pytest.mark.parametrize("name", ["fcn", "resnet18", "alexnet_bn"])
def test_our_norm_gives_what_flax_gives(name):
    """Fused with activation and residual, beside the same outside; with scales that are not 0."""
    results = []
    for norm in ("batch", "flax"):
        model, variables, images = wide(name, FACTORIES[norm], 6)
        run = jax.jit(partial(loss_and_gradients, model), compiler_options=UNOPTIMISED)
        results.append(run(variables, images))
    assert_same(*results)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_residual_blocks_start_as_the_identity_unless_told_otherwise(norm):
    def zeros(**options):
        model, size = small("resnet50", FACTORIES[norm], **options)
        init = jax.jit(partial(model.init, train=False), compiler_options=UNOPTIMISED)
        variables = init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
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


def test_a_narrow_resnet18_has_a_quarter_of_the_features():
    def shapes(name, size):
        model = models.create(name, num_classes=10, norm=BatchNorm)
        images = jnp.zeros((1, size, size, 3))
        return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False)["params"])

    # The stem of large images, whatever their size.
    wide, narrow = shapes("resnet18", 64), shapes("resnet18_narrow", 32)
    expected = jax.tree.map(lambda a: tuple(n // 4 if n % 64 == 0 else n for n in a.shape), wide)
    assert jax.tree.map(lambda a: a.shape, narrow) == expected


@pytest.mark.parametrize(("width", "size"), [(64, 32), (8, 9)])
def test_resnet9_has_the_published_size(width, size):
    """Counted from the layers of the source, and a bias of the dense layer, which the source does not have."""
    model = ResNet9(10, BatchNorm, width=width)
    images = jnp.zeros((2, size, size, 3))
    logits, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
    kernels = 9 * (3 * width + (2 + 2 * 4 + 8 + 32 + 2 * 64) * width**2) + 80 * width
    norms = 2 * (1 + 3 * 2 + 4 + 3 * 8) * width
    sizes = {path[-1].key: 0 for path, _ in jax.tree.leaves_with_path(variables["params"])}
    for path, a in jax.tree.leaves_with_path(variables["params"]):
        sizes[path[-1].key] += a.size
    assert sizes["kernel"] == kernels and sizes["scale"] + sizes["bias"] == norms + 10
    assert logits.shape == (2, 10) and (width != 64 or kernels + norms == 6_573_120)


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
        ("resnet9", (7, 32), r"at least 8x8, and these are 7x32"),
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
