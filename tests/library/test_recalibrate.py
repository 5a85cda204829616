"""Population statistics, against NumPy on all examples at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from batchnorm_jax import batch_norm, linen, recalibrate
from batchnorm_jax import nnx as ours_nnx
from tests.transforms import AXIS, make_mesh

FEATURES = 3
CUTS = ([64], [1] * 4 + [60], [32, 32], [10, 50, 4])


def draw(examples=64, seed=0):
    return np.random.default_rng(seed).normal(size=(examples, 4)).astype(np.float32) * 2 + 1


def cut(x, sizes):
    return [jnp.asarray(part) for part in np.split(x, np.cumsum(sizes)[:-1])]


class Net(nn.Module):
    """Two norms, ours and Flax's, after dense layers."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(FEATURES)(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not self.train)(x))
        x = nn.Dense(FEATURES)(x)
        return linen.BatchNorm(use_running_average=not self.train)(x)


class NetNNX(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, FEATURES, rngs=rngs), nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.low, self.high = nnx.BatchNorm(FEATURES, rngs=rngs), ours_nnx.BatchNorm(FEATURES, rngs=rngs)

    def __call__(self, x):
        return self.high(self.second(jnp.tanh(self.low(self.first(x)))))


def layer_by_layer(x, params):
    """In float64: the moments of each norm's input, each normalised by those below over all examples."""
    dense = [{k: np.asarray(v, np.float64) for k, v in params[f"Dense_{i}"].items()} for i in range(2)]
    low = np.asarray(x, np.float64) @ dense[0]["kernel"] + dense[0]["bias"]
    high = np.tanh((low - low.mean(0)) / np.sqrt(low.var(0) + 1e-5)) @ dense[1]["kernel"] + dense[1]["bias"]
    return [(a.mean(0), a.var(0)) for a in (low, high)]


def by_batches(batches, params):
    """In float64: the pooled moments of each norm's input, each batch normalised by its own."""
    dense = [{k: np.asarray(v, np.float64) for k, v in params[f"Dense_{i}"].items()} for i in range(2)]
    lows, highs = [], []
    for x in batches:
        low = np.asarray(x, np.float64) @ dense[0]["kernel"] + dense[0]["bias"]
        lows.append(low)
        highs.append(np.tanh((low - low.mean(0)) / np.sqrt(low.var(0) + 1e-5)) @ dense[1]["kernel"] + dense[1]["bias"])
    return [(a.mean(0), a.var(0)) for a in (np.concatenate(lows), np.concatenate(highs))]


def assert_stats(stats, want, tolerance=1e-5):
    for name, (mean, var) in zip(("BatchNorm_0", "BatchNorm_1"), want, strict=True):
        np.testing.assert_allclose(stats[name]["mean"], mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(stats[name]["var"], var, rtol=tolerance)


@pytest.mark.parametrize("sizes", CUTS, ids=str)
def test_layerwise_does_not_depend_on_the_cut(sizes):
    x = draw()
    variables = Net().init(jax.random.key(0), x)
    new = linen.recalibrate(Net(), variables, cut(x, sizes), mode="layerwise")
    assert_stats(new["batch_stats"], layer_by_layer(x, variables["params"]))
    assert new["params"] is variables["params"]


@pytest.mark.parametrize("sizes", CUTS, ids=str)
def test_pooled_is_one_pass_of_training(sizes):
    x = draw()
    variables = Net().init(jax.random.key(0), x)
    new = linen.recalibrate(Net(), variables, iter(cut(x, sizes)))
    assert_stats(new["batch_stats"], by_batches(cut(x, sizes), variables["params"]))


def test_pooled_depends_on_the_cut_and_layerwise_is_for_that():
    x = draw()
    variables = Net().init(jax.random.key(0), x)
    pooled = [linen.recalibrate(Net(), variables, cut(x, sizes))["batch_stats"] for sizes in ([64], [2] * 32)]
    assert np.max(np.abs(pooled[0]["BatchNorm_1"]["var"] / pooled[1]["BatchNorm_1"]["var"] - 1)) > 0.05


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_any_cut(sizes, seed):
    x = draw(sum(sizes), seed) + 100

    def moments_fn(variables, batch):
        return {"norm": batch_norm(batch, shift=variables["batch_stats"]["norm"]["mean"])[1]}

    variables = {"batch_stats": {"norm": {"mean": jnp.full(4, 100.0), "var": jnp.ones(4), "steps": 7}}}
    new = recalibrate(moments_fn, variables, cut(x, sizes))["batch_stats"]["norm"]
    np.testing.assert_allclose(new["mean"], np.mean(np.float64(x), 0), rtol=1e-6)
    np.testing.assert_allclose(new["var"], np.var(np.float64(x), 0), rtol=1e-4, atol=1e-6)
    assert new["steps"] == 7


@pytest.mark.parametrize("mode", ["pooled", "layerwise"])
def test_sharded_batches(mode):
    x = draw()
    variables = Net().init(jax.random.key(0), x)
    sharding = NamedSharding(make_mesh(8), P(AXIS))
    batches = [jax.device_put(part, sharding) for part in cut(x, [32, 32])]
    got = linen.recalibrate(Net(), variables, batches, mode=mode)["batch_stats"]
    want = linen.recalibrate(Net(), variables, cut(x, [32, 32]), mode=mode)["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_inside_a_shard_map_of_ones_own():
    x = draw()
    variables = Net().init(jax.random.key(0), x)
    function = linen.moments_fn(Net(), axis_name=AXIS)
    mapped = jax.shard_map(function, mesh=make_mesh(8), in_specs=(P(), P(AXIS)), out_specs=P())
    got = recalibrate(jax.jit(mapped), variables, [jnp.asarray(x)])["batch_stats"]
    assert_stats(got, by_batches([x], variables["params"]))


@pytest.mark.parametrize("mode", ["pooled", "layerwise"])
def test_nnx(mode):
    x = draw()
    model = NetNNX(nnx.Rngs(0))
    params = {
        f"Dense_{i}": {"kernel": layer.kernel[...], "bias": layer.bias[...]}
        for i, layer in enumerate((model.first, model.second))
    }
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    ours_nnx.recalibrate(model, cut(x, CUTS[3]), mode=mode)
    want = layer_by_layer(x, params) if mode == "layerwise" else by_batches(cut(x, CUTS[3]), params)
    stats = [{"mean": norm.mean[...], "var": norm.var[...]} for norm in (model.low, model.high)]
    assert_stats({"BatchNorm_0": stats[0], "BatchNorm_1": stats[1]}, want)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Param), before)
    assert type(model.low) is nnx.BatchNorm and type(model.high) is ours_nnx.BatchNorm
    assert not model.low.use_running_average and "recorded" not in vars(model.high)


def test_scanned_shared_and_renormalized_norms():
    """A norm that is called twice has the moments of both calls; those of a loop are a stack."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return linen.BatchNorm(use_running_average=True)(nn.Dense(4)(x)), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = linen.BatchRenorm(use_running_average=True, name="shared")
            x = shared(x) + shared(2 * x)

            axes = {"params": 0, "batch_stats": 0}
            return nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)()(x, None)[0]

    x = draw()
    variables = Deep().init(jax.random.key(0), jnp.asarray(x))
    new = linen.recalibrate(Deep(), variables, cut(x, [40, 24]), mode="layerwise")["batch_stats"]
    both = np.concatenate([x, 2 * x]).astype(np.float64)
    np.testing.assert_allclose(new["shared"]["mean"], both.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["shared"]["var"], both.var(0), rtol=1e-5)
    assert new["shared"]["steps"] == 0
    # Each loop's output, normalised by the new statistics, has mean 0 and variance 1.
    y = Deep().apply({**variables, "batch_stats": new}, jnp.asarray(x))
    np.testing.assert_allclose(np.mean(y, 0), 0, atol=1e-4)
    np.testing.assert_allclose(np.var(y, 0), 1, rtol=1e-3)


def test_with_a_span_the_statistics_are_those_of_all():
    x = draw()
    model = linen.BatchNorm(use_running_average=False, span=8)
    new = linen.recalibrate(model, model.init(jax.random.key(0), jnp.asarray(x)), [jnp.asarray(x)])
    np.testing.assert_allclose(new["batch_stats"]["var"], np.var(np.float64(x), 0), rtol=1e-5)


@pytest.mark.parametrize("limits", [(3.0, 5.0), (1.0, 0.0)])
def test_renormalization_leaves_nothing_of_the_old_domain(limits):
    """One batch, pooled: what evaluation gives the upper layer has the moments that it was given."""
    x = jnp.asarray(3 * draw() + 5)

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for name in ("low", "high"):
                options = {"use_running_average": True, "r_max": limits[0], "d_max": limits[1], "name": name}
                x = jnp.tanh(linen.BatchRenorm(**options)(nn.Dense(3)(x)))
                self.sow("intermediates", f"after {name}", x)
            return x

    variables = Deep().init(jax.random.key(0), x)
    new = linen.recalibrate(Deep(), {n: variables[n] for n in ("params", "batch_stats")}, [x])
    _, kept = Deep().apply(new, x, mutable=["intermediates"])
    dense = new["params"]["Dense_1"]
    given = kept["intermediates"]["after low"][0] @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(new["batch_stats"]["high"]["mean"], np.mean(given, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["high"]["var"], np.var(given, 0), rtol=1e-4)
    model = nnx.Sequential(
        nnx.Linear(4, 3, rngs=nnx.Rngs(0)),
        ours_nnx.BatchRenorm(3, r_max=limits[0], d_max=limits[1], rngs=nnx.Rngs(0)),
        nnx.Linear(3, 3, rngs=nnx.Rngs(1)),
        ours_nnx.BatchRenorm(3, r_max=limits[0], d_max=limits[1], rngs=nnx.Rngs(0)),
    )
    ours_nnx.recalibrate(model, [x])
    model.eval()
    given = model.layers[2](model.layers[1](model.layers[0](x)))
    np.testing.assert_allclose(model.layers[3].mean[...], np.mean(given, 0), rtol=1e-4, atol=1e-5)
    assert model.layers[1].r_max == limits[0]


def test_an_axis_that_is_bound_within_the_model_is_pooled_over():
    class Views(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.vmap(
                nn.BatchNorm,
                variable_axes={"params": None, "batch_stats": None},
                split_rngs={"params": False},
                in_axes=1,
                out_axes=1,
                axis_name="views",
            )
            return norm(use_running_average=False, axis_name="views")(x)

    x = jnp.asarray(draw()).reshape(16, 4, 4)
    variables = Views().init(jax.random.key(0), x)
    (stats,) = linen.recalibrate(Views(), variables, [x])["batch_stats"].values()
    np.testing.assert_allclose(stats["mean"], np.mean(x, (0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], np.var(x, (0, 1)), rtol=1e-5)


def test_complex_and_nonfinite_batches():
    x = jnp.asarray(draw()) * (1 + 2j)
    norm = nn.BatchNorm(use_running_average=True)
    new = linen.recalibrate(norm, norm.init(jax.random.key(0), x), [x])
    np.testing.assert_allclose(new["batch_stats"]["mean"], np.mean(x, 0), rtol=1e-5)
    bad = jnp.asarray(draw()).at[0, 0].set(jnp.nan)
    norm = linen.BatchNorm(use_running_average=True, skip_nonfinite=True)
    good = jnp.asarray(draw(seed=1))
    stats = linen.recalibrate(norm, norm.init(jax.random.key(0), good), [good, bad])["batch_stats"]
    np.testing.assert_allclose(stats["mean"][0], np.mean(good[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(stats["mean"][1], np.mean(np.concatenate([good, bad])[:, 1]), rtol=1e-5)


def test_other_collections_may_change_meanwhile():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls = self.variable("counters", "calls", lambda: jnp.zeros(()))
            calls.value = calls.value + 1
            return nn.BatchNorm(use_running_average=True)(x)

    x = jnp.asarray(draw())
    variables = Counting().init(jax.random.key(0), x)
    new = linen.recalibrate(Counting(), variables, [x])
    assert new["counters"] == variables["counters"]
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], np.mean(x, 0), rtol=1e-5)


def test_another_domain():
    """AdaBN: a model that was trained on x, adapted to 3x + 5 without labels, gives what it gave on x."""
    x = draw()
    model = nn.Sequential([linen.BatchNorm(use_running_average=True), nn.Dense(2)])
    variables = model.init(jax.random.key(0), jnp.asarray(x))
    home = linen.recalibrate(model, variables, cut(x, [32, 32]))
    away = linen.recalibrate(model, home, cut(3 * x + 5, [32, 32]))
    np.testing.assert_allclose(model.apply(away, 3 * x + 5), model.apply(home, x), rtol=1e-3, atol=1e-4)
    assert np.max(np.abs(model.apply(home, 3 * x + 5) - model.apply(home, x))) > 1


def wrong():
    x = jnp.ones((4, 2))
    variables = {"batch_stats": {"norm": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}}

    def moments_fn(variables, batch):
        return {"norm": batch_norm(batch)[1]}

    return {
        "mode='exact' is not known": lambda: recalibrate(moments_fn, variables, [x], mode="exact"),
        "batches is one array": lambda: recalibrate(moments_fn, variables, x),
        "there are no batches": lambda: recalibrate(moments_fn, variables, []),
        "goes over the batches several times": lambda: recalibrate(moments_fn, variables, iter([x]), mode="layerwise"),
        "have no 'batch_stats', but 'params'": lambda: recalibrate(moments_fn, {"params": {}}, [x]),
        "gives 'spam' at batch_stats, which has norm": lambda: recalibrate(
            lambda v, b: {"spam": batch_norm(b)[1]}, variables, [x]
        ),
        r"gives Moments of shape \(3,\)": lambda: recalibrate(moments_fn, variables, [jnp.ones((4, 3))]),
        "gives no Moments": lambda: recalibrate(lambda v, b: {}, variables, [x]),
        "at batch_stats/norm moments_fn gives ArrayImpl": lambda: recalibrate(
            lambda v, b: {"norm": b, "other": batch_norm(b)[1]}, {"batch_stats": {"norm": {}, "other": {}}}, [x]
        ),
        "Linear has no batch normalization": lambda: ours_nnx.recalibrate(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), [x]),
    }


@pytest.mark.parametrize("message", wrong())
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        wrong()[message]()


def test_a_feature_that_nothing_counts_for_keeps_its_own():
    def moments_fn(variables, batch):
        return {"norm": batch_norm(batch, mask=jnp.array([[True, False]]))[1]}

    variables = {"batch_stats": {"norm": {"mean": jnp.full(2, 7.0), "var": jnp.full(2, 9.0)}}}
    new = recalibrate(moments_fn, variables, [jnp.array([[1.0, 1.0], [3.0, 3.0]])])["batch_stats"]["norm"]
    np.testing.assert_allclose(new["mean"], [2, 7])
    np.testing.assert_allclose(new["var"], [1, 9])
