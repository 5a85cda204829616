"""Norms that nnx.synchronize leaves as they are, and nnx.unsynchronize, which turns the others back."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from batchnorm_jax import UnchangedNormWarning
from batchnorm_jax import nnx as ours_nnx
from tests.library.test_synchronize import attributes


def draw(shape):
    return jnp.asarray(np.random.default_rng(0).normal(1.0, 2.0, shape), jnp.float32)


class OwnNNX(nnx.Module):
    def __init__(self):
        self.running_mean, self.running_var = nnx.BatchStat(jnp.zeros(3)), nnx.BatchStat(jnp.ones(3))


def test_nnx_names_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"no norm was found: 1 \(OwnNNX\) keeps a mean and a variance"):
        ours_nnx.synchronize(nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0)), OwnNNX()]), axis_name=None)
    with pytest.raises(ValueError, match=r"recalibrate: no norm was found: the model \(OwnNNX\)"):
        ours_nnx.recalibrate(OwnNNX(), [jnp.ones((2, 3))])
    model = nnx.List([nnx.BatchNorm(3, rngs=nnx.Rngs(0)), OwnNNX()])
    with pytest.warns(UnchangedNormWarning, match=r"1 \(OwnNNX\) keeps"):
        assert ours_nnx.synchronize(model, axis_name=None) == ["0"]
    with pytest.raises(ValueError, match=r"BatchNorm is a flax.linen module.*synchronize, a context"):
        ours_nnx.synchronize(nn.BatchNorm(), axis_name=None)
    with pytest.raises(ValueError, match=r"must be a flax\.nnx module, not function"):
        ours_nnx.synchronize(draw, axis_name=None)


def test_nnx_is_undone():
    """The options are those of before, the variables those of now; what was ours from the start stays."""
    flax = nnx.BatchNorm(3, momentum=0.5, axis_name="own", rngs=nnx.Rngs(0))
    model = nnx.List([flax, ours_nnx.BatchNorm(3, rngs=nnx.Rngs(0)), flax])
    with pytest.raises(ValueError, match="synchronize has turned no norm of this List"):
        ours_nnx.unsynchronize(model)
    before = attributes(flax)
    assert ours_nnx.synchronize(model, axis_name=None, momentum=0.0, span=2) == ["0"]
    x = draw((4, 3))
    model = nnx.merge(*nnx.split(model))
    model[0](x)
    assert ours_nnx.unsynchronize(model) == ["0"]
    assert attributes(model[0]) == before and model[0] is model[2] and type(model[0]) is nnx.BatchNorm
    assert (model[0].momentum, model[0].axis_name) == (0.5, "own")
    assert jnp.abs(model[0].mean[...]).max() > 0
    assert ours_nnx.synchronize(model, axis_name="again") == ["0", "1"]
