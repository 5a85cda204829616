"""Bare parameters of PyTorch modules, carried as they are, and the first map of names; without PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm_jax.torch_interop import Layer, from_torch, names_from_torch, to_torch
from tests.torch_arrays import draw

# What models of many kinds hold beside layers: LayerScale, attention biases, tokens, gains, a fused projection, lists.
BARE = {
    "cls_token": (1, 1, 4),
    "pos_embed": (1, 5, 4),
    "block.gamma": (4,),
    "block.0.attn.attention_biases": (2, 9),
    "block.0.attn.in_proj_weight": (12, 4),
    "block.0.attn.in_proj_bias": (12,),
    "stem.conv.gain": (4, 1, 1, 1),
    "scales.0": (),
    "scales.1": (3, 2),
    "head.mean": (4,),
}
LAYERS = {
    "stem.conv.weight": (4, 2, 3, 5),
    "stem.conv.bias": (4,),
    "block.conv.weight": (4, 4, 3, 3),
    "block.norm.weight": (4,),
    "block.norm.bias": (4,),
    "block.0.attn.bn.running_mean": (4,),
    "block.0.attn.bn.running_var": (4,),
    "head.fc.weight": (7, 4),
}


def state_of(shapes):
    return {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def leaf_of(variables, *path):
    for name in path:
        variables = variables[name]
    return np.asarray(variables)


def check_equal(got, want):
    assert set(got) == set(want)
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_module_with_bare_parameters_and_children(api):
    state = state_of({"block.gamma": (4,), "block.mean": (4,), "block.conv.weight": (4, 3, 2, 1)})
    names = {"block.conv": "block/conv", "block": Layer("block", kind="as_is")}
    variables, counts = from_torch(state, names, api=api)
    top = ("params",) if api == "linen" else ()
    for name in ("gamma", "mean"):  # A bare parameter of the name of a running mean is a parameter all the same.
        np.testing.assert_array_equal(leaf_of(variables, *top, "block", name), state[f"block.{name}"])
    assert leaf_of(variables, *top, "block", "conv", "kernel").shape == (2, 1, 3, 4)
    check_equal(to_torch(variables, names, counts, api=api), state)


def test_one_array_is_carried_alone_and_under_any_name():
    state = state_of({"cls_token": (1, 1, 4), "conv.weight": (4, 2, 3, 3), "conv.gain": (4, 1, 1, 1)})
    names = {
        "cls_token": Layer("encoder/cls", kind="as_is"),
        "conv": "conv",
        "conv.gain": Layer(("conv", "my.scale"), kind="as_is"),
    }
    variables, _ = from_torch(state, names)
    params = variables["params"]
    np.testing.assert_array_equal(params["encoder"]["cls"], state["cls_token"])
    assert set(params["conv"]) == {"kernel", "my.scale"}
    np.testing.assert_array_equal(params["conv"]["my.scale"], state["conv.gain"])
    check_equal(to_torch(variables, names), state)


def test_a_list_of_parameters_is_one_for_nnx():
    state = state_of({"scales.0": (2,), "scales.1": (3,)})
    names = {"scales": Layer("scales", kind="as_is")}
    variables, _ = from_torch(state, names, api="nnx")
    assert list(variables["scales"]) == [0, 1]

    class Scales(nnx.Module):
        def __init__(self):
            self.scales = nnx.List([nnx.Param(jnp.zeros(2)), nnx.Param(jnp.zeros(3))])

    model = Scales()
    nnx.update(model, variables)
    np.testing.assert_array_equal(model.scales[1][...], state["scales.1"])
    check_equal(to_torch(nnx.state(model), names, api="nnx"), state)


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.sampled_from(sorted(BARE)), min_size=1),
    st.sets(st.sampled_from(["stem.conv", "block.conv", "block.norm", "block.0.attn.bn", "head.fc"])),
    st.sampled_from(["linen", "nnx"]),
    st.sampled_from([np.float16, jnp.bfloat16, np.float64]),
)
def test_any_state_comes_back_by_its_first_map(bare, layers, api, dtype):
    shapes = {name: BARE[name] for name in sorted(bare)}
    shapes |= {name: shape for name, shape in LAYERS.items() if name.rpartition(".")[0] in layers}
    state = {name: array.astype(dtype) for name, array in state_of(shapes).items()}
    names = names_from_torch(state, api=api)
    assert {name for name, layer in names.items() if getattr(layer, "kind", None) == "as_is"} == set(bare)
    variables, counts = from_torch(state, names, api=api)
    check_equal(to_torch(variables, names, counts, api=api), state)
    # The map can be pasted, and one made from the variables is the same.
    assert eval(repr(names), {"Layer": Layer}) == names
    assert names_from_torch(state, variables, api=api) == names


class Net(nn.Module):
    """Layers under names of Flax's own, and more than ten of them, which JAX sorts as Conv_0, Conv_1, Conv_10, ..."""

    @nn.compact
    def __call__(self, x):
        self.param("token", nn.initializers.zeros, (1, 4))
        for _ in range(12):
            x = nn.LayerNorm()(nn.Conv(4, (3, 3), use_bias=False)(x))
        x = nn.BatchNorm(True)(nn.ConvTranspose(3, (2, 2), use_bias=False)(x)).mean((1, 2))
        return nn.Dense(5, use_bias=False)(x) + nn.Embed(6, 5)(jnp.zeros(1, int))


def test_the_first_map_leads_to_the_layers_of_a_model():
    like = jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 4, 4, 4)))
    shapes = {"cls_token": (1, 4), "words.weight": (6, 5)}
    for i in range(12):
        shapes |= {f"trunk.{2 * i}.weight": (4, 4, 3, 3)}
        shapes |= {f"trunk.{2 * i + 1}.{name}": (4,) for name in ("weight", "bias")}
    shapes |= {"up.weight": (4, 3, 2, 2)}
    shapes |= {f"bn.{name}": (3,) for name in ("weight", "bias", "running_mean", "running_var")}
    state = state_of(shapes | {"head.weight": (5, 3)})
    names = names_from_torch(state, like)
    assert names == {
        **{f"trunk.{2 * i}": f"Conv_{i}" for i in range(12)},
        **{f"trunk.{2 * i + 1}": Layer(f"LayerNorm_{i}", kind="norm") for i in range(12)},
        "cls_token": Layer("token", kind="as_is"),
        "words": Layer("Embed_0", kind="embedding"),
        "up": Layer("ConvTranspose_0", kind="conv_transpose"),
        "bn": "BatchNorm_0",
        "head": Layer("Dense_0", kind="linear"),
    }
    variables, _ = from_torch(state, names, like=like)
    check_equal(to_torch(variables, names), state)


def test_the_same_names_lead_to_each_other_in_any_order():
    state = state_of({"b.fc2.weight": (3, 3), "b.fc1.weight": (3, 3), "a.weight": (3, 3)})
    like = {"params": {name: {"kernel": np.zeros((3, 3))} for name in ("extra", "A", "B_fc1", "b_fc_2")}}
    paths = {name: getattr(layer, "path", layer) for name, layer in names_from_torch(state, like).items()}
    assert paths == {"b.fc2": "b_fc_2", "b.fc1": "B_fc1", "a": "A"}


def test_layers_of_one_shape_are_matched_in_the_order_of_their_definition():
    state = state_of({"x.weight": (3, 3), "y.weight": (3, 3)})
    like = {"params": {name: {"kernel": np.zeros((3, 3))} for name in ("z", "a")}}
    assert [layer.path for layer in names_from_torch(state, like).values()] == ["z", "a"]


def test_what_has_no_counterpart_keeps_its_own_path():
    names = names_from_torch(state_of({"new.fc.weight": (3, 2), "gamma": (2,)}), {"params": {}})
    assert names == {"new.fc": Layer("new/fc", kind="linear"), "gamma": Layer("gamma", kind="as_is")}


def test_a_buffer_of_integers_is_refused_where_it_is_named_and_where_it_is_not():
    table = {"attn.table": draw(9, 2), "attn.index": np.zeros((3, 3), np.int64)}
    advice = "Take it out of the dictionary"
    with pytest.raises(ValueError, match=rf"layer 'attn' has 'index' of type int64: a buffer, .*{advice}"):
        from_torch(table, {"attn": Layer("attn", kind="as_is")})
    with pytest.raises(ValueError, match=r"'attn.index' is a buffer that is no parameter; leave it out: .*'index'\)"):
        from_torch(table, {"attn.table": Layer("attn/table", kind="as_is")})
    assert list(names_from_torch(table)) == ["attn.table"]


@pytest.mark.parametrize(
    ("shapes", "names", "message"),
    [
        (
            {"block.gamma": (4,), "block.conv.weight": (4, 4, 3, 3)},
            {"block.conv": "block/conv", "block": "block"},
            r"'block' has the arrays 'gamma' \(4,\), .*bare parameters; .* 'block': Layer\('block', kind='as_is'\)$",
        ),
        (
            {"conv.weight": (4, 2, 3, 3), "conv.gain": (4, 1, 1, 1)},
            {"conv": "a/conv"},
            r"has no others\. Carry 'gain' by a name of its own, 'conv.gain': Layer\('a/conv/gain', kind='as_is'\), ",
        ),
        (
            {"fc.weight": (4, 2), "fc.bias": (4,), "block.0.token": (1, 1)},
            {"fc": "fc"},
            r"not named: 'block.0.token'\. .* its own, 'block.0.token': Layer\('block/0/token', kind='as_is'\)$",
        ),
        (
            {"fc.weight": (4, 2)},
            {"fc.weight": "fc/kernel"},
            r"'fc.weight' is an array, and names are those of modules: name its module, 'fc'\. Or carry .*'fc/kernel'",
        ),
        (
            {"token": (4, 2)},
            {"token": Layer("", kind="as_is")},
            r"needs a path with its own name, 'token': Layer\('tok",
        ),
        (
            {"bn.running_mean": (4,), "bn.running_var": (4,)},
            {"bn": Layer("bn", kind="as_is")},
            "has running statistics, which are no parameters: leave kind='as_is' out",
        ),
        ({"a.x": (4,)}, {"a": Layer("a", "as_is", flattened=(4, 1))}, "no features of a flattened map"),
        (
            {"fc.weight": (4, 2), "fc.bias": (4,), "x": (2,)},
            {"fc": "fc", "x": Layer("fc/kernel", kind="as_is")},
            "lead arrays of 'fc' and 'x' to one place, 'params/fc/kernel'",
        ),
        (
            {"fc.weight": (4, 2), "fc.bias": (4,), "x": (2,)},
            {"fc": "top/fc", "x": Layer("top", kind="as_is")},
            "'params/top' is an array of 'x', and 'fc' is led into it",
        ),
        # PyTorch has no such module; nothing of it is dropped.
        ({"a": (2,), "a.b": (2,)}, {"a": Layer("a", kind="as_is")}, "not named: 'a'"),
    ],
)
def test_what_from_torch_says_of_bare_parameters(shapes, names, message):
    with pytest.raises(ValueError, match=message):
        from_torch(state_of(shapes), names)


@pytest.mark.parametrize(
    ("params", "names", "message"),
    [
        (
            {"b": {"gamma": np.zeros(2)}},
            {"x": "b"},
            r"'x' has the arrays 'gamma' \(2,\).*'x': Layer\('b', kind='as_is'",
        ),
        (
            {"b": {"kernel": np.zeros((2, 2)), "gain": np.zeros(2)}},
            {"x": "b"},
            r"has \['kernel'\], .* Carry 'gain' by a name of its own, 'x.gain': Layer\('b/gain', kind='as_is'\)",
        ),
        (
            {"gamma": np.zeros(2)},
            {"x.gamma": "gamma"},
            r"'gamma', is that of an array; .* Layer\('gamma', kind='as_is'",
        ),
    ],
)
def test_what_to_torch_says_of_bare_parameters(params, names, message):
    with pytest.raises(ValueError, match=message):
        to_torch({"params": params}, names)
