"""Models of PyTorch converted to linen and to nnx: the same results, the same running statistics, and back."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import batchnorm_jax.linen
import batchnorm_jax.nnx
from batchnorm_jax.torch_interop import (
    Layer,
    from_torch,
    names_from_torch,
    options_from_torch,
    options_to_torch,
    to_torch,
)
from tests.reference import normwise_error
from tests.torch_arrays import assert_close, check_same, draw

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


def test_a_name_of_a_wrapped_model_is_said():
    net = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(2, 3)))
    with pytest.raises(ValueError, match=r"'0' \(closest: 'module.0'\); .* 'module.0.weight', 'module.0.bias'"):
        from_torch(net.state_dict(), {"0": "fc"})


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_the_first_map_of_a_network_is_the_right_one(api):
    """All but the flattening, of which the arrays say nothing."""
    net = torch_net(flatten=True)
    if api == "linen":
        init = LinenNet(True, {}).init
        like = jax.eval_shape(lambda: init(jax.random.key(0), jnp.zeros((1, 8, 6, 3)), True))
    else:
        like = nnx.state(nnx.eval_shape(lambda: NNXNet(True, {}, nnx.Rngs(0))), (nnx.Param, nnx.BatchStat))
    paths = {name: getattr(layer, "path", layer) for name, layer in names_of(net, api, flatten=True).items()}
    assert names_from_torch(net.state_dict(), like, api=api) == paths
