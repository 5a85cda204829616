"""linen.BatchNorm beside flax.linen.BatchNorm, and over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from batchnorm_jax.linen import BatchNorm
from tests.reference import normwise_error
from tests.transforms import AXIS, make_mesh


def draw(shape=(16, 6, 5), dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 2 + 1, dtype)


VARIANTS = {
    "defaults": {},
    "momentum and epsilon": {"momentum": 0.9, "epsilon": 1e-3},
    "no parameters": {"use_bias": False, "use_scale": False},
    "feature axis 1": {"axis": 1},
    "two feature axes": {"axis": (1, 2)},
    "bfloat16 result": {"dtype": jnp.bfloat16},
    "bfloat16 parameters": {"param_dtype": jnp.bfloat16},
}


@pytest.mark.parametrize("input_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_drop_in_for_flax(variant, input_dtype):
    """The same variables, results, gradients and updates, in both modes, and each loads the other's variables."""
    x = draw(dtype=input_dtype)
    ours = BatchNorm(**VARIANTS[variant])
    theirs = nn.BatchNorm(**VARIANTS[variant])
    variables = theirs.init(jax.random.key(0), x, use_running_average=False)
    mine = ours.init(jax.random.key(0), x, use_running_average=False)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), mine) == jax.tree.map(lambda a: (a.shape, a.dtype), variables)

    def step(module, variables):
        def loss(params, x):
            y, updates = module.apply(
                {**variables, "params": params}, x, use_running_average=False, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, updates)

        gradients, (y, updates) = jax.grad(loss, (0, 1), has_aux=True)(variables.get("params", {}), x)
        evaluated = module.apply({**variables, **updates}, x, use_running_average=True)
        return y, gradients, updates, evaluated

    got, want = step(ours, variables), step(theirs, variables)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert normwise_error(a, b) <= (2e-5 if a.dtype == jnp.float32 and variant != "bfloat16 result" else 2e-2)


class Net(nn.Module):
    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x, train):
        for width in (8, 8):
            x = nn.relu(self.norm(use_running_average=not train)(nn.Dense(width)(x)))
        return x


def test_the_variables_of_a_model_are_those_of_flax():
    x = draw((4, 5))
    structure = [jax.tree.structure(Net(norm).init(jax.random.key(0), x, True)) for norm in (BatchNorm, nn.BatchNorm)]
    assert structure[0] == structure[1]


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_running_statistics_over_devices_are_those_of_the_whole_batch(devices):
    x = draw((16, 5))
    module = BatchNorm(use_running_average=False, axis_name=AXIS, momentum=0.9)
    # Initialising needs no axis: it runs before there is a mesh.
    variables = module.init(jax.random.key(0), x)
    alone, _ = BatchNorm(use_running_average=False, momentum=0.9).apply(variables, x, mutable=["batch_stats"])
    step = jax.shard_map(
        lambda v, x: module.apply(v, x, mutable=["batch_stats"]),
        mesh=make_mesh(devices),
        in_specs=(P(), P(AXIS)),
        out_specs=(P(AXIS), P()),
    )
    y, updates = jax.jit(step)(variables, x)
    stats = updates["batch_stats"]
    x64 = np.asarray(x, np.float64)
    assert normwise_error(y, alone) < 1e-5
    assert normwise_error(stats["mean"], 0.1 * x64.mean(0)) < 1e-5
    assert normwise_error(stats["var"], 0.9 + 0.1 * x64.var(0)) < 1e-5


def test_a_mask_weighs_devices_by_count_where_flax_does_not():
    """Four examples on one device, one on the other: the mean is over five examples."""
    x = jnp.asarray([1.0, 1, 1, 1, 6, 0, 0, 0]).reshape(8, 1)
    mask = jnp.asarray([1, 1, 1, 1, 1, 0, 0, 0], bool).reshape(8, 1)

    def mean(norm):
        module = norm(use_running_average=False, axis_name=AXIS, momentum=0.0)
        variables = module.init(jax.random.key(0), x)
        step = jax.shard_map(
            lambda v, x, m: module.apply(v, x, mask=m, mutable=["batch_stats"])[1],
            mesh=make_mesh(2),
            in_specs=(P(), P(AXIS), P(AXIS)),
            out_specs=P(),
        )
        return step(variables, x, mask)["batch_stats"]["mean"].item()

    assert mean(BatchNorm) == pytest.approx(2.0)
    assert mean(nn.BatchNorm) == pytest.approx(3.5)


def test_an_empty_batch_leaves_the_running_statistics():
    x = draw((4, 3))
    module = BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), x)
    y, updates = module.apply(variables, x, mask=jnp.zeros((4, 1), bool), mutable=["batch_stats"])
    assert np.isfinite(y).all()
    for name in ("mean", "var"):
        np.testing.assert_array_equal(updates["batch_stats"][name], variables["batch_stats"][name])


def test_a_second_call_compiles_nothing():
    x = draw((4, 3))
    module = BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), x)
    step = jax.jit(lambda v, x: {**v, **module.apply(v, x, mutable=["batch_stats"])[1]})
    variables = step(variables, x)
    step(variables, x)
    assert step._cache_size() == 1


def test_abstract_evaluation():
    module = BatchNorm(use_running_average=False)
    out = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), jnp.ones((4, 3))))
    assert out[0].shape == (4, 3)


def test_use_running_average_must_be_given_once():
    with pytest.raises(ValueError, match="use_running_average"):
        BatchNorm().init(jax.random.key(0), jnp.ones((4, 3)))
