"""Uses an installed package, away from the checkout, and checks its version: `smoke.py v1.2.3`."""

import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
from flax import nnx

import batchnorm_jax
import batchnorm_jax.linen
import batchnorm_jax.nnx

x = jnp.arange(12.0).reshape(6, 2)
for norm in (
    batchnorm_jax.nnx.BatchNorm(2, rngs=nnx.Rngs(0)),
    lambda x: batchnorm_jax.linen.BatchNorm(use_running_average=False).init_with_output(jax.random.key(0), x)[0],
):
    y = norm(x)
    assert jnp.allclose(y.mean(0), 0, atol=1e-5) and jnp.allclose(y.var(0), 1, atol=1e-3), y

names = {version("batchnorm_jax"), batchnorm_jax.__version__, sys.argv[1].removeprefix("v")}
if len(names) > 1:
    sys.exit(f"the tag, the metadata and `__version__` name one version, not {', '.join(sorted(names))}")
print(f"batchnorm_jax {batchnorm_jax.__version__} works with JAX {jax.__version__}")
