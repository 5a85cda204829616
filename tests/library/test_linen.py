"""linen.BatchNorm beside flax.linen.BatchNorm, and over devices."""

import dataclasses
import warnings
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from batchnorm_jax import ConditioningWarning
from batchnorm_jax.linen import BatchNorm
from tests.compiling import compilations
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
    "bfloat16 statistics": {"param_dtype": jnp.bfloat16, "force_float32_reductions": False},
    "stable variance": {"use_fast_variance": False},
}


def test_the_arguments_are_those_of_flax():
    """Flax's names come first, in their order and with their defaults."""
    ours, theirs = (
        [f for f in dataclasses.fields(norm) if f.name not in ("parent", "name")] for norm in (BatchNorm, nn.BatchNorm)
    )
    assert [(f.name, f.default) for f in ours[: len(theirs)]] == [(f.name, f.default) for f in theirs]
    assert all(f.default is not dataclasses.MISSING for f in ours)


@pytest.mark.parametrize("input_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_drop_in_for_flax(variant, input_dtype):
    """Variables, results, gradients and updates, in both modes are equal, and each loads the other's variables."""
    x = draw(dtype=input_dtype)
    ours = BatchNorm(**VARIANTS[variant])
    theirs = nn.BatchNorm(**VARIANTS[variant])
    variables = theirs.init(jax.random.key(0), x, use_running_average=False)
    mine = ours.init(jax.random.key(0), x, use_running_average=False)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), mine) == jax.tree.map(lambda a: (a.shape, a.dtype), variables)

    @partial(jax.jit, static_argnums=0)  # Operation by operation would be hundreds of programs to compile.
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
        # Flax's bfloat16 statistics become float32 with the first float32 batch; ours keep their dtype.
        assert a.dtype == b.dtype or variant == "bfloat16 statistics"
        assert normwise_error(a, b) <= (2e-5 if a.dtype == jnp.float32 and "bfloat16" not in variant else 2e-2)


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


@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function], ids=["jit", "no jit"])
@pytest.mark.parametrize("differentiated", [False, True])
def test_a_second_call_compiles_nothing(wrap, differentiated):
    """Outside of jit too, as in a notebook, where each call would compile for longer than it runs."""
    x = draw((4, 3))
    module = BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), x)

    def apply(variables, x):
        y, updates = module.apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), {**variables, **updates}

    step = wrap(jax.grad(apply, argnums=1, has_aux=True) if differentiated else apply)
    _, variables = step(variables, x)
    with compilations() as compiled:
        step(variables, x)
    assert compiled == []


def test_abstract_evaluation():
    module = BatchNorm(use_running_average=False)
    out = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), jnp.ones((4, 3))))
    assert out[0].shape == (4, 3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_training_and_evaluation_agree_where_nothing_is_remembered(dtype):
    """Momentum 0: the running statistics are the batch's, and the results equal to one rounding."""
    x = draw((64, 6, 5), dtype) + 30
    module = BatchNorm(momentum=0.0, dtype=dtype)
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    variables = {**variables, "batch_stats": {**variables["batch_stats"], "mean": jnp.full(5, 30.0)}}
    y, updates = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    evaluated = module.apply({**variables, **updates}, x, use_running_average=True)
    assert y.dtype == evaluated.dtype == dtype
    assert normwise_error(evaluated, y) <= (2.0**-8 if dtype == jnp.bfloat16 else 1e-5)


def test_statistics_can_be_used_without_an_update_and_updated_without_use():
    x = draw((16, 3))
    module = BatchNorm(momentum=0.5)
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    old = variables["batch_stats"]

    def apply(module, **options):
        y, updates = module.apply(variables, x, mutable=["batch_stats"], **options)
        return y, updates["batch_stats"]

    y, updated = apply(module, use_running_average=False)
    frozen_y, frozen = apply(module, use_running_average=False, update_stats=False)
    np.testing.assert_array_equal(y, frozen_y)
    np.testing.assert_array_equal(frozen["mean"], old["mean"])
    evaluated, moved = apply(module, use_running_average=True, update_stats=True)
    assert normwise_error(evaluated, x / np.sqrt(1 + 1e-5)) < 1e-6
    for name in ("mean", "var"):
        np.testing.assert_allclose(moved[name], updated[name], rtol=1e-6)
    _, by_constructor = apply(BatchNorm(momentum=0.5, update_stats=False), use_running_average=False)
    np.testing.assert_array_equal(by_constructor["mean"], old["mean"])


def test_unbiased_and_nonfinite_batches():
    x = draw((4, 2)).at[0, 1].set(jnp.nan)
    module = BatchNorm(use_running_average=False, momentum=0.5, unbiased_running_var=True, skip_nonfinite=True)
    variables = module.init(jax.random.key(0), x)
    y, updates = module.apply(variables, x, mutable=["batch_stats"])
    want = 0.5 + 0.5 * np.var(np.asarray(x, np.float64)[:, 0], ddof=1)
    np.testing.assert_allclose(updates["batch_stats"]["var"], [want, 1.0], rtol=1e-6)
    assert np.isnan(y[:, 1]).all() and np.isfinite(y[:, 0]).all()


@pytest.mark.parametrize("options", [{"span": 16}, {"axis_index_groups": [[0, 1], [2, 3]]}, {"axis_name": "nowhere"}])
def test_initialising_needs_neither_devices_nor_spans(options):
    BatchNorm(use_running_average=False, **options).init(jax.random.key(0), jnp.ones((1, 3)))


def test_a_warning_where_the_variance_has_lost_its_digits():
    x = draw((64, 3)) + 3000
    module = BatchNorm(use_running_average=False, check_conditioning=True)
    variables = module.init(jax.random.key(0), x)
    with pytest.warns(ConditioningWarning, match=r"BatchNorm: the mean is \d+ standard deviations .*all_gather"):
        updates = jax.block_until_ready(module.apply(variables, x, mutable=["batch_stats", "intermediates"]))[1]
    figure = updates["intermediates"]["conditioning"]
    assert figure > 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.apply(variables, x - 3000, mutable=["batch_stats"])
        jax.effects_barrier()


def test_checkpoints_interchange_with_flax(tmp_path):
    import orbax.checkpoint as ocp

    x = draw((16, 3))
    modules = [norm(use_running_average=False, momentum=0.5) for norm in (BatchNorm, nn.BatchNorm)]
    for i, (writer, reader) in enumerate((modules, modules[::-1])):
        variables = writer.init(jax.random.key(0), x)
        trained = {**variables, **writer.apply(variables, x, mutable=["batch_stats"])[1]}
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / str(i), trained)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / str(i), jax.eval_shape(reader.init, jax.random.key(0), x))
        evaluated = [m.clone(use_running_average=True).apply(v, x) for m, v in ((writer, trained), (reader, restored))]
        np.testing.assert_allclose(*evaluated, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::batchnorm_jax.NegativeScaleWarning")
@pytest.mark.parametrize("scale", [-1.0, 0.5])
def test_training_and_evaluation_agree_where_the_output_is_kept(scale):
    """Both take |scale| + 1e-5 for the scale."""
    x = draw((64, 3))
    module = BatchNorm(momentum=0.0, save_for_backward="output", scale_init=nn.initializers.constant(scale))
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    y, updates = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    evaluated = module.apply({**variables, **updates}, x, use_running_average=True)
    assert normwise_error(evaluated, y) < 1e-5


def test_nothing_is_added_to_the_variables():
    """A step takes the variables that the step before returned with mutable=True."""
    x = draw((4, 3))
    module = BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), x)
    updated = module.apply(variables, x, mutable=True)[1]
    assert jax.tree.structure(updated) == jax.tree.structure(variables)


def test_initialising_twice_is_harmless():
    x = draw((16, 3))
    module = BatchNorm(use_running_average=False)
    first, second = (module.init(jax.random.key(0), x) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(first["batch_stats"]["mean"], 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collective": "pmean"}, "collective='pmean'"),
        ({"save_for_backward": "output", "activation": jax.nn.relu}, "undoes the activation, which relu"),
        ({"save_for_backward": "output", "scale_init": nn.initializers.zeros}, "divides by the scale"),
    ],
)
def test_conflicting_options_fail_at_construction(options, message):
    with pytest.raises(ValueError, match=f"BatchNorm: .*{message}"):
        BatchNorm(**options)


def test_use_running_average_must_be_given_once():
    with pytest.raises(ValueError, match="use_running_average"):
        BatchNorm().init(jax.random.key(0), jnp.ones((4, 3)))
