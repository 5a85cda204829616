"""Every argument of every function accepts each odd value, or refuses it with a message of this library."""

import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import batchnorm_jax
from batchnorm_jax import Moments, linen
from batchnorm_jax import nnx as ours_nnx

X, ZEROS, ONES = jnp.arange(24.0).reshape(8, 3) / 7, jnp.zeros(3), jnp.ones(3)
MOMENTS = Moments(ZEROS, ONES, jnp.asarray(8.0))
STACKED = Moments(jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.ones(2))
KERNEL = jnp.ones((2, 3))
ODD = {
    "None": None,
    "text": "abc",
    "list": [[1.0, 2.0, 3.0]],
    "list of text": ["a"],
    "mapping": {"a": 1},
    "object": object(),
    "3": 3,
    "1.5": 1.5,
    "True": True,
    "NaN": float("nan"),
    "-1": -1,
    "too great": 10**30,
    "tuple": (1, 2),
    "function": len,
    "NumPy number": np.int64(2),
    "texts": np.array(["a", "b"]),
    "objects": np.array([None] * 3),
    "key": jax.random.key(0),
    "one number": jnp.float32(1),
    "empty": jnp.zeros((0, 3)),
    "another shape": jnp.ones((2, 5)),
    **{str(dtype): jnp.ones((8, 3), dtype) for dtype in ("int8", "uint32", "bool", "float16", "complex64")},
    "float64": np.ones((8, 3)),
}
OF_BATCH_NORM = (
    *("scale", "bias", "axis", "epsilon", "mask", "shift", "axis_name", "axis_index_groups", "span", "collective"),
    *("activation", "residual", "save_for_backward", "dtype"),
)
OF_LAYERS = (
    *("axis", "momentum", "epsilon", "dtype", "param_dtype", "span", "axis_name", "axis_index_groups", "activation"),
    *("collective", "save_for_backward", "use_running_average", "update_stats", "use_fast_variance", "skip_nonfinite"),
)
TRAINING = linen.BatchNorm(use_running_average=False)
EVALUATED = nn.BatchNorm(use_running_average=True)
VARIABLES = {"params": {"scale": ONES, "bias": ZEROS}, "batch_stats": {"mean": ZEROS, "var": ONES}}


def _norm(**options):
    return ours_nnx.BatchNorm(3, rngs=nnx.Rngs(0), **options)


def _layer(name):
    def call(value):
        norm = linen.BatchNorm(**{"use_running_average": False} | {name: value})
        return norm.init_with_output(jax.random.key(0), X)

    return call


def _inside(value):
    with linen.synchronize(value):
        return nn.BatchNorm(use_running_average=False).init(jax.random.key(0), X)


def _moments_fn(variables, batch):
    return {"norm": batchnorm_jax.batch_norm(batch)[1]}


CALLS = {
    "batch_norm x": batchnorm_jax.batch_norm,
    **{f"batch_norm {n}": lambda v, n=n: batchnorm_jax.batch_norm(X, **{n: v}) for n in OF_BATCH_NORM},
    "batch_renorm mean": lambda v: batchnorm_jax.batch_renorm(X, v, ONES),
    "batch_renorm r_max": lambda v: batchnorm_jax.batch_renorm(X, ZEROS, ONES, r_max=v),
    "normalize x": lambda v: batchnorm_jax.normalize(v, ZEROS, ONES),
    "normalize mean": lambda v: batchnorm_jax.normalize(X, v, ONES),
    "normalize var": lambda v: batchnorm_jax.normalize(X, ZEROS, v),
    "normalize activation": lambda v: batchnorm_jax.normalize(X, ZEROS, ONES, activation=v),
    "normalize dtype": lambda v: batchnorm_jax.normalize(X, ZEROS, ONES, dtype=v),
    "fold kernel": lambda v: batchnorm_jax.fold(v, None, ZEROS, ONES),
    "fold bias": lambda v: batchnorm_jax.fold(KERNEL, v, ZEROS, ONES),
    "fold mean": lambda v: batchnorm_jax.fold(KERNEL, None, v, ONES),
    "pool moments": batchnorm_jax.pool,
    "pool axis": lambda v: batchnorm_jax.pool(STACKED, axis=v),
    "pool mean": lambda v: batchnorm_jax.pool(STACKED._replace(mean=v)),
    "pool count": lambda v: batchnorm_jax.pool(STACKED._replace(count=v)),
    "update_running moments": lambda v: batchnorm_jax.update_running(ZEROS, ONES, v, momentum=0.9),
    "update_running mean": lambda v: batchnorm_jax.update_running(v, ONES, MOMENTS, momentum=0.9),
    "update_running momentum": lambda v: batchnorm_jax.update_running(ZEROS, ONES, MOMENTS, momentum=v),
    "conditioning moments": lambda v: batchnorm_jax.conditioning(v, ZEROS),
    "conditioning shift": lambda v: batchnorm_jax.conditioning(MOMENTS, v),
    "recalibrate function": lambda v: batchnorm_jax.recalibrate(v, {"batch_stats": {}}, [X]),
    "recalibrate variables": lambda v: batchnorm_jax.recalibrate(_moments_fn, v, [X]),
    "recalibrate batches": lambda v: batchnorm_jax.recalibrate(
        _moments_fn, {"batch_stats": {"norm": VARIABLES["batch_stats"]}}, v
    ),
    "recalibrate mode": lambda v: batchnorm_jax.recalibrate(_moments_fn, {"batch_stats": {}}, [X], mode=v),
    **{f"linen {name}": _layer(name) for name in OF_LAYERS},
    "linen x": lambda v: TRAINING.init(jax.random.key(0), v),
    "linen mask": lambda v: TRAINING.init(jax.random.key(0), X, mask=v),
    "linen synchronize": _inside,
    "linen recalibrate model": lambda v: linen.recalibrate(v, VARIABLES, [X]),
    "linen recalibrate variables": lambda v: linen.recalibrate(EVALUATED, v, [X]),
    "linen recalibrate batches": lambda v: linen.recalibrate(EVALUATED, VARIABLES, v),
    "linen recalibrate replace": lambda v: linen.recalibrate(EVALUATED, VARIABLES, [X], replace=v),
    "linen fold model": lambda v: linen.fold(v, VARIABLES, None, X),
    "linen fold variables": lambda v: linen.fold(nn.Sequential([nn.Dense(3), EVALUATED]), v, None, X),
    **{f"nnx {name}": lambda v, name=name: _norm(**{name: v})(X) for name in OF_LAYERS},
    "nnx num_features": lambda v: ours_nnx.BatchNorm(v, rngs=nnx.Rngs(0)),
    "nnx x": lambda v: _norm()(v),
    "nnx mask": lambda v: _norm()(X, mask=v),
    "nnx synchronize model": lambda v: ours_nnx.synchronize(v, axis_name=None),
    "nnx synchronize axis_name": lambda v: ours_nnx.synchronize(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), axis_name=v),
    "nnx unsynchronize": ours_nnx.unsynchronize,
    "nnx recalibrate model": lambda v: ours_nnx.recalibrate(v, [X]),
    "nnx recalibrate batches": lambda v: ours_nnx.recalibrate(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), v),
    "nnx fold model": ours_nnx.fold,
    "nnx fold pairs": lambda v: ours_nnx.fold(
        nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))), v
    ),
}
# Values that Flax refuses, with a clear message of its own.
OF_FLAX = {("linen use_running_average", "None")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_odd_values_are_accepted_or_refused_with_a_message_of_this_library(name):
    ours, unclear = Path(batchnorm_jax.__file__).parent, []
    for kind, value in ODD.items():
        try:
            CALLS[name](value)
        except Exception as error:
            raised = traceback.extract_tb(error.__traceback__)[-1]
            said = isinstance(error, ValueError) and Path(raised.filename).is_relative_to(ours) and str(error)
            if not (said and "raise" in (raised.line or "")) and (name, kind) not in OF_FLAX:
                unclear.append(f"{kind}: {type(error).__name__}: {error}")
    assert not unclear
