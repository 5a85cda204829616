"""linen.fold: a folded model gives what the model gives in evaluation, for every layer and norm, and needs no norm."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import core
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm_jax.linen import BatchNorm, BatchRenorm, fold
from experiments.models import resnet
from tests.reference import normwise_error

TOLERANCE = 1e-5
# A few roundings of bfloat16, each 2^-9 of a number; measured up to 0.008.
BFLOAT16_TOLERANCE = 2.0**-6


def draw(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def drawn(variables, seed=1):
    """Variables with numbers that a training might have left in them, scales of both signs."""
    r = np.random.default_rng(seed)

    def one(path, leaf):
        name = jax.tree_util.keystr(path)
        if "kernel" in name or "steps" in name:
            return leaf
        return jnp.asarray(r.uniform(0.5, 2, leaf.shape) if "'var'" in name else r.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, variables)


class Pair(nn.Module):
    """A layer and its norm, the norm perhaps with a residual."""

    make_layer: Any
    make_norm: Any
    residual: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        y = self.make_layer(name="layer")(x)
        size = np.prod(y.shape)
        arrays = {"residual": jnp.linspace(-1, 1, size).reshape(y.shape)} if self.residual else {}
        return self.make_norm(name="norm")(y, use_running_average=not train, **arrays)


def make(cls, *args, **options):
    return lambda **names: cls(*args, **options, **names)


# Layers, and the shape of what they are given.
LAYERS = {
    "conv 1d": (make(nn.Conv, 6, (3,)), (4, 9, 3)),
    "conv 2d": (make(nn.Conv, 6, (3, 3)), (2, 8, 8, 3)),
    "conv 3d": (make(nn.Conv, 6, (2, 2, 2)), (2, 4, 4, 4, 3)),
    "conv without bias": (make(nn.Conv, 6, (3, 3), use_bias=False), (2, 8, 8, 3)),
    "strided": (make(nn.Conv, 6, (3, 3), strides=2, padding="VALID"), (2, 8, 8, 3)),
    "grouped": (make(nn.Conv, 6, (3, 3), feature_group_count=3), (2, 8, 8, 6)),
    "depthwise without bias": (make(nn.Conv, 6, (3, 3), feature_group_count=6, use_bias=False), (2, 8, 8, 6)),
    "dilated": (make(nn.Conv, 6, (3, 3), kernel_dilation=2, input_dilation=2, padding=2), (2, 8, 8, 3)),
    "circular": (make(nn.Conv, 6, (3, 3), padding="CIRCULAR"), (2, 8, 8, 3)),
    "masked": (make(nn.Conv, 6, (3,), mask=jnp.ones((3, 3, 6)).at[2].set(0)), (4, 9, 3)),
    "local": (make(nn.ConvLocal, 6, (3,)), (4, 9, 3)),
    "local without bias": (make(nn.ConvLocal, 6, (3,), use_bias=False), (4, 9, 3)),
    "transposed": (make(nn.ConvTranspose, 6, (3, 3), strides=(2, 2)), (2, 5, 5, 3)),
    "transposed kernel": (make(nn.ConvTranspose, 6, (3, 3), transpose_kernel=True, use_bias=False), (2, 5, 5, 3)),
    "dense": (make(nn.Dense, 6), (8, 3)),
    "dense without bias": (make(nn.Dense, 6, use_bias=False), (8, 2, 3)),
    "dense general": (make(nn.DenseGeneral, (4, 6), axis=(-2, -1)), (8, 2, 3)),
    "dense general without bias": (make(nn.DenseGeneral, (4, 6), batch_dims=(0,), use_bias=False), (8, 2, 3)),
    "einsum": (make(nn.Einsum, (3, 4, 6), "bc,cde->bde"), (8, 3)),
    "einsum without bias": (make(nn.Einsum, (3, 6), "...c,ce->...e", use_bias=False), (8, 3)),
}
# Norms, and whether they are called with a residual.
NORMS = {
    "ours": (make(BatchNorm), False),
    "without scale": (make(BatchNorm, use_scale=False), False),
    "without bias": (make(BatchNorm, use_bias=False), False),
    "without either": (make(BatchNorm, use_scale=False, use_bias=False, epsilon=0.1), False),
    "with activation": (make(BatchNorm, activation=jnp.tanh), False),
    "with residual": (make(BatchNorm), True),
    "with both": (make(BatchNorm, activation=nn.relu), True),
    "output kept": (make(BatchNorm, save_for_backward="output", activation=nn.leaky_relu), False),
    "renormalising": (make(BatchRenorm), False),
    "of Flax": (make(nn.BatchNorm), False),
    "of Flax without scale": (make(nn.BatchNorm, use_scale=False, epsilon=0.1), False),
}
# Every layer, with one of these norms and the other in turn; and every norm, behind a layer with and one without bias.
CASES = {(layer, ("with both", "of Flax")[i % 2]) for i, layer in enumerate(LAYERS)}
CASES |= {(layer, norm) for layer in ("conv 2d", "dense without bias") for norm in NORMS}


def check(model, variables, pairs, *args, tolerance=TOLERANCE, **kwargs):
    """Folds, and compares with the model; the model's variables stay as they are."""
    before = jax.tree.map(np.array, variables)
    apply, folded = fold(model, variables, pairs, *args, **kwargs)
    got = jax.jit(lambda v: apply(v, *args, **kwargs))(folded)
    want = jax.jit(lambda v: model.apply(v, *args, **kwargs))(variables)
    assert got.dtype == want.dtype
    assert normwise_error(got, want) < tolerance
    jax.tree.map(np.testing.assert_array_equal, before, variables)
    return folded


@pytest.mark.filterwarnings("ignore::batchnorm_jax.NegativeScaleWarning")
@pytest.mark.parametrize(("layer", "norm"), sorted(CASES))
def test_every_layer_with_every_norm(layer, norm):
    make_layer, shape = LAYERS[layer]
    model = Pair(make_layer, *NORMS[norm])
    x = draw(shape)
    variables = drawn(model.init(jax.random.key(0), x))
    folded = check(model, variables, [("layer", "norm")], x)
    # Nothing of the norm is left, but a bias that its layer would not read.
    assert list(folded) == ["params"]
    assert folded["params"].get("norm", {}).keys() == (set() if "bias" in variables["params"]["layer"] else {"bias"})
    assert jax.tree.map(jnp.shape, folded["params"]["layer"]) == jax.tree.map(jnp.shape, variables["params"]["layer"])


@pytest.mark.filterwarnings("ignore::batchnorm_jax.NegativeScaleWarning")
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rank=st.integers(1, 2),
    groups=st.integers(1, 2),
    features=st.integers(1, 4),
    size=st.integers(3, 6),
    window=st.integers(1, 3),
    bias=st.booleans(),
    norm=st.sampled_from(sorted(NORMS)),
)
def test_any_shape(seed, rank, groups, features, size, window, bias, norm):
    layer = make(nn.Conv, groups * features, (window,) * rank, feature_group_count=groups, use_bias=bias)
    model = Pair(layer, *NORMS[norm])
    x = draw((2, *[size] * rank, 2 * groups), seed)
    check(model, drawn(model.init(jax.random.key(seed % 97), x), seed), None, x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, None])
@pytest.mark.parametrize("layer", ["conv 2d", "conv without bias"])
@pytest.mark.parametrize("norm", [nn.BatchNorm, BatchNorm])
def test_bfloat16(norm, layer, dtype):
    """The computation of the layer is in bfloat16; the norm gives that or, by its parameters, float32."""
    options = {"use_bias": layer == "conv 2d", "dtype": jnp.bfloat16}
    model = Pair(make(nn.Conv, 6, (3, 3), **options), make(norm, dtype=dtype))
    x = draw((8, 8, 8, 3))
    variables = drawn(model.init(jax.random.key(0), x))
    folded = check(model, variables, None, x, tolerance=BFLOAT16_TOLERANCE)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype("float32")}
    # Variables that were rounded for inference, the statistics not.
    variables["params"] = jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables["params"])
    folded = check(model, variables, None, x.astype(jnp.bfloat16), tolerance=BFLOAT16_TOLERANCE)
    assert folded["params"]["layer"]["kernel"].dtype == jnp.bfloat16


def small_resnet(norm, dtype="float32"):
    return resnet.ResNet(
        stage_sizes=(1, 1),
        bottleneck=True,
        num_classes=5,
        norm=norm,
        width=4,
        small_images=True,
        dtype=jnp.dtype(dtype),
    )


@pytest.mark.parametrize("norm", [BatchNorm, resnet.plain(nn.BatchNorm)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_residual_network(norm, dtype):
    """Every norm is found, those with a residual too, and each of the shortcut."""
    model = small_resnet(norm, dtype)
    images = draw((4, 8, 8, 3))
    variables = drawn(model.init(jax.random.key(0), images, train=False))
    # Nine layers deep, roundings add up.
    tolerance = TOLERANCE if dtype == "float32" else 2 * BFLOAT16_TOLERANCE
    folded = check(model, variables, None, images, train=False, tolerance=tolerance)
    # What decides is not an array, though NumPy's booleans have a shape.
    fold(model, variables, None, images, train=np.bool_(False))
    convolutions = sum(name.startswith("Conv") for name in variables["params"])
    assert convolutions == 9 and list(folded) == ["params"]
    assert [p.keys() for n, p in folded["params"].items() if n.startswith("BatchNorm")] == [{"bias"}] * convolutions
    # One pair alone leaves the others as they are.
    folded = check(model, variables, [("Conv_4", "BatchNorm_3")], images, train=False, tolerance=tolerance)
    assert folded["batch_stats"].keys() == variables["batch_stats"].keys() - {"BatchNorm_3"}
    np.testing.assert_array_equal(folded["params"]["Conv_3"]["kernel"], variables["params"]["Conv_3"]["kernel"])


def test_the_example_may_be_shapes_and_the_variables_frozen():
    model = Pair(*(LAYERS["dense"][0], *NORMS["ours"]))
    x = draw((8, 3))
    variables = drawn(model.init(jax.random.key(0), x))
    apply, folded = fold(model, core.freeze(variables), None, jax.ShapeDtypeStruct((1, 3), jnp.float32))
    assert normwise_error(apply(folded, x), model.apply(variables, x)) < TOLERANCE
    assert normwise_error(apply(core.freeze(folded), x, mutable=["batch_stats"])[0], apply(folded, x)) == 0


def test_folding_under_jit():
    model = Pair(*(LAYERS["dense without bias"][0], *NORMS["ours"]))
    x = draw((8, 2, 3))
    variables = drawn(model.init(jax.random.key(0), x))

    def evaluate(variables, x):
        apply, folded = fold(model, variables, None, x)
        return apply(folded, x)

    assert normwise_error(jax.jit(evaluate)(variables, x), model.apply(variables, x)) < TOLERANCE


def test_metadata_of_parameters_is_kept():
    def boxed(init, *names):
        return nn.with_partitioning(init, names)

    zeros = nn.initializers.zeros
    for use_bias in (True, False):
        layer = make(
            nn.Dense,
            4,
            use_bias=use_bias,
            kernel_init=boxed(nn.initializers.lecun_normal(), None, "model"),
            bias_init=boxed(zeros, "model"),
        )
        model = Pair(layer, make(BatchNorm, bias_init=boxed(zeros, "model")))
        x = draw((8, 3))
        variables = drawn(model.init(jax.random.key(0), x))
        params = check(model, variables, None, x)["params"]
        assert params["layer"]["kernel"].names == (None, "model")
        assert params["layer" if use_bias else "norm"]["bias"].names == ("model",)


def test_a_folded_norm_does_not_train():
    model = Pair(*(LAYERS["dense"][0], *NORMS["ours"]))
    x = draw((8, 3))
    apply, folded = fold(model, model.init(jax.random.key(0), x), None, x)
    with pytest.raises(ValueError, match=r"folded BatchNorm norm: use_running_average=False, but this norm was folded"):
        apply(folded, x, train=True)
