"""A batch of no examples: evaluated it gives one of none, recalibration leaves it out, training refuses it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from batchnorm_jax import batch_norm, batch_renorm, linen, normalize, recalibrate
from batchnorm_jax import nnx as ours_nnx

EMPTY, MEAN, VAR = jnp.zeros((0, 7, 3)), jnp.zeros(3), jnp.ones(3)


def with_linen(kind, **options):
    norm = kind(use_running_average=True, **options)
    variables = norm.init(jax.random.key(0), jnp.ones((1, 7, 3)))
    return lambda x, **call: norm.apply(variables, x, **call)


def with_nnx(kind, **options):
    norm = kind(3, use_running_average=True, rngs=nnx.Rngs(0), **options)
    return lambda x, **call: norm(x, **call)


def synchronized(x):
    norm = nn.BatchNorm(use_running_average=True)
    variables = norm.init(jax.random.key(0), jnp.ones((1, 7, 3)))
    with linen.synchronize(None):
        return norm.apply(variables, x)


def folded_linen(x):
    model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True)])
    variables = model.init(jax.random.key(0), jnp.ones((1, 7, 3)))
    apply, folded = linen.fold(model, variables, None, x)
    return apply(folded, x)


def folded_nnx(x):
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    return ours_nnx.fold(model)(x)


EVALUATED = {
    "normalize": lambda x: normalize(x, MEAN, VAR),
    "normalize, in jit": jax.jit(lambda x: normalize(x, MEAN, VAR, activation=jax.nn.relu)),
    "a gradient": jax.grad(lambda x: normalize(x, MEAN, VAR).sum()),
    "linen": with_linen(linen.BatchNorm),
    "linen, with all options": lambda x: with_linen(
        linen.BatchNorm, span=4, activation=jax.nn.leaky_relu, save_for_backward="output", axis_name="not bound"
    )(x, mask=jnp.ones((0, 1, 1), bool)),
    "linen, a residual": lambda x: with_linen(linen.BatchNorm)(x, residual=x),
    "linen, renormalized": with_linen(linen.BatchRenorm),
    "nnx": with_nnx(ours_nnx.BatchNorm),
    "nnx, renormalized": with_nnx(ours_nnx.BatchRenorm),
    "synchronized": synchronized,
    "folded linen": folded_linen,
    "folded nnx": folded_nnx,
}


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation_gives_an_empty_batch(name):
    assert EVALUATED[name](EMPTY).shape == EMPTY.shape


@pytest.mark.parametrize("shape", [(4, 0, 3), (0, 0, 3)])
def test_so_do_examples_without_positions(shape):
    assert with_linen(linen.BatchNorm)(jnp.zeros(shape)).shape == shape


def moments_fn(variables, batch):
    return {"norm": batch_norm(batch["x"], shift=variables["batch_stats"]["norm"]["mean"])[1]}


@pytest.mark.parametrize("mode", ["pooled", "layerwise"])
def test_recalibration_leaves_it_out(mode):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, size=(8, 3)), jnp.float32)
    batches = [x[:0], x[:5], x[5:5], x[5:]]
    model = nn.BatchNorm(use_running_average=True)
    of_linen = linen.recalibrate(model, model.init(jax.random.key(0), x), batches, mode=mode)["batch_stats"]
    norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    ours_nnx.recalibrate(norm, batches, mode=mode)
    variables = {"batch_stats": {"norm": {"mean": MEAN, "var": VAR}}}
    mappings = [{"x": part, "y": np.zeros(len(part), int)} for part in batches]
    of_function = recalibrate(moments_fn, variables, mappings, mode=mode)["batch_stats"]["norm"]
    for mean, var in (of_linen.values(), (norm.mean[...], norm.var[...]), of_function.values()):
        np.testing.assert_allclose(mean, np.mean(x, 0), rtol=1e-5)
        np.testing.assert_allclose(var, np.var(x, 0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"recalibrate: no batch has an example \(2 empty\)"):
        recalibrate(moments_fn, variables, [{"x": x[:0]}] * 2, mode=mode)


@pytest.mark.parametrize(
    "train",
    [
        batch_norm,
        lambda x: batch_renorm(x, MEAN, VAR),
        lambda x: linen.BatchNorm(use_running_average=False).init(jax.random.key(0), x),
        with_nnx(ours_nnx.BatchNorm, update_stats=True),
    ],
)
def test_training_refuses_it(train):
    with pytest.raises(ValueError, match=r"\(0, 7, 3\) has no positions to take statistics of; give at least one"):
        train(EMPTY)
