"""Messages of torch_interop on names, kinds, shapes and options that do not fit; without PyTorch."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from batchnorm_jax.torch_interop import Layer, from_torch, options_from_torch, options_to_torch, to_torch


def zeros(**shapes):
    """Arrays by PyTorch's names, where __ stands for a dot."""
    return {name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}


VECTOR = {"weight": 3, "bias": 3}
RUNNING = {"running_mean": 3, "running_var": 3}
BN = zeros(**VECTOR, **RUNNING)
NET = {
    **zeros(conv__weight=(3, 1, 2, 2), fc__weight=(2, 3), fc__bias=2),
    **{f"layer1.0.bn1.{name}": array for name, array in BN.items()},
}
NAMES = {"conv": "conv", "fc": "fc", "layer1.0.bn1": "block/bn"}


def without(name):
    return {key: value for key, value in NAMES.items() if key != name}


@pytest.mark.parametrize(
    ("state", "names", "message"),
    [
        (
            NET,
            {**without("layer1.0.bn1"), "layer1.0.bn_1": "bn"},
            r"named and not in the state dictionary: 'layer1.0.bn_1' \(closest: 'layer1.0.bn1'\); in the state "
            r"dictionary and not named: 'layer1.0.bn1.weight', 'layer1.0.bn1.bias', 'layer1.0.bn1.running_mean', "
            r"'layer1.0.bn1.running_var'\. Every name needs a layer",
        ),
        (NET, without("fc"), r"from_torch: in the state dictionary and not named: 'fc.weight', 'fc.bias'\."),
        (NET, {**NAMES, "head": "head"}, r"from_torch: named and not in the state dictionary: 'head'\."),
        ({f"module.{k}": v for k, v in NET.items()}, NAMES, r"'layer1.0.bn1' \(closest: 'module.layer1.0.bn1'\)"),
        (NET, None, "not named: 'conv.weight', 'fc.weight'"),
        (BN, {"bn": "bn"}, r"not in the state dictionary: 'bn'; .*not named: 'weight', 'bias'"),
        (
            zeros(e__weight=(4, 3)),
            {"e": "a/b"},
            r"layer 'e' has arrays of the shapes \{'weight': \(4, 3\)\}, from which its kind is not clear; .* "
            r"'e': Layer\('a/b', kind=...\), one of 'linear', 'embedding'\.$",
        ),
        (zeros(**VECTOR), None, r"one of 'untracked_batch_norm', 'norm'\. A batch norm has a running mean"),
        # A bias of other than the first size belongs to a transposed convolution, one of more axes to a LayerNorm.
        (zeros(weight=(4, 3, 2, 2), bias=3), None, r"one of 'conv', 'conv_transpose'\.$"),
        (zeros(weight=(4, 3, 2), bias=(4, 3, 2)), None, "one of 'conv', 'conv_transpose'"),
        (zeros(weight_ih_l0=(4, 4)), None, r"bare parameters; carry them .* with '': Layer\('', kind='as_is'\)$"),
        (zeros(**VECTOR, running_mean=3), None, r"a layer of kind 'batch_norm' has \['running_mean', 'running_var'\]"),
        (zeros(weight=3, **RUNNING), None, "both weight and bias or neither: add a scale of ones"),
        (
            zeros(weight=(4, 3), bias=4, weight_u=4),
            None,
            r"layer '' has the arrays \['bias', 'weight', 'weight_u'\]; a layer of kind 'linear' has \['weight'\], "
            r"may have \['bias'\], and has no others",
        ),
        (zeros(**VECTOR, running_mean=3, running_var=4), None, r"'running_var': \(4,\).* all of one size"),
        (zeros(weight=(4, 3)), {"": Layer(kind="conv")}, r"for kind 'conv' the weight has 3 or 4 or 5 axes"),
        (zeros(weight=(4, 3)), {"": Layer(kind="norm")}, "for kind 'norm' the weight has 1 axes"),
        (
            zeros(weight=(2, 12), bias=2),
            {"": Layer(flattened=(3, 2, 3))},
            r"layer '' has 12 features, and the flattened map 18; give flattened=\(channels, height, width\)",
        ),
        (zeros(weight=(2, 3, 1)), {"": Layer(flattened=(3, 1))}, "no features of a flattened map"),
        (
            {**zeros(a__weight=(2, 3, 1), b__weight=(2, 3, 1))},
            {"a": "c/d", "b": ("c", "d")},
            "the names lead 'a' and 'b' to one path, 'c/d'",
        ),
    ],
)
def test_what_from_torch_refuses(state, names, message):
    with pytest.raises(ValueError, match=message) as error:
        from_torch(state, names)
    assert str(error.value).startswith("from_torch: ")


@pytest.mark.parametrize(
    ("variables", "names", "message"),
    [
        (
            {"params": {"blok": {"bn": {"scale": np.zeros(2)}}}},
            {"x": "block/bn"},
            r"named and not in the variables: 'block/bn' \(closest: 'blok/bn'\); in the variables and not named: "
            "'params/blok/bn/scale'",
        ),
        # Of a batch norm without its statistics nothing says that it is one.
        ({"params": {"scale": np.zeros(2), "bias": np.zeros(2)}}, None, "A batch norm has a running mean and variance"),
        ({"scale": np.zeros(2), "bias": np.zeros(2)}, None, "not named: 'scale', 'bias'"),
        ({"params": {"kernel": np.zeros((2, 2))}, "cache": {"i": np.zeros(())}}, None, "not named: 'cache/i'"),
        ({"params": {"scale": np.zeros(2)}, "batch_stats": {"mean": np.zeros(2), "var": np.zeros(2)}}, None, "neither"),
        ({"params": {"kernel": np.zeros(2)}}, None, r"shapes \{'kernel': \(2,\)\}, from which its kind"),
        ({"params": {"kernel": np.zeros((2, 2))}}, {"": Layer(kind="conv")}, "kind 'conv' the weight has 3 or 4 or 5"),
        ({"params": {"kernel": np.zeros((4, 2))}}, {"": Layer(flattened=(3, 2))}, "has 4 features, and .* map 6"),
    ],
)
def test_what_to_torch_refuses(variables, names, message):
    with pytest.raises(ValueError, match=message) as error:
        to_torch(variables, names)
    assert str(error.value).startswith("to_torch: ")


def test_a_count_of_no_batch_norm_is_refused():
    variables, _ = from_torch(NET, NAMES)
    message = r"num_batches_tracked has \['bn1'\]; the batch norms that are named have \['layer1.0.bn1.num_batches"
    with pytest.raises(ValueError, match=message):
        to_torch(variables, NAMES, {"bn1": 3})


@pytest.mark.parametrize("call", [from_torch, to_torch])
def test_choices_are_named(call):
    with pytest.raises(
        ValueError, match=rf"{call.__name__}: api='nxx' is none of 'linen', 'nnx'; did you mean 'nnx'\?"
    ):
        call(BN, api="nxx")
    with pytest.raises(ValueError, match=r"kind='conv_transposed' is none of .*; did you mean 'conv_transpose'\?"):
        Layer("up", kind="conv_transposed")


class Net(nn.Module):
    width: int = 3
    more: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(True, name="bn")(nn.Conv(self.width, (2, 2), use_bias=False, name="conv")(x))
        x = nn.Dense(2, name="fc")(x)
        return nn.Dense(2, name="extra")(x) if self.more else x


class NNXNet(nnx.Module):
    def __init__(self, rngs, width=3, more=False):
        self.conv = nnx.Conv(1, width, (2, 2), use_bias=False, rngs=rngs)
        self.blocks = nnx.List([nnx.BatchNorm(width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)])
        if more:
            self.extra = nnx.Linear(2, 2, rngs=rngs)


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_result_can_be_checked_against_the_model(api, abstract):
    def variables(**options):
        if api == "linen":
            return Net(**options).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
        return nnx.state(NNXNet(nnx.Rngs(0), **options), (nnx.Param, nnx.BatchStat))

    def like(**options):
        return jax.eval_shape(lambda: variables(**options)) if abstract else variables(**options)

    names = {**NAMES, "layer1.0.bn1": "bn"} if api == "linen" else {"conv": "conv"}
    if api == "nnx":
        names |= {"layer1.0.bn1": ("blocks", 0), "fc": "blocks/1"}
    got, _ = from_torch(NET, names, api=api, like=like())
    # It has the structure of the model's own variables.
    want = variables() if api == "linen" else nnx.to_pure_dict(variables())
    assert jax.tree.structure(got) == jax.tree.structure(want)
    conv = "params/conv/kernel" if api == "linen" else "conv/kernel"
    with pytest.raises(ValueError, match=rf"{conv} has shape \(2, 2, 1, 3\), not \(2, 2, 1, 4\)"):
        from_torch(NET, names, api=api, like=like(width=4))
    with pytest.raises(ValueError, match="extra/kernel is missing") as error:
        from_torch(NET, names, api=api, like=like(more=True))
    assert "extra/bias is missing" in str(error.value)
    with pytest.raises(ValueError, match="elsewhere/kernel is not in `like`"):
        from_torch(NET, {**names, "conv": "elsewhere"}, api=api, like=like())


def test_numbers_in_a_path_are_names_for_linen_and_indices_for_nnx():
    state = zeros(weight=(2, 3), bias=2)
    assert set(from_torch(state, {"": "a/0"})[0]["params"]["a"]) == {"0"}
    assert set(from_torch(state, {"": "a/0"}, api="nnx")[0]["a"]) == {0}
    assert set(from_torch(state, {"": ("a", "0")}, api="nnx")[0]["a"]) == {"0"}


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        (options_from_torch, {"epsilon": 1e-3}, r"\['epsilon'\] are not options .*\['eps', 'momentum', 'affine'"),
        (
            options_from_torch,
            {"momentum": None},
            "momentum=None averages all batches alike.*give num_batches_tracked=n",
        ),
        (options_from_torch, nn.Dense(2), "a batch norm or a dict of its options is wanted, not Dense"),
        (options_to_torch, {"axis_name": "i"}, r"\['axis_name'\] are not options .* 'unbiased_running_var'"),
        (options_from_torch, {"momentum": 1.5}, "momentum=1.5 must be a number between 0 and 1"),
        (options_from_torch, {"eps": "small"}, "eps='small' must be a number, 0 or more"),
        (options_from_torch, {"affine": "no"}, "affine='no' must be True or False"),
        (options_from_torch, nn.BatchNorm(), "BatchNorm has an epsilon, which is Flax's name; .* options_to_torch"),
        (options_to_torch, {"update_stats": False}, "PyTorch makes no such norm. .* track_running_stats = False on"),
        (options_to_torch, nn.BatchNorm(use_scale=False), "use_scale=False and use_bias=True; PyTorch has no bias"),
        (options_to_torch, nn.Dense(2), "a batch norm or a dict of its options is wanted, not Dense"),
    ],
    ids=[
        "from-unknown",
        "from-cumulative",
        "from-dense",
        "to-axis_name",
        "from-momentum",
        "from-eps",
        "from-affine",
        "from-flax",
        "to-update_stats",
        "to-no-scale",
        "to-dense",
    ],
)
def test_options_that_do_not_fit_are_refused(call, given, message):
    with pytest.raises(ValueError, match=message) as error:
        call(given)
    assert re.match(rf"{call.__name__}: ", str(error.value))


def test_an_instance_norm_is_no_batch_norm():
    class InstanceNorm2d:
        momentum, eps, affine, track_running_stats = 0.1, 1e-5, True, True

    with pytest.raises(ValueError, match="InstanceNorm2d normalises each example by itself"):
        options_from_torch(InstanceNorm2d())
