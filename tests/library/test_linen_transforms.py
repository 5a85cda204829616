"""linen.BatchNorm under Flax's lifted transforms: scan, remat and vmap."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax.linen import BatchNorm
from tests.reference import normwise_error


def draw(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) * 2 + 1, jnp.float32)


class Stack(nn.Module):
    """Three norms, one step of a scan each."""

    @nn.compact
    def __call__(self, x):
        def body(module, carry, _):
            return module(carry), None

        scan = nn.scan(body, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3)
        return scan(
            BatchNorm(use_running_average=False, momentum=0.0, scale_init=nn.initializers.constant(2.0)), x, None
        )[0]


def test_under_scan():
    x = draw((16, 3))
    variables = Stack().init(jax.random.key(0), x)
    y, updates = Stack().apply(variables, x, mutable=["batch_stats"])
    (stats,) = jax.tree.leaves(updates["batch_stats"], is_leaf=lambda a: "var" in a)
    # What comes out of a step has variance 4.
    np.testing.assert_allclose(stats["var"][1:], 4.0, rtol=1e-4)
    assert stats["mean"].shape == (3, 3) and y.shape == x.shape
    gradient = jax.grad(
        lambda p: jnp.sum(Stack().apply({**variables, "params": p}, x, mutable=["batch_stats"])[0] ** 3)
    )
    assert np.isfinite(jax.tree.leaves(gradient(variables["params"]))[0]).all()


def test_under_remat_and_vmap():
    x = draw((5, 16, 3))
    plain = BatchNorm(use_running_average=False, momentum=0.9)
    variables = plain.init(jax.random.key(0), x[0])

    def gradient(module, x):
        def loss(params):
            y, updates = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), updates

        return jax.grad(loss, has_aux=True)(variables["params"])

    want = gradient(plain, x[0])
    got = gradient(nn.remat(BatchNorm)(use_running_average=False, momentum=0.9), x[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)

    # Five sets of variables, each for its own batch.
    many = nn.vmap(BatchNorm, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True})
    module = many(use_running_average=False, momentum=0.9)
    y, _ = module.apply(module.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    for i in range(5):
        np.testing.assert_allclose(y[i], plain.apply(variables, x[i], mutable=["batch_stats"])[0], rtol=1e-5, atol=1e-6)

    # One set for all five, pooled over the mapped axis.
    shared = nn.vmap(
        BatchNorm, variable_axes={"params": None, "batch_stats": None}, split_rngs={"params": False}, axis_name="i"
    )
    module = shared(use_running_average=False, momentum=0.9, axis_name="i")
    y, updates = module.apply(variables, x, mutable=["batch_stats"])
    want, want_updates = plain.apply(variables, x.reshape(-1, 3), mutable=["batch_stats"])
    assert normwise_error(y.reshape(-1, 3), want) < 1e-5
    np.testing.assert_allclose(updates["batch_stats"]["var"], want_updates["batch_stats"]["var"], rtol=1e-5)
