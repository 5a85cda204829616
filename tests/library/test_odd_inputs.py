"""A value that is no array, number, dtype or model is refused in one sentence that names it, wherever it is given."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from batchnorm_jax import (
    Moments,
    batch_norm,
    batch_renorm,
    conditioning,
    fold,
    linen,
    normalize,
    pool,
    recalibrate,
    update_running,
)
from batchnorm_jax import nnx as ours_nnx

X, Z, O = jnp.ones((8, 3)), jnp.zeros(3), jnp.ones(3)  # noqa: E741
MOMENTS = Moments(Z, O, jnp.asarray(8.0))
STACKED = Moments(jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.ones(2))
NO_ARRAYS = {
    "text": "abc",
    "object": object(),
    "mapping": {"a": 1},
    "texts": np.array(["a"]),
    "key": jax.random.key(0),
    "too great": 10**30,
}
ARRAYS = {
    "batch_norm: the input": batch_norm,
    "batch_norm: scale": lambda v: batch_norm(X, v),
    "batch_norm: mask": lambda v: batch_norm(X, mask=v),
    "batch_norm: residual": lambda v: batch_norm(X, residual=v),
    "batch_renorm: mean": lambda v: batch_renorm(X, v, O),
    "normalize: var": lambda v: normalize(X, Z, v),
    "fold: the kernel": lambda v: fold(v, None, Z, O),
    "update_running: mean": lambda v: update_running(v, O, MOMENTS, momentum=0.9),
    "conditioning: shift": lambda v: conditioning(MOMENTS, v),
    "pool: count": lambda v: pool(STACKED._replace(count=v)),
    "BatchNorm: the input": ours_nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
}
KEY = jax.random.key(0)
HEALTHY = (linen.BatchNorm(use_running_average=True), {"batch_stats": {"mean": Z, "var": O}})
# What is called, and the words that it is answered with.
REGISTER = [
    (lambda: pool("abc"), "pool: moments must be Moments"),
    (lambda: pool(STACKED, axis=None), "pool: axis=None must be an integer"),
    (lambda: conditioning(None, Z), "conditioning: moments must be Moments"),
    (lambda: conditioning(MOMENTS, jnp.ones(2)), "conditioning: shift has shape"),
    (lambda: update_running(jnp.ones(2), O, MOMENTS, momentum=0.9), "update_running: mean has shape"),
    (lambda: update_running(Z, O, MOMENTS, momentum=jnp.ones(3)), "update_running: momentum="),
    (lambda: normalize(X, Z, O, activation="relu"), "normalize: activation='relu' is not a function"),
    (lambda: normalize(X, Z, O, dtype=jnp.int8), "normalize: dtype="),
    (lambda: batch_norm(X, dtype="abc"), "batch_norm: dtype='abc' must be a floating point"),
    (lambda: batch_norm(X, dtype=X), "batch_norm: dtype="),
    (lambda: batch_norm(X, axis_name={}), "batch_norm: axis_name={} must be the name"),
    (lambda: batch_norm(X, span=jnp.float32(8)), "batch_norm: span="),
    (lambda: batch_norm(X, collective=np.ones(3)), "batch_norm: collective="),
    (lambda: batch_renorm(X, Z, O, r_max="3"), "batch_renorm: r_max='3' must be a number"),
    (lambda: batch_norm(X, axis=True), "batch_norm: axis must be an integer"),
    (lambda: batch_norm(X, epsilon=np.array(["a"])), "batch_norm: epsilon="),
    (lambda: batch_norm(X, activation=len), "activation len gives 8 for an array of shape (8, 3)"),
    (lambda: normalize(X, Z, O, activation=jnp.sum), "activation sum gives an array of shape ()"),
    (lambda: batch_renorm(X, Z, O, r_max=lambda step: 3.0), "batch_renorm: r_max is a function"),
    (lambda: linen.BatchNorm(param_dtype=int), "BatchNorm: param_dtype="),
    (lambda: linen.BatchNorm(axis_name=X), "BatchNorm: axis_name is a"),
    (lambda: linen.BatchNorm(axis_index_groups=(1, 2)), "BatchNorm: axis_index_groups must be"),
    (lambda: linen.BatchNorm(use_running_average="abc"), "BatchNorm: use_running_average='abc' must be True or False"),
    (lambda: linen.BatchNorm().init(KEY, X, use_running_average=2), "BatchNorm: use_running_average=2 must be True"),
    (lambda: linen.BatchNorm().init(KEY, X, True, update_stats="no"), "BatchNorm: update_stats='no' must be True"),
    (
        lambda: linen.BatchRenorm(use_running_average=False, r_max=str).init(KEY, X),
        "BatchRenorm: the function r_max must give a number",
    ),
    (lambda: ours_nnx.BatchNorm(10**30, rngs=nnx.Rngs(0)), "BatchNorm: num_features=1000"),
    (lambda: ours_nnx.synchronize(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), axis_name=X), "BatchNorm: axis_name is a"),
    (lambda: ours_nnx.fold(nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0))), X), "fold: pairs must be a list"),
    (lambda: ours_nnx.BatchNorm(0, rngs=nnx.Rngs(0)), "BatchNorm: num_features=0 must be"),
    (lambda: ours_nnx.BatchNorm(3, axis_index_groups=1, rngs=nnx.Rngs(0)), "BatchNorm: axis_index_groups must be"),
    (lambda: ours_nnx.BatchNorm(3, rngs=nnx.Rngs(0))((X, X)), "BatchNorm: the input must be an array of numbers"),
    (lambda: recalibrate(None, {}, [X]), "recalibrate: moments_fn must be a function"),
    (lambda: recalibrate(dict, None, [X]), "recalibrate: variables must be a mapping"),
    (lambda: recalibrate(dict, {"batch_stats": {}}, None), "recalibrate: batches must be a list"),
    (lambda: recalibrate(len, {}, [X]), "recalibrate: moments_fn is called with the variables and a batch, which len"),
    (lambda: linen.recalibrate(None, {}, [X]), "recalibrate: the model must be a flax.linen module"),
    (lambda: linen.recalibrate(linen.BatchNorm(), {"a": 1}, [X]), "recalibrate: variables must map collections"),
    (lambda: linen.recalibrate(*HEALTHY, ["a"]), "recalibrate: a batch holds 'a', a str; give arrays"),
    (lambda: linen.fold(linen.BatchNorm(), {"a": 1}, None, X), "fold: variables must map collections"),
    (lambda: linen.fold("abc", {}, None, X), "fold: the model must be a flax.linen module"),
    (lambda: linen.fold(linen.BatchNorm(), None, None, X), "fold: variables must be a mapping"),
]


@pytest.mark.parametrize("kind", NO_ARRAYS)
@pytest.mark.parametrize("name", ARRAYS)
def test_what_is_no_array_is_refused(name, kind):
    with pytest.raises(ValueError, match=f"^{name} must be an array of numbers, not "):
        ARRAYS[name](NO_ARRAYS[kind])


@pytest.mark.parametrize(("call", "words"), REGISTER, ids=[words for _, words in REGISTER])
def test_odd_options_are_refused(call, words):
    with pytest.raises(ValueError) as refused:
        call()
    assert str(refused.value).startswith(words)


def test_a_batch_may_hold_keys_and_numbers():
    """As of a model whose noise is given to it."""

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, batch):
            noise = batch["size"] * jax.random.normal(batch["key"], batch["x"].shape)
            return linen.BatchNorm(use_running_average=True)(batch["x"] + noise)

    batch = {"x": X, "key": KEY, "size": 0.0}
    variables = Noisy().init(KEY, batch)
    (stats,) = linen.recalibrate(Noisy(), variables, [batch])["batch_stats"].values()
    np.testing.assert_allclose(stats["mean"], X.mean(0))


@pytest.mark.parametrize("kind", [linen.BatchNorm, linen.BatchRenorm, partial(ours_nnx.BatchNorm, 3, rngs=nnx.Rngs(0))])
def test_every_flag_is_true_or_false(kind):
    """Every option whose default is true, false or left open between the two."""
    parameters = inspect.signature(getattr(kind, "func", kind).__init__).parameters.values()
    flags = [p.name for p in parameters if isinstance(p.default, bool)] + ["use_running_average", "update_stats"]
    assert "use_fast_variance" in flags
    for name in flags:
        with pytest.raises(ValueError, match=f"{name}='False' must be True or False"):
            kind(**{name: "False"})
