"""The norms that a training run can be given, and the statistics that it starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from batchnorm_jax import relaxed_r_max
from experiments import data
from experiments._errors import UsageError
from experiments.models.layout import CHWN, NHWC
from experiments.models.normalised import normalised
from experiments.training import of_images, session
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation.population import batches_of_spans, population
from experiments.training.recipe import norms
from experiments.training.step import run
from tests import rig
from tests.reference import normwise_error

OWN = {"model": "tests.own:model", "warmup_epochs": 0, "schedule": "constant"}


def losses(norm, devices, steps=3, **options):
    config = TrainConfig(batch_size=32, norm=norm, **OWN, **options)
    state, rows = rig.first_steps(config, rig.tiny(), steps, devices)
    return [row["loss"] for row in rows], state


@pytest.mark.parametrize("layout", [NHWC, CHWN], ids=["NHWC", "CHWN"])
def test_group_norm_is_an_examples_own(layout):
    """Against NumPy in float64: 24 features are 8 groups of 3."""
    r = np.random.default_rng(0)
    x, residual = r.normal(2.0, 3.0, (4, 5, 6, 24)), r.normal(size=(4, 5, 6, 24))
    mask = jnp.array([True, True, False, True])

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, residual):
            arrays = {"residual": residual, "mask": mask, "activation": nn.relu, "layout": layout}
            return normalised(norms.make("group", 0.9), x, train=True, **arrays)

    given = [layout.from_nhwc(jnp.asarray(a, jnp.float32)) for a in (x, residual)]
    y, variables = Model().init_with_output(jax.random.key(0), *given)
    groups = x.reshape(4, 30, 8, 3)
    right = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    assert normwise_error(layout.to_nhwc(y), np.maximum(right.reshape(x.shape) + residual, 0)) < 1e-5
    assert "batch_stats" not in variables


def test_a_renormalization_is_local_at_first_and_then_is_not():
    """In the first 4% of a training its limits leave no correction; at its end they do."""
    local, _ = losses("local", 4)
    long, state = losses("renorm", 4, steps=3, epochs=400)
    np.testing.assert_allclose(long, local, rtol=1e-5)
    counts = [a for path, a in jax.tree.leaves_with_path(state.batch_stats) if path[-1].key == "steps"]
    assert [(int(a), a.dtype) for a in counts] == [(3, jnp.int32)]
    short, _ = losses("renorm", 4, epochs=2)
    assert relaxed_r_max(norms.RENORM_PAPER_STEPS * 2 / 4) > 1
    assert abs(short[2] - local[2]) > 1e-4


def test_a_device_has_its_own_renormalization():
    on_one, on_four = (losses("renorm", devices)[0][0] for devices in (1, 4))
    assert abs(on_one - on_four) > 1e-3
    assert session.resolve(TrainConfig(batch_size=64, norm="renorm", num_devices=2)).num_devices == 2
    with pytest.raises(UsageError, match=r"--norm=renorm .* takes --accumulation_steps=1, not 2"):
        TrainConfig(norm="renorm", accumulation_steps=2)


def inputs_of_norms(model, variables, images):
    """The input of every norm of a model in evaluation, in float64."""
    seen = {}

    def keep(next_call, args, kwargs, context):
        if type(context.module).__name__ == "BatchNorm" and context.method_name == "__call__":
            seen[context.module.name] = (np.asarray(args[0], np.float64), context.module.axis)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(keep):
        model.apply(variables, images, train=False)
    return seen


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.mark.parametrize("devices", [1, 8])
def test_frozen_statistics_are_those_of_the_training_set_and_stay(digits, devices):
    """Moments of every norm's input, with the norms below as they are; before and after three updates."""
    config = TrainConfig(batch_size=64, norm="frozen", learning_rate=0.01, warmup_epochs=0)
    small = digits._replace(train=digits.train.read(np.arange(512)))
    run = rig.run_of(config, small, devices)
    state = of_images.initial_state(config, run, small)
    images = (small.train.images / np.float32(255) - run.recipe.mean) / run.recipe.std
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    seen = inputs_of_norms(run.model, jax.device_get(variables), images)
    assert len(seen) == 3
    for name, (x, axis) in seen.items():
        features = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
        assert normwise_error(state.batch_stats[name]["mean"], features.mean(0)) < 1e-5
        assert normwise_error(state.batch_stats[name]["var"], features.var(0)) < 1e-5

    before = jax.device_get(state)
    feed_state, rows = rig.first_steps(config, small, 3, devices, start=state)
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, feed_state.batch_stats)
    assert rows[2]["loss"] != rows[0]["loss"]


def test_statistics_are_refused_where_there_are_too_few_images():
    run = rig.run_of(TrainConfig(batch_size=32, **OWN), rig.tiny(), 8)
    with pytest.raises(UsageError, match="need at least 72 images, for a span of 9 on 8 devices, and it has 64"):
        population(run.model, run.recipe, run.mesh, rig.tiny().train, mode="pooled", span=9)


@pytest.mark.parametrize("num_devices", [1, 2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize("examples", [64, 2_000, 60_000])
def test_every_batch_of_training_images_has_whole_spans_on_whole_devices(num_devices, examples):
    for span in (1, 2, 5, 9, 16, 48, 127, 128, 154, 250, 512, 840, 4096):
        unit, most = batches_of_spans(num_devices, span, examples)
        assert most % unit == 0 and unit <= num_devices * span
        for size in range(unit, most + 1, unit):
            assert size % num_devices == size % span == 0
            device_of = np.repeat(np.arange(num_devices), size // num_devices)
            for part in device_of.reshape(-1, span):
                # One device, or all examples of several.
                assert np.ptp(part) == 0 or len(part) == np.isin(device_of, part).sum(), (span, size)


@pytest.mark.parametrize("span", [12, 20])
def test_statistics_for_spans_are_of_whole_spans(span):
    """60 of 64 images are whole spans, and half of the 60 are not."""
    run = rig.run_of(TrainConfig(batch_size=2 * span, span=span, drop_remainder=True, **OWN), rig.tiny(), 2)
    statistics = population(run.model, run.recipe, run.mesh, rig.tiny().train, mode="pooled", span=span)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(statistics(run.state)))


def test_an_unknown_norm_is_refused():
    with pytest.raises(UsageError, match=r"unknown norm 'renrom'.*Did you mean 'renorm'"):
        norms.make("renrom", 0.9)


class Block(nn.Module):
    """Two convolutions in bfloat16, each with a norm, around which the input goes."""

    norm: object

    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(8, (3, 3), dtype=jnp.bfloat16)(x)
        y = normalised(self.norm, y, train=train, activation=nn.relu)
        y = nn.Conv(8, (3, 3), dtype=jnp.bfloat16)(y)
        return normalised(self.norm, y, train=train, activation=nn.relu, residual=x)


@pytest.mark.parametrize("norm", [norm.name for norm in norms.NORMS if norm.make is not None])
def test_a_norm_gives_the_dtype_of_the_computation(norm):
    """In bfloat16, before anything casts it."""
    config = TrainConfig(norm=norm, dtype="bfloat16", model="resnet18")
    block = Block(run.make_model(config, 3).norm)
    x = jnp.ones((2, 6, 6, 8), jnp.bfloat16)
    _, variables = jax.eval_shape(
        lambda: block.init_with_output(jax.random.key(0), x, train=False, capture_intermediates=True)
    )
    given = [a for a in jax.tree.leaves(variables["intermediates"]) if a.ndim == 4]
    assert len(given) == 5 and {a.dtype for a in given} == {jnp.dtype("bfloat16")}


def test_no_activation_is_kept_in_float32():
    """For the backward pass of training in bfloat16."""
    block = Block(norms.make("local", 0.9, dtype=jnp.bfloat16))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 8)), jnp.bfloat16)
    variables = block.init(jax.random.key(0), x, train=True)

    def apply(params, x):
        return block.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])[0]

    kept = [a for a in jax.tree.leaves(jax.vjp(apply, variables["params"], x)[1]) if a.size == x.size]
    assert len(kept) >= 4 and {a.dtype for a in kept} == {jnp.dtype("bfloat16")}
