"""Models of PyTorch converted to linen and to nnx: the same results, the same running statistics, and back."""

import re

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

torch = pytest.importorskip("torch", reason="what PyTorch computes is compared with; CI has none")

NORM = {"eps": 1e-2, "momentum": 0.3}
MAP = (16, 4, 3)  # channels, height and width before the head


class TorchBlock(torch.nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(after, **NORM)
        self.conv2 = torch.nn.Conv2d(after, after, 3, padding=1, groups=2, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(after, **NORM)
        if stride > 1:
            shortcut = torch.nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(shortcut, torch.nn.BatchNorm2d(after, **NORM))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class TorchNet(torch.nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, stride=1, padding=1)
        self.bn1 = torch.nn.BatchNorm2d(8, **NORM)
        self.layer1 = torch.nn.Sequential(TorchBlock(8, 8, 1), TorchBlock(8, 16, 2))
        if flatten:
            self.bn = torch.nn.BatchNorm1d(int(np.prod(MAP)), **NORM)
        self.fc = torch.nn.Linear(int(np.prod(MAP)) if flatten else 16, 5)

    def forward(self, x):
        x = self.layer1(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(self.bn(x.flatten(1)) if hasattr(self, "bn") else x.mean((2, 3)))


def linen_norm(train, name, options):
    return batchnorm_jax.linen.BatchNorm(use_running_average=not train, name=name, **options)


class LinenBlock(nn.Module):
    features: int
    stride: int
    options: dict

    @nn.compact
    def __call__(self, x, train):
        def conv(x, name, size=3, stride=1, **options):
            padding = size // 2
            return nn.Conv(self.features, (size, size), stride, padding, use_bias=False, name=name, **options)(x)

        y = nn.relu(linen_norm(train, "bn1", self.options)(conv(x, "conv1", stride=self.stride)))
        y = linen_norm(train, "bn2", self.options)(conv(y, "conv2", feature_group_count=2))
        if self.stride > 1:
            x = linen_norm(train, "downsample_1", self.options)(conv(x, "downsample_0", 1, self.stride))
        return nn.relu(x + y)


class LinenNet(nn.Module):
    flatten: bool
    options: dict

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(linen_norm(train, "bn1", self.options)(nn.Conv(8, (3, 3), padding=1, name="conv1")(x)))
        x = LinenBlock(8, 1, self.options, name="layer1_0")(x, train)
        x = LinenBlock(16, 2, self.options, name="layer1_1")(x, train)
        if self.flatten:
            return nn.Dense(5, name="fc")(linen_norm(train, "bn", self.options)(x.reshape(len(x), -1)))
        return nn.Dense(5, name="fc")(x.mean((1, 2)))


class NNXBlock(nnx.Module):
    def __init__(self, before, after, stride, options, rngs):
        def conv(before, size=3, stride=1, groups=1):
            window = {"strides": stride, "padding": size // 2, "feature_group_count": groups}
            return nnx.Conv(before, after, (size, size), use_bias=False, rngs=rngs, **window)

        self.conv1, self.bn1 = conv(before, 3, stride), batchnorm_jax.nnx.BatchNorm(after, rngs=rngs, **options)
        self.conv2, self.bn2 = conv(after, groups=2), batchnorm_jax.nnx.BatchNorm(after, rngs=rngs, **options)
        norm = batchnorm_jax.nnx.BatchNorm(after, rngs=rngs, **options)
        self.downsample = nnx.List([conv(before, 1, stride), norm] if stride > 1 else [])

    def __call__(self, x):
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        for layer in self.downsample:
            x = layer(x)
        return nnx.relu(x + y)


class NNXNet(nnx.Module):
    def __init__(self, flatten, options, rngs):
        features = int(np.prod(MAP))
        self.conv1 = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.bn1 = batchnorm_jax.nnx.BatchNorm(8, rngs=rngs, **options)
        self.layer1 = nnx.List([NNXBlock(8, 8, 1, options, rngs), NNXBlock(8, 16, 2, options, rngs)])
        self.bn = batchnorm_jax.nnx.BatchNorm(features, rngs=rngs, **options) if flatten else None
        self.fc = nnx.Linear(features if flatten else 16, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        for block in self.layer1:
            x = block(x)
        return self.fc(self.bn(x.reshape(len(x), -1)) if self.bn is not None else x.mean((1, 2)))


def torch_net(flatten=False, seed=0):
    """With parameters and statistics none of which is at its initial value."""
    torch.manual_seed(seed)
    net = TorchNet(flatten)
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(int(torch.randint(1, 10**9, ())))
    return net


def names_of(net, api, flatten):
    layers = {name.rpartition(".")[0] for name in net.state_dict()}
    # layer1.1.downsample.0: of linen layer1_1/downsample_0, of nnx layer1/1/downsample/0.
    paths = {name: re.sub(r"\.(\d)", r"_\1" if api == "linen" else r"/\1", name).replace(".", "/") for name in layers}
    return {
        name: Layer(path, flattened=MAP) if flatten and name in ("fc", "bn") else path for name, path in paths.items()
    }


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape).astype(np.float32)


def runner(api, flatten, options, variables):
    """train(x) -> y, evaluate(x) -> y, variables() of the model as it is then."""
    if api == "linen":
        net, held = LinenNet(flatten, options), [variables]
        apply = jax.jit(net.apply, static_argnums=2, static_argnames="mutable")

        def train(x):
            y, updates = apply(held[0], x, True, mutable=("batch_stats",))
            held[0] = {**held[0], **updates}
            return y

        return train, lambda x: apply(held[0], x, False), lambda: held[0]
    net = NNXNet(flatten, options, nnx.Rngs(0))
    nnx.update(net, variables)
    forward = nnx.jit(lambda net, x: net(x))

    def in_mode(mode):
        def run(x):
            getattr(net, mode)()
            return forward(net, x)

        return run

    return in_mode("train"), in_mode("eval"), lambda: nnx.state(net, (nnx.Param, nnx.BatchStat))


def assert_close(got, want):
    assert set(got) == set(want)
    for name, array in want.items():
        if name.endswith("num_batches_tracked"):
            assert int(got[name]) == int(array), name
        else:
            assert normwise_error(got[name], array) < 1e-5, name


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_network_evaluates_and_trains_as_in_pytorch(api, flatten):
    net = torch_net(flatten)
    names = names_of(net, api, flatten)
    options = options_from_torch(net.bn1)
    assert options_to_torch(options) == {**NORM, "affine": True, "track_running_stats": True}
    variables, counts = from_torch(net.state_dict(), names, api=api)
    train, evaluate, state = runner(api, flatten, options, variables)

    def compare(step):
        """In evaluation, which shares no running statistics with training."""
        x = draw(6, 3, 8, 6, seed=100 + step)
        want = net.eval()(torch.as_tensor(x)).detach().numpy()
        assert normwise_error(evaluate(np.moveaxis(x, 1, -1)), want) < 1e-5
        return want

    compare(0)
    for step in range(1, 4):
        x = draw(6, 3, 8, 6, seed=step)
        want = net.train()(torch.as_tensor(x)).detach().numpy()
        assert normwise_error(train(np.moveaxis(x, 1, -1)), want) < 1e-5
        tracked = {name: count + step for name, count in counts.items()}
        back = to_torch(state(), names, tracked, api=api, as_tensor=torch.as_tensor)
        assert_close(back, net.state_dict())
        outputs = compare(step)
    # And PyTorch goes on with what comes back.
    other = torch_net(flatten, seed=1)
    other.load_state_dict(back)
    again = other.eval()(torch.as_tensor(draw(6, 3, 8, 6, seed=103))).detach().numpy()
    assert normwise_error(again, outputs) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_round_trip_of_a_network_is_exact(api, dtype):
    net = torch_net(flatten=True).to(dtype)
    names = names_of(net, api, flatten=True)
    variables, counts = from_torch(net.state_dict(), names, api=api)
    other = torch_net(flatten=True, seed=1).to(dtype)
    other.load_state_dict(to_torch(variables, names, counts, api=api, as_tensor=torch.as_tensor))
    check_same(other.state_dict(), net.state_dict())
    # Neither the order of the axes in memory nor a gradient matters.
    strange = dict(net.to(memory_format=torch.channels_last).named_parameters()) | dict(net.named_buffers())
    variables, counts = from_torch(strange, names, api=api)
    check_same(to_torch(variables, names, counts, api=api, as_tensor=torch.tensor), strange)


def check_same(got, want):
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype, name


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


def test_a_name_of_a_wrapped_model_is_said():
    net = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(2, 3)))
    with pytest.raises(ValueError, match=r"'0' \(closest: 'module.0'\); .* 'module.0.weight', 'module.0.bias'"):
        from_torch(net.state_dict(), {"0": "fc"})


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
