"""Norms of a third party under `synchronize`, `recalibrate` and `fold`: run as ours if it is said how, else named."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from batchnorm_jax import linen
from tests.transforms import AXIS, make_mesh

DEVICES = 8


class Copied(nn.Module):
    """A copy of Flax's norm, as packages carry it, with an option more and some fewer."""

    use_running_average: bool | None = None
    axis: int = -1
    momentum: float = 0.9
    epsilon: float = 1e-3
    mean_init: object = None

    @nn.compact
    def __call__(self, x, use_running_average=None):
        running = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        return normalise(self, x, running, self.momentum, "scale", "bias")


class Own(nn.Module):
    """Another signature, other options and no parameters."""

    decay: float = 0.8

    @nn.compact
    def __call__(self, x, train):
        return normalise(self, x, not train, self.decay)


class WithSetup(nn.Module):
    """Whose variables are made before it is called."""

    decay: float = 0.8

    def setup(self):
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, 3)
        self.var = self.variable("batch_stats", "var", jnp.ones, 3)

    def __call__(self, x, train):
        return (x - self.mean.value[None]) / jnp.sqrt(self.var.value + 1e-3)[None]


def normalise(module, x, running, momentum, *parameters):
    mean = module.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
    var = module.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
    m, v = (mean.value, var.value) if running else (x.mean(0), x.var(0))
    if not running and not module.is_initializing():
        mean.value = momentum * mean.value + (1 - momentum) * m
        var.value = momentum * var.value + (1 - momentum) * v
    y = (x - m[None]) / jnp.sqrt(v + 1e-3)[None]
    for name, init, join in zip(parameters, ("ones", "zeros"), (jnp.multiply, jnp.add), strict=False):
        y = join(y, module.param(name, getattr(nn.initializers, init), x.shape[-1:])[None])
    return y


def options(norm, x, train):
    del x
    plain = {"use_scale": False, "use_bias": False, "epsilon": 1e-3}
    return {"use_running_average": not train, "momentum": norm.decay, **plain}


class Net(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(3)(x)
        if self.kind == "copied":
            return nn.tanh(Copied(name="norm")(x, use_running_average=not train))
        return nn.tanh((WithSetup if self.kind == "with setup" else Own)(name="norm")(x, train))


REPLACE = {Copied: nn.BatchNorm, Own: options, WithSetup: options}


def draw(n=32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, 4)) * 2 + 1, jnp.float32)


def over_devices(function, x):
    specs = {"in_specs": P(AXIS), "out_specs": (P(AXIS), P())}
    return jax.jit(jax.shard_map(function, mesh=make_mesh(DEVICES), **specs))(x)


@pytest.mark.parametrize("kind", ["copied", "own", "with setup"])
def test_a_norm_of_another_class_pools_where_it_is_said_how(kind):
    x, model = draw(), Net(kind)
    variables = model.init(jax.random.key(0), x, True)
    # Its own arithmetic, on the whole batch; `WithSetup` has none for training.
    whole = Net("own" if kind == "with setup" else kind)
    want, updates = whole.apply(variables, x, True, mutable=["batch_stats"])

    def share(x):
        with linen.synchronize(AXIS, replace=REPLACE) as turned:
            y, updates = model.apply(variables, x, True, mutable=["batch_stats"])
        assert turned == ["norm"]
        return y, updates

    got, got_updates = over_devices(share, x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got_updates, updates)
    with linen.synchronize(AXIS, replace=REPLACE):
        inside = model.init(jax.random.key(0), x, True)
        model.apply(variables, x, False)
    jax.tree.map(np.testing.assert_array_equal, inside, variables)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Copied(use_running_average=False)(nn.Dense(4)(x)), None


@pytest.mark.parametrize("kind", ["scanned", "checkpointed"])
def test_so_it_does_under_the_transforms_of_flax(kind):
    axes = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}, "length": 2}
    model, args = {
        "scanned": (nn.scan(nn.remat(Step), **axes)(), (None,)),
        "checkpointed": (nn.remat(Copied)(use_running_average=False), ()),
    }[kind]
    x = draw()
    variables = model.init(jax.random.key(0), x, *args)
    want, updates = model.apply(variables, x, *args, mutable=["batch_stats"])
    with linen.synchronize(None, replace=REPLACE) as turned:
        got, got_updates = model.apply(variables, x, *args, mutable=["batch_stats"])
    assert turned
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), (got, got_updates), (want, updates))


def test_renormalization_is_told_by_its_limits():
    x, model = draw(), Net("own")
    variables = model.init(jax.random.key(0), x, True)
    variables["batch_stats"]["norm"]["steps"] = jnp.zeros((), jnp.int32)

    def renormalized(norm, x, train):
        return {**options(norm, x, train), "r_max": 3.0, "d_max": 5.0}

    with linen.synchronize(None, replace={Own: renormalized}):
        _, updates = model.apply(variables, x, True, mutable=["batch_stats"])
    assert updates["batch_stats"]["norm"]["steps"] == 1


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


def call(model, *args, around=None, **options):
    x = draw()
    variables = model.init(jax.random.key(0), x, *args)
    with linen.synchronize(around, **options) as turned:
        model.apply(variables, x, *args, mutable=["batch_stats"])
    return turned


def leave(axis_name):
    with linen.synchronize(axis_name):
        pass


NOTHING = {
    r"turned: norm \(Own\) keeps a mean .* replace=\{Own: ...\}": lambda: call(Net("own"), True),
    r"turned: norm \(WithSetup\) keeps a mean": lambda: call(Net("with setup"), True, replace={Own: options}),
    r"the modules called \(Dense, Plain\) have no batch normalization": lambda: call(Plain()),
    r"no flax.linen module was called inside.*Equinox": lambda: leave("an axis of its own"),
    r"is batchnorm_jax's already and keeps its axis_name='b'; make it with axis_name='a'": lambda: call(
        linen.BatchNorm(use_running_average=True, axis_name="b"), around="a"
    ),
    r"gives 'decay' for norm \(Own\), which .* does not take": lambda: call(
        Net("own"), True, replace={Own: lambda norm, x, train: {"decay": 0.9}}
    ),
    r"gives bool for norm \(Own\)": lambda: call(Net("own"), True, replace={Own: lambda norm, x, train: train}),
    r"norm \(Own\) has no params/scale": lambda: call(
        Net("own"), True, replace={Own: lambda norm, x, train: {"use_running_average": False}}
    ),
    r"replace has the key 'Own'": lambda: call(Net("own"), True, replace={"Own": options}),
    r"replace has 'flax' for Own": lambda: call(Net("own"), True, replace={Own: "flax"}),
    r"replace must be a mapping": lambda: call(Net("own"), True, replace=Own),
    r"axis_name is a Plain; give the name of a mapped axis": lambda: call(Plain(), around=Plain()),
    r"axis_name is a function": lambda: call(Plain(), around=call),
}


@pytest.mark.parametrize("message", NOTHING)
def test_nothing_is_not_silent(message):
    with pytest.raises(ValueError, match=message):
        NOTHING[message]()


def test_what_is_meant_to_do_nothing_may():
    assert call(Plain(), require=False) == []
    assert call(Net("own"), True, require=False) == []
    assert call(linen.BatchNorm(use_running_average=True, axis_name="a"), around="a") == []
    with pytest.raises(ZeroDivisionError), linen.synchronize("a"):
        1 / 0  # noqa: B018


def test_a_loop_that_enters_it_each_time_goes_on():
    """The second time the program is there already, with its norms turned."""
    x, model = draw(), nn.BatchNorm(use_running_average=False)
    variables = model.init(jax.random.key(0), x)
    step = jax.jit(lambda x: model.apply(variables, x, mutable=["batch_stats"]))
    for i in range(3):
        with linen.synchronize(None, momentum=0.123) as turned:
            step(x)
        assert len(turned) == (i == 0)


def test_a_norm_that_stays_beside_others_is_told_of():
    model = nn.Sequential([nn.BatchNorm(use_running_average=True), Copied(use_running_average=True)])
    with pytest.warns(UserWarning, match=r"layers_1 \(Copied\) keeps a mean and a variance"):
        assert call(model) == ["layers_0"]
    assert call(model, replace={Copied: None}) == ["layers_0"]
    assert call(model, replace=REPLACE) == ["layers_0", "layers_1"]


@pytest.mark.parametrize("mode", ["pooled", "layerwise"])
@pytest.mark.parametrize("kind", ["copied", "own", "with setup"])
def test_recalibration_covers_it_where_it_is_said_how(kind, mode):
    x, model = draw(), Net(kind)
    variables = model.init(jax.random.key(0), x, True)
    new = linen.recalibrate(model, variables, [x[:20], x[20:]], False, mode=mode, replace=REPLACE)
    dense = variables["params"]["Dense_0"]
    given = np.asarray(x) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])[None]
    np.testing.assert_allclose(new["batch_stats"]["norm"]["mean"], given.mean(0), atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["norm"]["var"], given.var(0), rtol=1e-4)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    with pytest.raises(ValueError, match=r"recalibrate: no norm was found: norm \(.*\) keeps a mean and a variance"):
        linen.recalibrate(model, variables, [x], False, mode=mode)


def test_recalibration_tells_of_a_norm_that_stays_beside_others():
    model = nn.Sequential([nn.BatchNorm(use_running_average=True), Copied(use_running_average=True)])
    x = draw()
    variables = model.init(jax.random.key(0), x)
    with pytest.warns(UserWarning, match=r"recalibrate: layers_1 \(Copied\) keeps a mean and a variance"):
        new = linen.recalibrate(model, variables, [x])
    assert jnp.array_equal(new["batch_stats"]["layers_1"]["mean"], jnp.zeros(4))
    linen.recalibrate(model, variables, [x], replace={Copied: None})


@pytest.mark.parametrize("kind", ["copied", "own", "with setup"])
def test_it_folds_where_it_is_said_how(kind):
    x, model = draw(), Net(kind)
    variables = linen.recalibrate(model, model.init(jax.random.key(0), x, True), [x], False, replace=REPLACE)
    apply, folded = linen.fold(model, variables, None, x, False, replace=REPLACE)
    assert "batch_stats" not in folded
    np.testing.assert_allclose(apply(folded, x, False), model.apply(variables, x, False), atol=1e-5)
    with pytest.raises(ValueError, match=r"fold: there is nothing to fold: norm \(.*\) keeps a mean and a variance"):
        linen.fold(model, variables, None, x, False)


def test_folding_tells_which_norms_stay_and_why():
    rest = {"use_running_average": True}
    layers = [nn.Dense(4), nn.BatchNorm(**rest), nn.tanh, nn.BatchNorm(**rest), nn.Dense(4), Copied(**rest)]
    x, model = draw(), nn.Sequential(layers)
    variables = model.init(jax.random.key(0), x)
    why = r"fold: 2 norms .*: layers_5 \(Copied\) keeps .*'layers_3' is given does not come straight from"
    with pytest.warns(UserWarning, match=why):
        apply, folded = linen.fold(model, variables, None, x)
    np.testing.assert_allclose(apply(folded, x), model.apply(variables, x), atol=1e-5)
    with pytest.warns(UserWarning, match=r"fold: 1 norm .* stays as it is: .*'layers_3'"):
        apply, folded = linen.fold(model, variables, None, x, replace=REPLACE)
    np.testing.assert_allclose(apply(folded, x), model.apply(variables, x), atol=1e-5)
    linen.fold(model, variables, [("layers_0", "layers_1")], x)
