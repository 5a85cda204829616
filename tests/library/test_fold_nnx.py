"""nnx.fold: a copy gives what the model gives in evaluation, for every layer and norm; the model stays as it is."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm_jax.nnx import BatchNorm, BatchRenorm, fold
from tests.compat import view
from tests.library.test_fold_linen import BFLOAT16_TOLERANCE, TOLERANCE, draw
from tests.reference import normwise_error


def drawn(model, seed=1):
    """The model, with numbers in its norms and biases that a training might have left, scales of both signs."""
    r = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        if path[-1] not in ("kernel", "steps"):
            value = r.uniform(0.5, 2, variable.shape) if path[-1] == "var" else r.normal(size=variable.shape)
            variable[...] = jnp.asarray(value, variable.dtype)
    return model


def numbers(model):
    return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))))


def check(model, x, pairs=None, tolerance=TOLERANCE, **kwargs):
    """Folds, and compares with the model in evaluation, which is unchanged."""
    before, definition = numbers(model), nnx.graphdef(model)
    folded = fold(model, pairs)
    assert nnx.graphdef(model) == definition
    jax.tree.map(np.testing.assert_array_equal, numbers(model), before)
    got = nnx.jit(lambda m, x: m(x, **kwargs))(folded, x)
    want = nnx.jit(lambda m, x: m(x, **kwargs))(view(model, use_running_average=True), x)
    assert got.dtype == want.dtype
    assert normwise_error(got, want) < tolerance
    return folded


def make(cls, *args, **options):
    return partial(cls, *args, **options)


# Layers with six output features, and the shape of what they are given.
LAYERS = {
    "conv 1d": (make(nnx.Conv, 3, 6, (3,)), (4, 9, 3)),
    "conv 2d": (make(nnx.Conv, 3, 6, (3, 3)), (2, 8, 8, 3)),
    "conv without bias": (make(nnx.Conv, 3, 6, (3, 3), use_bias=False), (2, 8, 8, 3)),
    "strided": (make(nnx.Conv, 3, 6, (3, 3), strides=2, padding="VALID"), (2, 8, 8, 3)),
    "grouped": (make(nnx.Conv, 6, 6, (3, 3), feature_group_count=3, use_bias=False), (2, 8, 8, 6)),
    "dilated": (make(nnx.Conv, 3, 6, (3, 3), kernel_dilation=2), (2, 8, 8, 3)),
    "masked": (make(nnx.Conv, 3, 6, (3,), mask=jnp.ones((3, 3, 6)).at[2].set(0)), (4, 9, 3)),
    "transposed": (make(nnx.ConvTranspose, 3, 6, (3, 3), strides=2, use_bias=False), (2, 5, 5, 3)),
    "transposed kernel": (make(nnx.ConvTranspose, 3, 6, (3, 3), transpose_kernel=True), (2, 5, 5, 3)),
    "linear": (make(nnx.Linear, 3, 6), (8, 3)),
    "linear without bias": (make(nnx.Linear, 3, 6, use_bias=False), (8, 2, 3)),
    "linear general": (make(nnx.LinearGeneral, 3, (4, 6)), (8, 3)),
    "linear general without bias": (make(nnx.LinearGeneral, 3, (4, 6), batch_axis={0: 8}, use_bias=False), (8, 3)),
    "einsum": (make(nnx.Einsum, "bc,cde->bde", (3, 4, 6), (4, 6)), (8, 3)),
    "einsum without bias": (make(nnx.Einsum, "...c,cde->...de", (3, 4, 6)), (8, 2, 3)),
}
NORMS = {
    "ours": make(BatchNorm),
    "without scale": make(BatchNorm, use_scale=False),
    "without bias": make(BatchNorm, use_bias=False),
    "without either": make(BatchNorm, use_scale=False, use_bias=False, epsilon=0.1),
    "with activation": make(BatchNorm, activation=jnp.tanh),
    "output kept": make(BatchNorm, save_for_backward="output", activation=nnx.leaky_relu),
    "renormalising": make(BatchRenorm),
    "of Flax": make(nnx.BatchNorm),
    "of Flax without scale": make(nnx.BatchNorm, use_scale=False, epsilon=0.1),
}
CASES = {(layer, ("with activation", "of Flax")[i % 2]) for i, layer in enumerate(LAYERS)}
CASES |= {(layer, norm) for layer in ("conv 2d", "linear without bias") for norm in NORMS}


@pytest.mark.filterwarnings("ignore::batchnorm_jax.NegativeScaleWarning")
@pytest.mark.parametrize(("layer", "norm"), sorted(CASES))
def test_every_layer_with_every_norm(layer, norm):
    make_layer, shape = LAYERS[layer]
    rngs = nnx.Rngs(0)
    model = drawn(nnx.Sequential(make_layer(rngs=rngs), NORMS[norm](6, rngs=rngs)))
    folded = check(model, draw(shape))
    # Nothing of the norm is left, and the layer has a bias.
    assert not nnx.state(folded, nnx.BatchStat)
    parameters = [path for path, _ in nnx.to_flat_state(nnx.state(folded, nnx.Param))]
    assert parameters == [("layers", 0, "bias"), ("layers", 0, "kernel")]


@pytest.mark.filterwarnings("ignore::batchnorm_jax.NegativeScaleWarning")
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rank=st.integers(1, 2),
    groups=st.integers(1, 2),
    features=st.integers(1, 4),
    window=st.integers(1, 3),
    bias=st.booleans(),
    norm=st.sampled_from(sorted(NORMS)),
)
def test_any_shape(seed, rank, groups, features, window, bias, norm):
    rngs, out = nnx.Rngs(0), groups * features
    conv = nnx.Conv(2 * groups, out, (window,) * rank, feature_group_count=groups, use_bias=bias, rngs=rngs)
    model = drawn(nnx.Sequential(conv, NORMS[norm](out, rngs=rngs)), seed)
    check(model, draw((2, *[5] * rank, 2 * groups), seed))


@pytest.mark.parametrize("norm", [nnx.BatchNorm, BatchNorm])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, None])
def test_bfloat16(norm, dtype):
    """The computation of the layer is in bfloat16; the norm gives that or, by its variables, float32."""
    rngs = nnx.Rngs(0)
    conv = nnx.Conv(3, 6, (3, 3), dtype=jnp.bfloat16, rngs=rngs)
    model = drawn(nnx.Sequential(conv, norm(6, dtype=dtype, rngs=rngs)))
    folded = check(model, draw((8, 8, 8, 3)), tolerance=BFLOAT16_TOLERANCE)
    assert folded.layers[0].kernel.dtype == jnp.float32


class Block(nnx.Module):
    """Two convolutions with norms and a residual; with ours the residual and the ReLU are the norm's own."""

    def __init__(self, norm, rngs):
        self.convs = nnx.Dict(
            first=nnx.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs), last=nnx.Conv(4, 4, (3, 3), rngs=rngs)
        )
        self.fused = norm is BatchNorm
        last = {"activation": nnx.relu} if self.fused else {}
        self.norm_first, self.norm_last = norm(4, rngs=rngs), norm(4, **last, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, use_running_average=None):
        y = nnx.relu(self.norm_first(self.convs.first(x), use_running_average))
        y = self.convs.last(self.dropout(y))
        if self.fused:
            return self.norm_last(y, use_running_average, residual=x, mask=jnp.ones(()))
        return nnx.relu(self.norm_last(y, use_running_average) + x)


class Net(nnx.Module):
    """A stem, a chain that is nested, and blocks that are not chains."""

    def __init__(self, norm=BatchNorm, rngs=None):
        rngs = rngs or nnx.Rngs(0)
        self.stem = nnx.List([nnx.Conv(3, 4, (3, 3), rngs=rngs), norm(4, rngs=rngs), nnx.relu])
        inner = nnx.Sequential(nnx.relu, nnx.Conv(4, 4, (1, 1), use_bias=False, rngs=rngs))
        self.chain = nnx.Sequential(
            nnx.Linear(4, 4, rngs=rngs), norm(4, rngs=rngs), inner, norm(4, rngs=rngs), nnx.tanh
        )
        self.blocks = nnx.List([Block(norm, rngs), Block(norm, rngs)])

    def __call__(self, x):
        for layer in self.stem:
            x = layer(x)
        x = self.chain(x)
        for block in self.blocks:
            x = block(x)
        return x


BLOCK_PAIRS = [(f"blocks.{i}.convs.{name}", f"blocks.{i}.norm_{name}") for i in range(2) for name in ("first", "last")]


@pytest.mark.parametrize("norm", [nnx.BatchNorm, BatchNorm])
def test_a_small_residual_network(norm):
    model, x = drawn(Net(norm)), draw((2, 6, 6, 3))
    model.eval()
    with pytest.warns(UserWarning, match=r"fold: 4 norms .*'blocks/0/norm_first' does not stand directly .*an example"):
        chains = check(model, x)
    # Of the chains every norm is gone, and of the blocks none.
    left = {path[0] for path, _ in nnx.to_flat_state(nnx.state(chains, nnx.BatchStat))}
    assert left == {"blocks"}
    whole = check(chains, x, BLOCK_PAIRS)
    assert not nnx.state(fold(model, None, x), nnx.BatchStat)
    assert not nnx.state(whole, nnx.BatchStat)
    assert normwise_error(whole(x), model(x)) < TOLERANCE
    # It can be split, merged and jitted.
    merged = nnx.merge(*nnx.split(whole))
    assert normwise_error(nnx.jit(lambda m, x: m(x))(merged, x), model(x)) < TOLERANCE


def test_a_folded_model_is_in_evaluation_mode_and_does_not_train():
    model, x = drawn(Net()), draw((2, 6, 6, 3))
    folded = fold(model, None, x)
    np.testing.assert_array_equal(folded(x), folded(x))
    folded.train()
    with pytest.raises(ValueError, match=r"folded BatchNorm: use_running_average=False, but this norm was folded"):
        folded(x)
    # Its other modules can, and a call of a norm says for itself.
    assert view(folded, deterministic=False, use_running_average=True)(x).shape == (2, 6, 6, 4)
    norm, y = folded.blocks[0].norm_last, draw((2, 4))
    np.testing.assert_array_equal(norm(y, True, residual=y, mask=jnp.ones((2, 1), bool)), nnx.relu(2 * y))
    for options, message in (
        ({"use_running_average": False}, "use_running_average=False"),
        ({"use_running_average": True, "update_stats": True}, "update_stats=True"),
        ({"use_running_average": True, "residual": y[:1]}, r"residual has shape \(1, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            norm(y, **options)


def test_what_is_shared_stays_shared():
    rngs = nnx.Rngs(0)
    block = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), BatchNorm(4, rngs=rngs), nnx.relu)
    head = nnx.Linear(4, 4, rngs=rngs)
    model, x = drawn(nnx.Sequential(block, head, block, head)), draw((8, 4))
    folded = check(model, x)
    assert folded.layers[0] is folded.layers[2] and folded.layers[1] is folded.layers[3]
    assert folded.layers[1] is not head and block.layers[1].mean.shape == (4,)


def test_under_jit_and_stacked():
    """Folding is traced as any function; layers that `nnx.vmap` stacked are folded one by one."""
    rngs = nnx.Rngs(0)
    model, x = drawn(nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), BatchNorm(4, rngs=rngs))), draw((8, 4))
    evaluated = view(model, use_running_average=True)(x)
    assert normwise_error(nnx.jit(lambda m, x: fold(m)(x))(model, x), evaluated) < TOLERANCE

    @nnx.vmap
    def stacked(key):
        rngs = nnx.Rngs(key)
        return nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), BatchNorm(4, use_running_average=True, rngs=rngs))

    models = drawn(stacked(jax.random.split(jax.random.key(0), 3)))
    with pytest.raises(ValueError, match=r"are stacked: the mean has shape \(3, 4\).*nnx\.vmap\(fold\)\(model\)"):
        fold(models)
    folded = nnx.vmap(fold)(models)
    call = nnx.vmap(lambda m, x: m(x), in_axes=(0, None))
    assert normwise_error(call(folded, x), call(models, x)) < TOLERANCE


def test_metadata_of_parameters_is_kept():
    rngs = nnx.Rngs(0)
    linear = nnx.Linear(4, 4, use_bias=False, kernel_metadata={"note": "kernel"}, rngs=rngs)
    folded = fold(nnx.Sequential(linear, BatchNorm(4, bias_metadata={"note": "bias"}, rngs=rngs)))
    assert folded.layers[0].kernel.note == "kernel" and folded.layers[0].bias.note == "bias"


class Standardized(nnx.Linear):
    """Not what its base is."""


class Wrong(nnx.Module):
    """Layers that cannot be folded, each for its own reason."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.norm = nnx.Conv(3, 4, (3, 3), rngs=rngs), BatchNorm(4, rngs=rngs)
        self.again = self.conv
        self.tied = nnx.Linear(4, 4, rngs=rngs)
        self.other = nnx.Linear(4, 4, rngs=rngs)
        self.other.kernel = self.tied.kernel
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.wide = BatchNorm(5, rngs=rngs)
        self.first = BatchNorm(4, axis=1, rngs=rngs)
        self.adapting = BatchNorm(4, update_stats=True, rngs=rngs)
        self.derived = Standardized(4, 4, rngs=rngs)
        self.einsum = nnx.Einsum("bi,oi->bo", (4, 4), rngs=rngs)
        self.plain = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.pair = nnx.data((BatchNorm(4, rngs=rngs),))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("conv", "norm")], "'conv' is shared"),
        ([("tied", "norm")], "'tied' is shared: it, or a variable of it"),
        ([("linear", "norm"), ("plain", "norm")], "norm 'norm' is in several pairs"),
        ([("linear", "wide")], "'linear' and 'wide' do not belong together: 4 features and 5"),
        ([("plain", "first")], "'plain' and 'first': the norm's feature axis is 1, and the layer's is the last"),
        ([("linear", "adapting")], "the norm updates its statistics in evaluation too"),
        ([("derived", "norm")], "no layer 'derived' can be folded"),
        ([("einsum", "norm")], "'bi,oi->bo' does not have the kernel's last axis last"),
        ([("linera", "norm")], "did you mean 'linear'?"),
        ([("linear", "linear")], "no norm 'linear' can be folded; there are: adapting, first, norm, pair/0, wide"),
        ([("linear", "pair.0")], "'pair/0' is in a tuple"),
        (None, "fold: there is nothing to fold"),
        ([], "fold: there is nothing to fold: pairs is empty"),
        ("linear", "pairs must be a list of (layer, norm) paths"),
        ([("linear", "norm", "wide")], "each must be two paths"),
    ],
)
def test_what_cannot_be_folded_is_refused(pairs, message):
    model = Wrong()
    before = numbers(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        fold(model, pairs)
    jax.tree.map(np.testing.assert_array_equal, numbers(model), before)


def test_what_is_between_is_respected():
    """A ReLU between the two, or a class of one's own, and there is no pair."""
    rngs = nnx.Rngs(0)

    class Residual(nnx.Sequential):
        def __call__(self, x):
            return x + super().__call__(x)

    for between in (
        nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.relu),
        Residual(nnx.relu, nnx.Linear(4, 4, rngs=rngs)),
    ):
        with pytest.raises(ValueError, match="nothing to fold"):
            fold(nnx.Sequential(between, BatchNorm(4, rngs=rngs)))


def test_an_input_of_another_rank_than_the_axis_says():
    rngs = nnx.Rngs(0)
    model = drawn(nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), BatchNorm(4, axis=1, rngs=rngs)))
    folded = check(model, draw((8, 4)))
    with pytest.raises(ValueError, match=r"axis=1 is not the last of an input of shape \(8, 4, 4\)"):
        folded(draw((8, 4, 4)))


def test_pairs_may_be_written_as_attributes_and_be_any_iterable():
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    x = jnp.ones((1, 2))
    given = (pair for pair in [("layers.0", "layers.1")])
    np.testing.assert_array_equal(fold(model, given)(x), fold(model, [("layers/0", "layers/1")])(x))
