"""nnx.BatchNorm beside flax.nnx.BatchNorm, under nnx's transforms, and over devices."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from batchnorm_jax.nnx import BatchNorm
from tests.compat import needs
from tests.reference import normwise_error
from tests.transforms import AXIS, make_mesh

VARIANTS = {
    "defaults": {},
    "momentum and epsilon": {"momentum": 0.9, "epsilon": 1e-3},
    "no parameters": {"use_bias": False, "use_scale": False},
    "bfloat16 result": {"dtype": jnp.bfloat16},
    "bfloat16 parameters": {"param_dtype": jnp.bfloat16},
    "stable variance": {"use_fast_variance": False},
}


def draw(shape=(16, 6, 5), dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 2 + 1, dtype)


def test_the_arguments_are_those_of_flax():
    """Flax's names come first, with their defaults (initializers: functions of the same name)."""

    def arguments(norm):
        return [
            (p.name, p.kind, getattr(p.default, "__qualname__", p.default))
            for p in inspect.signature(norm).parameters.values()
        ]

    theirs = arguments(nnx.BatchNorm)
    assert arguments(BatchNorm)[: len(theirs)] == theirs


@pytest.mark.parametrize("input_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_drop_in_for_flax(variant, input_dtype):
    """State, results, gradients and updates are equal in both modes."""
    x = draw(dtype=input_dtype)
    ours, theirs = (norm(5, **VARIANTS[variant], rngs=nnx.Rngs(0)) for norm in (BatchNorm, nnx.BatchNorm))

    def step(module):
        def loss(module, x):
            y = module(x)
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

        gradients, y = nnx.grad(loss, argnums=(0, 1), has_aux=True)(module, x)
        state = nnx.to_pure_dict(nnx.state(module))
        module.eval()
        return y, jax.tree.leaves(gradients), state, module(x)

    got, want = step(ours), step(theirs)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert normwise_error(a, b) <= (2e-5 if a.dtype == jnp.float32 and variant != "bfloat16 result" else 2e-2)


def test_states_interchange_with_flax():
    x = draw((16, 3))
    for writer, reader in ((BatchNorm, nnx.BatchNorm), (nnx.BatchNorm, BatchNorm)):
        trained, fresh = writer(3, momentum=0.5, rngs=nnx.Rngs(0)), reader(3, rngs=nnx.Rngs(1))
        trained(x)
        nnx.update(fresh, nnx.state(trained))
        np.testing.assert_allclose(
            fresh(x, use_running_average=True), trained(x, use_running_average=True), rtol=1e-5, atol=1e-6
        )


def test_training_and_evaluation_agree_in_bfloat16():
    """Momentum 0: the running statistics are the batch's, and are not rounded to bfloat16."""
    x = draw((64, 6, 5), jnp.bfloat16) + 30
    module = BatchNorm(5, momentum=0.0, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    module.mean[...] = jnp.full(5, 30.0)
    y = module(x)
    assert normwise_error(module(x, use_running_average=True), y) <= 2.0**-8


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.norm = BatchNorm(3, momentum=0.5, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


def test_under_jit_with_training_and_evaluation_modes():
    x = draw((16, 3))
    eager, jitted = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    calls = 0

    @nnx.jit
    def run(model, x):
        nonlocal calls
        calls += 1
        return model(x)

    for _ in range(2):
        np.testing.assert_allclose(run(jitted, x), eager(x), rtol=1e-5, atol=1e-5)
    assert calls == 1, "a second call traced again"
    np.testing.assert_allclose(jitted.norm.var[...], eager.norm.var[...], rtol=1e-5)
    eager.eval(), jitted.eval()
    np.testing.assert_allclose(run(jitted, x), eager(x), rtol=1e-5, atol=1e-5)
    assert calls == 2


def test_under_scan():
    """Three layers, one step each, with a state of its own."""
    x = draw((16, 3))

    @nnx.vmap(in_axes=0, out_axes=0)
    def create(key):
        return Net(nnx.Rngs(key))

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def forward(model, x):
        return model(x)

    keys = jax.random.split(jax.random.key(0), 3)
    layers = create(keys)
    y = forward(layers, x)
    want = x
    for i in range(3):
        one = Net(nnx.Rngs(keys[i]))
        want = one(want)
        np.testing.assert_allclose(layers.norm.var[...][i], one.norm.var[...], rtol=1e-4)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_under_vmap_pooled_over_the_mapped_axis():
    x = draw((4, 8, 3))
    pooled = BatchNorm(3, momentum=0.5, axis_name="i", rngs=nnx.Rngs(0))
    alone = BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0))
    axes = nnx.StateAxes({...: None})
    y = nnx.vmap(lambda m, x: m(x), in_axes=(axes, 0), axis_name="i")(pooled, x)
    assert normwise_error(y.reshape(-1, 3), alone(x.reshape(-1, 3))) < 1e-5
    np.testing.assert_allclose(pooled.var[...], alone.var[...], rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_over_devices(devices):
    x = draw((16, 3))
    pooled = BatchNorm(3, momentum=0.5, axis_name=AXIS, rngs=nnx.Rngs(0))
    alone = BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0))
    graph, state = nnx.split(pooled)

    def forward(state, x):
        module = nnx.merge(graph, state)
        y = module(x)
        return y, nnx.state(module)

    mapped = jax.shard_map(forward, mesh=make_mesh(devices), in_specs=(P(), P(AXIS)), out_specs=(P(AXIS), P()))
    y, state = jax.jit(mapped)(state, x)
    assert normwise_error(y, alone(x)) < 1e-5
    np.testing.assert_allclose(state["var"][...], alone.var[...], rtol=1e-5)


def test_statistics_can_be_used_without_an_update_and_updated_without_use():
    x = draw((16, 3))
    module = BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0))
    module(x, update_stats=False)
    np.testing.assert_array_equal(module.mean[...], 0)
    y = module(x, use_running_average=True, update_stats=True)
    assert normwise_error(y, x / np.sqrt(1 + 1e-5)) < 1e-6
    np.testing.assert_allclose(module.mean[...], 0.5 * np.asarray(x).mean(0), rtol=1e-5)


def test_a_promotion_of_the_users_own_is_used():
    def to_half(values, *, dtype=None):
        return [None if v is None else v.astype(jnp.float16) for v in values]

    module = BatchNorm(3, promote_dtype=to_half, rngs=nnx.Rngs(0))
    assert module(draw((4, 3))).dtype == jnp.float16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collective": "pmean"}, "collective='pmean'"),
        ({"save_for_backward": "output", "activation": jax.nn.relu}, "undoes the activation, which relu"),
        ({"save_for_backward": "output", "scale_init": nnx.initializers.zeros_init()}, "divides by the scale"),
    ],
)
def test_conflicting_options_fail_at_construction(options, message):
    with pytest.raises(ValueError, match=f"BatchNorm: .*{message}"):
        BatchNorm(3, rngs=nnx.Rngs(0), **options)


def test_the_mode_must_be_known():
    with pytest.raises(ValueError, match=r"use_running_average.*model.train\(\)"):
        BatchNorm(3, use_running_average=None, rngs=nnx.Rngs(0))(draw((4, 3)))


@needs("nnx.view", "Flax 0.12.4", there=hasattr(nnx, "view"))
def test_a_view_sets_the_mode():
    net = Net(nnx.Rngs(0))
    view = nnx.view(net, use_running_average=True)
    assert view.norm.use_running_average and not net.norm.use_running_average
