"""Existing models, of Flax's documentation and of a package, with their norms run as ours."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax_resnet
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from batchnorm_jax import linen
from batchnorm_jax import nnx as ours_nnx
from tests.reference import normwise_error
from tests.transforms import AXIS, make_mesh

DEVICES = 8


class Documented(nn.Module):
    """The example of Flax's guide "Batch normalization"."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(features=4)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x)
        return nn.Dense(features=1)(x)


class DocumentedNNX(nnx.Module):
    """The example of Flax's page "NNX basics", without its dropout's randomness."""

    def __init__(self, din: int, dmid: int, dout: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(din, dmid, rngs=rngs)
        self.dropout = nnx.Dropout(rate=0.0, rngs=rngs)
        self.bn = nnx.BatchNorm(dmid, rngs=rngs)
        self.linear_out = nnx.Linear(dmid, dout, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.dropout(self.bn(self.linear(x))))
        return self.linear_out(x)


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _):
        return nn.BatchNorm(use_running_average=not self.train)(nn.Dense(6)(x)), None


class Shared(nn.Module):
    """One norm that is called twice, and a loop of layers with checkpointed activations."""

    @nn.compact
    def __call__(self, x, train: bool):
        norm = nn.BatchNorm(use_running_average=not train, name="shared")
        x = norm(nn.Dense(6)(norm(x)))
        axes = {"params": 0, "batch_stats": 0}
        loop = nn.scan(nn.remat(Block), variable_axes=axes, split_rngs={"params": True}, length=3)
        return loop(train)(x, None)[0]


def resnet():
    return jax_resnet.ResNet(
        block_cls=jax_resnet.ResNetBlock,
        stage_sizes=[1],
        n_classes=3,
        hidden_sizes=(8,),
        stem_cls=jax_resnet.ResNetStem,
    )


LINEN = {
    "documentation": (Documented, (4, 6), {"train": True}),
    "published ResNet": (resnet, (2, 16, 16, 3), {}),
    "shared, scanned, checkpointed": (Shared, (4, 6), {"train": True}),
}


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(DEVICES, *shape)) * 2 + 1, jnp.float32)


def over_devices(function, x):
    """`function` of each device's share."""
    mapped = jax.shard_map(
        lambda x: jax.tree.map(lambda a: a[None], function(x[0])),
        mesh=make_mesh(DEVICES),
        in_specs=P(AXIS),
        out_specs=P(AXIS),
    )
    return jax.jit(mapped)(x)


@pytest.mark.parametrize("model", LINEN)
def test_linen_pools_over_the_devices(model):
    """Results, gradients and updates are those that Flax itself has on all examples at once."""
    make, shape, options = LINEN[model]
    model, x = make(), draw(shape)
    variables = model.init(jax.random.key(0), x[0], **options)

    def loss(params, x):
        y, updates = model.apply({**variables, "params": params}, x, mutable=["batch_stats"], **options)
        return jnp.sum(jnp.sin(y)), (y, updates["batch_stats"])

    def share(x):
        with linen.synchronize(AXIS):
            return jax.grad(loss, has_aux=True)(variables["params"], x)

    gradients, (y, updates) = over_devices(share, x)
    whole = x.reshape(-1, *shape[1:])
    want_gradients, (want, want_updates) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], whole)
    assert normwise_error(y.reshape(want.shape), want) < 1e-5
    for got, expected in zip(jax.tree.leaves(updates), jax.tree.leaves(want_updates), strict=True):
        np.testing.assert_allclose(got[-1], expected, rtol=1e-5, atol=1e-6)
    # Parameters are replicated: JAX adds their gradients up. A dense layer's bias before a norm has none but rounding.
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want_gradients))
    for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        assert float(jnp.max(jnp.abs(got[-1] - expected))) < 1e-4 * largest


@pytest.mark.parametrize("model", LINEN)
def test_linen_initialises_and_evaluates_alike(model):
    make, shape, options = LINEN[model]
    model, x = make(), draw(shape)[0]
    variables = model.init(jax.random.key(0), x, **options)
    with linen.synchronize(AXIS) as replaced:
        inside = model.init(jax.random.key(0), x, **options)
    assert replaced
    jax.tree.map(np.testing.assert_array_equal, inside, variables)
    if "train" in options:
        with linen.synchronize(AXIS):
            got = model.apply(variables, x, train=False)
        np.testing.assert_allclose(got, model.apply(variables, x, train=False), rtol=1e-5, atol=1e-5)


def test_what_was_traced_before_is_not_affected():
    model, x = Documented(), draw((4, 6))[0]
    variables = model.init(jax.random.key(0), x, train=True)
    step = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    step(x)
    with pytest.raises(ValueError, match="no norm was turned: no flax"), linen.synchronize("not bound"):
        step(x)
    jax.clear_caches()
    with linen.synchronize("not bound"), pytest.raises(ValueError, match="axis_name='not bound' is not bound here"):
        model.apply(variables, x, train=True, mutable=["batch_stats"])


def test_the_options_reach_the_norms_and_those_of_ours_stay():
    x = draw((4, 6))[0]
    model = nn.Sequential([nn.BatchNorm(use_running_average=False), linen.BatchNorm(use_running_average=False)])
    variables = model.init(jax.random.key(0), x)
    with linen.synchronize(None, unbiased_running_var=True, momentum=0.0) as replaced:
        _, updates = model.apply(variables, x, mutable=["batch_stats"])
    assert replaced == ["layers_0"]
    np.testing.assert_allclose(updates["batch_stats"]["layers_0"]["var"], np.var(x, 0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["layers_1"]["var"], 0.99 + 0.01, rtol=1e-4)


def test_subclasses_are_followed_to_the_call_of_flax():
    class Doubled(nn.BatchNorm):
        def __call__(self, x, use_running_average=None, *, mask=None):
            return super().__call__(2 * x, use_running_average, mask=mask)

    x = draw((4, 6))
    model = Doubled(use_running_average=False)
    variables = model.init(jax.random.key(0), x[0])

    def share(x):
        with linen.synchronize(AXIS):
            return model.apply(variables, x, mutable=["batch_stats"])

    y, updates = over_devices(share, x)
    np.testing.assert_allclose(updates["batch_stats"]["mean"][0], 0.02 * np.mean(x, (0, 1)), rtol=1e-4)
    np.testing.assert_allclose(np.mean(y, (0, 1)), 0, atol=1e-5)


def test_nnx_pools_over_the_devices():
    x = draw((4, 6))
    model, flax_model = (DocumentedNNX(6, 5, 2, rngs=nnx.Rngs(0)) for _ in range(2))
    assert ours_nnx.synchronize(model, axis_name=AXIS) == ["bn"]
    graph, state = nnx.split(model)

    def share(x):
        def loss(params, rest):
            model = nnx.merge(graph, params, rest, copy=True)
            y = model(x)
            return jnp.sum(jnp.sin(y)), (y, nnx.state(model, nnx.BatchStat))

        params, rest = nnx.split_state(state, nnx.Param, ...)
        return jax.grad(loss, has_aux=True)(params, rest)

    gradients, (y, stats) = over_devices(share, x)
    whole = x.reshape(-1, 6)

    def loss(model):
        y = model(whole)
        return jnp.sum(jnp.sin(y)), y

    want_gradients, want = nnx.grad(loss, has_aux=True)(flax_model)
    assert normwise_error(y.reshape(want.shape), want) < 1e-5
    for name in ("mean", "var"):
        assert normwise_error(stats["bn"][name].get_value()[0], getattr(flax_model.bn, name)[...]) < 1e-5
    for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        np.testing.assert_allclose(got[0], expected, rtol=1e-3, atol=1e-4)


def test_nnx_is_in_place():
    """Objects and variables stay, shared ones once, and the optimizer still knows the model."""
    bn = nnx.BatchNorm(3, momentum=0.5, use_scale=False, rngs=nnx.Rngs(0))
    bn.mean[...] = jnp.arange(3.0)
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), bn, nnx.List([bn]))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    assert ours_nnx.synchronize(model, axis_name=None, span=2) == ["layers/1"]
    assert type(bn) is ours_nnx.BatchNorm and model.layers[1] is bn and model.layers[2][0] is bn
    assert (bn.span, bn.momentum, bn.use_scale, bn.axis_name) == (2, 0.5, False, None)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
    assert ours_nnx.synchronize(model, axis_name=None, span=4) == [], "ours stay as they are"
    assert bn.span == 2
    again = nnx.merge(*nnx.split(model))
    assert again.layers[1] is again.layers[2][0]
    x = draw((4, 3))[0]
    model.train()
    want = bn(x)
    assert nnx.jit(lambda m, x: m(x))(bn, x).shape == want.shape
    model.eval()
    assert bn.use_running_average is True


def test_the_innermost_context_decides():
    x = draw((4, 6))[0]
    model = nn.BatchNorm(use_running_average=False, axis_name="gone", axis_index_groups=[[0, 1]])
    variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    with linen.synchronize("a", momentum=0.9) as outer, linen.synchronize(None, momentum=0.0) as inner:
        _, updates = model.apply(variables, x, mutable=["batch_stats"])
    assert (outer, len(inner)) == ([], 1)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], np.mean(x, 0), rtol=1e-5)


class OwnCall(nnx.BatchNorm):
    def __call__(self, x):
        return 2 * super().__call__(x)


def wrong():
    model = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), OwnCall(3, rngs=nnx.Rngs(0)))
    return {
        "layers/1 is of the class OwnCall": lambda: ours_nnx.synchronize(model, axis_name=None),
        "Linear has no batch normalization": lambda: ours_nnx.synchronize(
            nnx.Linear(2, 2, rngs=nnx.Rngs(0)), axis_name=None
        ),
        "'spam' is not an option here; did you mean 'span'": lambda: ours_nnx.synchronize(
            model, axis_name=None, spam=1
        ),
        "'collectiv' is not an option here; did you mean 'collective'": lambda: linen.synchronize(
            None, collectiv=1
        ).__enter__(),
        "'save_for_backward' is not an option here": lambda: linen.synchronize(
            None, save_for_backward="output"
        ).__enter__(),
        "'axis' is not an option here": lambda: linen.synchronize(None, axis=1).__enter__(),
        "collective='mean' is not known": lambda: linen.synchronize(None, collective="mean").__enter__(),
    }


@pytest.mark.parametrize("message", wrong())
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        wrong()[message]()


def attributes(norm):
    """All but the variables."""
    return {k: v for k, v in vars(norm).items() if not (isinstance(v, nnx.Variable) or k.startswith("_pytree"))}


def test_ours_without_an_axis_takes_the_one_that_is_given():
    """As Flax's does, in both interfaces; one that has an axis keeps it, and the options of its own stay."""
    x = draw((DEVICES, 4, 3))
    for kind in (linen.BatchNorm, linen.BatchRenorm):
        limits = {"r_max": 2.0, "d_max": 1.0} if kind is linen.BatchRenorm else {}
        model = nn.Sequential([nn.Dense(3), kind(use_running_average=False, momentum=0.5, **limits)])
        variables = model.init(jax.random.key(0), x[0])

        def step(x, model=model, variables=variables):
            with linen.synchronize("batch", span=2 * DEVICES) as turned:
                found = model.apply(variables, x, mutable=["batch_stats"])
            return found, len(turned)

        want = model.clone(layers=[nn.Dense(3), model.layers[1].clone(axis_name="batch", span=2 * DEVICES)])
        expected = jax.vmap(lambda x, m=want, v=variables: m.apply(v, x, mutable=["batch_stats"]), axis_name="batch")(x)
        got, number = jax.vmap(step, axis_name="batch", out_axes=(0, None))(x)
        assert number == 1
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        assert model.layers[1].axis_name is None

    spanned = linen.BatchNorm(use_running_average=False, span=2 * DEVICES)
    variables = spanned.init(jax.random.key(0), x[0])

    def step_of(norm, x):
        with linen.synchronize("batch", span=None):
            return norm.apply(variables, x, mutable=["batch_stats"])

    got, expected = (
        jax.vmap(lambda x, norm=norm: step_of(norm, x), axis_name="batch")(x)
        for norm in (spanned, spanned.clone(axis_name="batch"))
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)

    own, kept = (
        ours_nnx.BatchNorm(3, momentum=0.5, axis_name=name, span=8, rngs=nnx.Rngs(0)) for name in (None, "own")
    )
    before = attributes(own)
    assert ours_nnx.synchronize(own, axis_name="batch", span=None) == [""]
    assert own.span == 8, "what is given as None takes nothing away"
    assert ours_nnx.unsynchronize(own) == [""] and attributes(own) == before
    both = nnx.List([own, kept])
    assert ours_nnx.synchronize(both, axis_name="batch", span=16, momentum=0.1) == ["0"]
    assert (own.axis_name, own.span, own.momentum, kept.axis_name) == ("batch", 16, 0.5, "own")
    assert ours_nnx.unsynchronize(both) == ["0"]
    assert attributes(own) == before and type(own) is ours_nnx.BatchNorm


def test_a_refusal_changes_nothing():
    norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    model = nnx.Sequential(norm, OwnCall(3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="OwnCall"):
        ours_nnx.synchronize(model, axis_name=None)
    assert type(norm) is nnx.BatchNorm
