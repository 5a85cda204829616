"""PyTorch's state and options in and out, beside NumPy formulas of PyTorch's documentation; without PyTorch."""

import itertools
import math
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import batchnorm_jax.linen
import batchnorm_jax.nnx
from batchnorm_jax.torch_interop import Layer, from_torch, options_from_torch, options_to_torch, to_torch
from tests.reference import normwise_error

DTYPES = [np.float16, jnp.bfloat16, np.float32, np.float64]
WINDOWS = {1: (3,), 2: (3, 2), 3: (2, 1, 3)}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def norm_state(features, seed=0, affine=True):
    r = np.random.default_rng(seed)
    names = ["weight", "bias", "running_mean", "running_var"][0 if affine else 2 :]
    return {**{n: r.uniform(0.5, 2, features).astype(np.float32) for n in names}, "num_batches_tracked": np.array(5)}


def check_equal(got, want):
    """Bit for bit: not even the payload of a NaN differs."""
    assert set(got) == set(want)
    for name, array in want.items():
        assert isinstance(got[name], np.ndarray)
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


@st.composite
def layers(draw):
    """The shapes of a layer's arrays in PyTorch, and the `Layer` that it needs."""
    size = st.integers(1, 4)
    kind = draw(st.sampled_from(["conv", "conv_transpose", "linear", "embedding", "batch_norm", "untracked", "norm"]))
    space = tuple(draw(st.lists(size, min_size=0, max_size=3)))
    chosen = (draw(size), *space) if draw(st.booleans()) else None
    features, out = math.prod(chosen) if chosen else draw(size), draw(size)
    bias = {"bias": (out,)} if draw(st.booleans()) else {}
    affine = {"weight": (features,), "bias": (features,)}
    running = {"running_mean": (features,), "running_var": (features,)}
    window = tuple(draw(st.lists(size, min_size=1, max_size=3)))
    if kind in ("conv", "conv_transpose"):
        first = (out, features) if kind == "conv" else (features, out)
        explicit = None if kind == "conv" and draw(st.booleans()) else kind
        return {"weight": first + window, **bias}, explicit, None
    if kind == "linear":
        return {"weight": (out, features), **bias}, None if bias else kind, chosen
    if kind == "embedding":
        return {"weight": (out, features)}, kind, None
    if kind == "batch_norm":
        return {**(affine if bias else {}), **running}, None, chosen
    return affine, "norm" if kind == "norm" else "untracked_batch_norm", chosen


@settings(max_examples=60, deadline=None)
@given(
    st.lists(layers(), min_size=1, max_size=4),
    st.sampled_from(["linen", "nnx"]),
    st.lists(st.sampled_from(DTYPES), min_size=4, max_size=4),
    st.integers(0, 2**32),
)
def test_a_round_trip_is_exact(chosen, api, dtypes, seed):
    r = np.random.default_rng(seed)
    state, names = {}, {}
    for i, ((shapes, kind, flattened), dtype) in enumerate(zip(chosen, dtypes, strict=False)):
        names[f"block.{i}.layer"] = Layer(f"block/{i}/layer", kind, flattened)
        for name, shape in shapes.items():
            # Any bits: infinities, subnormal numbers and every NaN.
            bits = r.bytes(math.prod(shape) * np.dtype(dtype).itemsize)
            state[f"block.{i}.layer.{name}"] = np.frombuffer(bits, dtype).reshape(shape)
        if "running_var" in shapes:
            state[f"block.{i}.layer.num_batches_tracked"] = np.array(r.integers(2**62))
    variables, counts = from_torch(state, names, api=api)
    check_equal(to_torch(variables, names, counts, api=api), state)


def one_norm(api, features, options):
    """For both APIs: train(variables, x) -> (y, variables), and evaluate(variables, x) -> y."""
    if api == "linen":
        norm = batchnorm_jax.linen.BatchNorm(**options)
        untracked = {} if "use_running_average" in options else {"use_running_average": False}

        def train(variables, x):
            y, updates = norm.apply(variables, x, mutable=["batch_stats"], **untracked)
            return y, {**variables, **updates}

        return train, lambda variables, x: norm.apply(variables, x, use_running_average=True)
    norm = batchnorm_jax.nnx.BatchNorm(features, rngs=nnx.Rngs(0), **options)

    def train_nnx(variables, x):
        nnx.update(norm, variables)
        return norm(x), nnx.state(norm, (nnx.Param, nnx.BatchStat))

    def evaluate(variables, x):
        nnx.update(norm, variables)
        return norm(x, use_running_average=True)

    return train_nnx, evaluate


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize("given", [{}, {"momentum": 0.3, "eps": 0.1}, {"affine": False}, {"momentum": None}], ids=str)
def test_a_norm_trains_and_evaluates_as_pytorch_documents(given, api):
    """Three steps of momentum (1 - m) old + m new, the new variance divided by n - 1; then evaluation."""
    eps, affine = given.get("eps", 1e-5), given.get("affine", True)
    state = norm_state(3, affine=affine)
    weight, bias = (state.get(name, default) for name, default in (("weight", 1), ("bias", 0)))
    mean, var = state["running_mean"].astype(np.float64), state["running_var"].astype(np.float64)
    variables, counts = from_torch(state, api=api)
    for step in range(3):
        x = draw(4, 5, 3, seed=step)
        tracked = 5 + step
        options = options_from_torch(given, num_batches_tracked=tracked)
        train, evaluate = one_norm(api, 3, options)
        y, variables = train(variables, jnp.asarray(x))
        x = x.reshape(-1, 3).astype(np.float64)
        share = given.get("momentum", 0.1)
        share = 1 / (tracked + 1) if share is None else share
        normalised = (x - x.mean(0)) / np.sqrt(x.var(0) + eps) * weight + bias
        mean, var = (1 - share) * mean + share * x.mean(0), (1 - share) * var + share * x.var(0, ddof=1)
        assert normwise_error(np.reshape(y, (-1, 3)), normalised) < 1e-5
    back = to_torch(variables, None, {name: count + 3 for name, count in counts.items()}, api=api)
    assert set(back) == set(state) and back["num_batches_tracked"] == 8
    assert normwise_error(back["running_mean"], mean) < 1e-6
    assert normwise_error(back["running_var"], var) < 1e-6
    evaluated = evaluate(variables, jnp.asarray(x, jnp.float32))
    assert normwise_error(evaluated, (x - mean) / np.sqrt(var + eps) * weight + bias) < 1e-5


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_norm_without_running_statistics(api):
    state = {name: norm_state(3)[name] for name in ("weight", "bias")}
    names = {"": Layer(kind="untracked_batch_norm")}
    variables, counts = from_torch(state, names, api=api)
    train, _ = one_norm(api, 3, options_from_torch({"track_running_stats": False}))
    # Flax's module has statistics all the same, as they are at first.
    stats = variables if api == "nnx" else variables["batch_stats"]
    np.testing.assert_array_equal([stats["mean"], stats["var"]], [[0] * 3, [1] * 3])
    x = draw(7, 3)
    y, after = train(variables, jnp.asarray(x))
    assert normwise_error(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * state["weight"] + state["bias"]) < 1e-5
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(after) if api == "nnx" else after, variables)
    check_equal(to_torch(after, names, counts, api=api), state)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", WINDOWS)
def test_a_convolution_is_that_of_channels_first(rank, groups):
    window = WINDOWS[rank]
    weight, bias, x = draw(6, 4 // groups, *window), draw(6, seed=1), draw(2, 4, *range(5, 5 + rank), seed=2)
    windows = np.lib.stride_tricks.sliding_window_view(x, window, tuple(range(2, 2 + rank)))
    k, s = "xyz"[:rank], "abc"[:rank]
    parts = [
        np.einsum(f"oi{k},ni{s}{k}->no{s}", w, v)
        for w, v in zip(np.split(weight, groups), np.split(windows, groups, 1), strict=True)
    ]
    want = np.concatenate(parts, 1) + bias.reshape(-1, *[1] * rank)
    variables, _ = from_torch({"weight": weight, "bias": bias})
    conv = nn.Conv(6, window, padding="VALID", feature_group_count=groups)
    assert normwise_error(conv.apply(variables, np.moveaxis(x, 1, -1)), np.moveaxis(want, 1, -1)) < 1e-5


@pytest.mark.parametrize("rank", WINDOWS)
def test_a_transposed_convolution_adds_up_windows(rank):
    window, stride = WINDOWS[rank], 2
    weight, x = draw(4, 6, *window), draw(2, 4, *range(3, 3 + rank), seed=2)
    want = np.zeros((2, 6, *((s - 1) * stride + k for s, k in zip(x.shape[2:], window, strict=True))))
    for at in itertools.product(*map(range, x.shape[2:])):
        region = tuple(slice(a * stride, a * stride + k) for a, k in zip(at, window, strict=True))
        want[:, :, *region] += np.einsum("ni,io...->no...", x[:, :, *at], weight)
    variables, _ = from_torch({"weight": weight}, {"": Layer(kind="conv_transpose")})
    conv = nn.ConvTranspose(6, window, (stride,) * rank, padding="VALID", use_bias=False)
    got = conv.apply(variables, np.moveaxis(x, 1, -1))
    # JAX leaves zeros beyond the last window where the stride is the wider.
    got = got[:, *(slice(s) for s in want.shape[2:])]
    assert normwise_error(got, np.moveaxis(want, 1, -1)) < 1e-5


@pytest.mark.parametrize("shape", [(3, 2, 4), (3, 5), (2, 3, 2, 2)])
def test_the_layers_after_a_flattened_map(shape):
    """A norm and a dense layer of features that PyTorch flattens channels first."""
    x, weight = draw(7, *shape), draw(2, math.prod(shape), seed=1)
    norm = norm_state(math.prod(shape))
    state = {"fc.weight": weight, "fc.bias": draw(2), **{f"bn.{name}": array for name, array in norm.items()}}
    names = {"fc": Layer("fc", flattened=shape), "bn": Layer("bn", flattened=shape)}
    variables, _ = from_torch(state, names)
    flat = x.reshape(7, -1)
    normalised = (flat - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
    want = normalised @ weight.T + state["fc.bias"]

    class Head(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = batchnorm_jax.linen.BatchNorm(use_running_average=True, name="bn")(x.reshape(len(x), -1))
            return nn.Dense(2, name="fc")(x)

    assert normwise_error(Head().apply(variables, np.moveaxis(x, 1, -1)), want) < 1e-5


@given(st.integers(0, 10**15))
def test_momenta_of_fifteen_decimals_come_back(numerator):
    momentum = float(f"{numerator}e-15")
    ours = options_from_torch({"momentum": momentum})
    assert ours["momentum"] == pytest.approx(1 - momentum, abs=1e-15)
    assert options_to_torch(ours)["momentum"] == momentum


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_options_come_back(affine, tracked):
    given = {"eps": 0.01, "momentum": 0.3, "affine": affine, "track_running_stats": tracked}
    options = options_from_torch(given)
    linen = batchnorm_jax.linen.BatchNorm(**options)
    for norm in (options, linen, batchnorm_jax.nnx.BatchNorm(2, rngs=nnx.Rngs(0), **options)):
        assert options_to_torch(norm) == given


def test_the_defaults_are_those_of_each_side():
    flax = {"eps": 1e-5, "momentum": 0.01, "affine": True, "track_running_stats": True}
    for norm in ({}, nn.BatchNorm(), nnx.BatchNorm(2, rngs=nnx.Rngs(0)), batchnorm_jax.linen.BatchNorm()):
        assert options_to_torch(norm) == flax
    assert options_from_torch() == options_from_torch({"eps": 1e-5, "momentum": 0.1})


def test_the_counts():
    state = {f"{name}.{entry}": value for name in "ab" for entry, value in norm_state(2).items()}
    variables, counts = from_torch(state, {"a": "x", "b": "y"})
    assert counts == {"a.num_batches_tracked": 5, "b.num_batches_tracked": 5}

    def back(given):
        made = to_torch(variables, {"a": "x", "b": "y"}, given)
        return {name: array for name, array in made.items() if "num" in name}

    check_equal(back(0), {name: np.array(0) for name in counts})
    check_equal(back(2**40), {name: np.array(2**40) for name in counts})
    check_equal(back({"b.num_batches_tracked": jnp.array(9)}), {"b.num_batches_tracked": np.array(9)})
    assert back(None) == {}
    # Dictionaries of before PyTorch 0.4.1 have none.
    old = {name: array for name, array in norm_state(2).items() if name != "num_batches_tracked"}
    variables, counts = from_torch(old)
    assert counts == {}
    check_equal(to_torch(variables, None, counts), old)


def test_nothing_is_shared():
    # Of float64 JAX makes no copy of its own.
    state = {"weight": draw(3, 2), "bias": draw(3).astype(np.float64)}
    copy = {name: array.copy() for name, array in state.items()}
    variables, _ = from_torch(state)
    for array in state.values():
        array[...] = 0
    back = to_torch(variables)
    check_equal(back, copy)
    for array in back.values():
        array[...] = 0
    check_equal(to_torch(variables), copy)


def test_float64_is_never_rounded(x64):
    state = {"weight": np.full((1, 1), 0.1), "bias": np.full(1, 0.1)}
    assert isinstance(from_torch(state)[0]["params"]["bias"], jax.Array)
    with jax.enable_x64(False):
        variables, _ = from_torch(state)
        assert isinstance(variables["params"]["bias"], np.ndarray)
        check_equal(to_torch(variables), state)


def test_it_imports_neither_pytorch_nor_flax():
    code = "import sys, batchnorm_jax.torch_interop; print({'torch', 'flax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"set()\n"
