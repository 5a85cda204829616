"""Single layers of PyTorch converted to linen and to nnx: the same results, and the same running statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import batchnorm_jax.linen
import batchnorm_jax.nnx
from batchnorm_jax.torch_interop import Layer, from_torch, options_from_torch, options_to_torch, to_torch
from tests.compiling import compilations
from tests.reference import normwise_error
from tests.torch_arrays import assert_close, check_same, draw

torch = pytest.importorskip("torch", reason="what PyTorch computes is compared with; CI has none")

NORM = {"eps": 1e-2, "momentum": 0.3}


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
def test_convolutions(window, groups, before, after, stride, bias, transposed):
    rank = len(window)
    groups = 1 if transposed else groups
    name = f"Conv{'Transpose' * transposed}{rank}d"
    layer = getattr(torch.nn, name)(groups * before, groups * after, window, stride, groups=groups, bias=bias)
    x = draw(2, groups * before, *range(4, 4 + rank))
    want = np.moveaxis(layer(torch.as_tensor(x)).detach().numpy(), 1, -1)
    names = {"": Layer(kind="conv_transpose" if transposed else "conv")}
    variables, _ = from_torch(layer.state_dict(), names)
    options = {"features": groups * after, "kernel_size": window, "use_bias": bias, "padding": "VALID"}
    if transposed:
        flax = nn.ConvTranspose(strides=(stride,) * rank, **options)
    else:
        flax = nn.Conv(strides=stride, feature_group_count=groups, **options)
    got = flax.apply(variables, np.moveaxis(x, 1, -1))[:, *map(slice, want.shape[1:-1])]
    assert normwise_error(got, want) < 1e-5
    check_same(to_torch(variables, names, as_tensor=torch.as_tensor), layer.state_dict())


@pytest.mark.parametrize(
    ("layer", "kind", "flax"),
    [
        (torch.nn.Linear(6, 4), None, nn.Dense(4)),
        (torch.nn.Linear(6, 4, bias=False), "linear", nn.Dense(4, use_bias=False)),
        (torch.nn.LayerNorm(6), "norm", nn.LayerNorm(epsilon=1e-5)),
        (torch.nn.GroupNorm(3, 6), "norm", nn.GroupNorm(3, epsilon=1e-5)),
        (torch.nn.Embedding(7, 6), "embedding", nn.Embed(7, 6)),
    ],
    ids=str,
)
def test_other_layers(layer, kind, flax):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = np.arange(5) % 7 if kind == "embedding" else draw(5, 6)
    variables, _ = from_torch(layer.state_dict(), {"": Layer(kind=kind)})
    assert normwise_error(flax.apply(variables, x), layer(torch.as_tensor(x)).detach().numpy()) < 1e-5


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.1, 0.7, 1.0, None]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["linen", "nnx"]),
)
def test_norms(shape, momentum, affine, tracked, api):
    """Two steps of BatchNorm1d, 2d or 3d with every option; the features are on axis 1 here too."""
    assume(np.prod(shape) // shape[1] > 1)
    make = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
    layer = make[len(shape)](shape[1], momentum=momentum, affine=affine, track_running_stats=tracked)
    # A norm with neither parameters nor statistics has no state.
    assume(layer.state_dict())
    names = {"": "" if tracked else Layer(kind="untracked_batch_norm")}
    variables, counts = from_torch(layer.state_dict(), names, api=api)
    for step in range(2):
        # A cumulative average takes the number of batches of the layer itself.
        options = options_from_torch(layer, num_batches_tracked=None if tracked else step)
        # No two values are close, which would leave the variance, and either side's result, few digits.
        x = (np.random.default_rng(step).permutation(np.prod(shape)).reshape(shape) / 8).astype(np.float32)
        want = layer.train()(torch.as_tensor(x)).detach().numpy()
        if api == "linen":
            norm = batchnorm_jax.linen.BatchNorm(axis=1, **options)
            mode = {"use_running_average": False} if tracked else {}
            y, updates = norm.apply(variables, x, mutable=["batch_stats"], **mode)
            variables = {**variables, **updates}
        else:
            norm = batchnorm_jax.nnx.BatchNorm(shape[1], axis=1, rngs=nnx.Rngs(0), **options)
            nnx.update(norm, variables)
            y, variables = norm(jnp.asarray(x)), nnx.state(norm, (nnx.Param, nnx.BatchStat))
        assert normwise_error(y, want) < 1e-4
    back = to_torch(variables, names, {name: count + 2 for name, count in counts.items()}, api=api)
    assert_close(back, layer.state_dict())


def test_a_cumulative_average_under_jit():
    """The number of batches may be traced: one compilation serves every step."""
    layer = torch.nn.BatchNorm1d(3, momentum=None)
    variables, counts = from_torch(layer.state_dict())
    (count,) = counts.values()

    @jax.jit
    def step(variables, count, x):
        norm = batchnorm_jax.linen.BatchNorm(
            use_running_average=False, **options_from_torch({"momentum": None}, num_batches_tracked=count)
        )
        return {**variables, **norm.apply(variables, x, mutable=["batch_stats"])[1]}

    for i in range(3):
        x = draw(4, 3, seed=i)
        layer(torch.as_tensor(x))
        so_far = count + i
        with compilations() as compiled:
            variables = step(variables, so_far, x)
        assert len(compiled) == (i == 0)
    assert_close(to_torch(variables, None, int(count) + 3), layer.state_dict())


class Frozen(torch.nn.Module):
    """As torchvision's FrozenBatchNorm2d holds its state: buffers, and no option but eps."""

    def __init__(self, features):
        super().__init__()
        self.eps = 1e-2
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(features) + 0.5)

    def forward(self, x):
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt() * self.weight + self.bias


def later_untracked():
    """A norm whose statistics are no longer updated, of which PyTorch still evaluates by them."""
    layer = torch.nn.BatchNorm1d(3, **NORM)
    layer.running_mean += 2
    layer.running_var *= 4
    layer.track_running_stats = False
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [later_untracked, lambda: Frozen(3)], ids=["later-untracked", "frozen"])
def test_the_statistics_that_a_layer_holds_decide(make, training):
    layer = make().train(training)
    options = options_from_torch(layer)
    variables, _ = from_torch(layer.state_dict())
    mode = {} if "use_running_average" in options else {"use_running_average": not training}
    x = draw(8, 3)
    want = layer(torch.as_tensor(x)).detach().numpy()
    norm = batchnorm_jax.linen.BatchNorm(**options)
    got, updates = norm.apply(variables, x, mutable=["batch_stats"], **mode)
    assert normwise_error(got, want) < 1e-5
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_a_norm_with_a_scale_alone_has_that_option():
    assert options_to_torch(options_from_torch({"bias": False}))["bias"] is False


@pytest.mark.parametrize("momentum", [0.9, 0.6])
def test_synchronize_gives_an_unmodified_model_the_running_variance_of_pytorch(momentum):
    """By the norm's own momentum; Flax's variance, which is divided by n, is another one."""
    model = nn.Sequential([nn.BatchNorm(use_running_average=False, momentum=momentum)])
    theirs = torch.nn.BatchNorm1d(4, momentum=1 - momentum)
    variables = flax_alone = model.init(jax.random.key(0), draw(6, 4))
    for step in range(3):
        x = draw(6, 4, seed=step)
        want = theirs(torch.tensor(x)).detach().numpy()
        with batchnorm_jax.linen.synchronize(None, unbiased_running_var=True):
            got, updates = model.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **updates}
        flax_alone = {**flax_alone, **model.apply(flax_alone, x, mutable=["batch_stats"])[1]}
        assert normwise_error(got, want) < 1e-5
    stats = variables["batch_stats"]["layers_0"]
    assert normwise_error(stats["mean"], theirs.running_mean.numpy()) < 1e-5
    assert normwise_error(stats["var"], theirs.running_var.numpy()) < 1e-5
    assert normwise_error(flax_alone["batch_stats"]["layers_0"]["var"], theirs.running_var.numpy()) > 0.03
