"""Exact batch normalization for JAX: one pooled result under jit, pmap, shard_map and vmap.

The functions here work on arrays. `batchnorm_jax.linen` holds the module for Flax.
"""

from batchnorm_jax._batch_norm import batch_norm
from batchnorm_jax._inference import normalize
from batchnorm_jax._moments import Moments, conditioning, pool, update_running

__all__ = ["Moments", "batch_norm", "conditioning", "normalize", "pool", "update_running"]
__version__ = "0.1.0"
