"""Exact batch normalization for JAX: one pooled result under jit, pmap, shard_map and vmap.

The functions here work on arrays. `batchnorm_jax.linen` and `batchnorm_jax.nnx` hold the modules for Flax,
`batchnorm_jax.typing` the types that they share, and `batchnorm_jax.batch_size` what tells which batch size to use.
"""

import importlib as _importlib
from types import ModuleType as _ModuleType

from batchnorm_jax._batch_norm import batch_norm
from batchnorm_jax._folding import fold
from batchnorm_jax._inference import normalize
from batchnorm_jax._moments import Moments, conditioning, pool
from batchnorm_jax._recalibrate import recalibrate
from batchnorm_jax._remat import save_norm_inputs
from batchnorm_jax._renorm import batch_renorm, relaxed_d_max, relaxed_r_max
from batchnorm_jax._running import update_running
from batchnorm_jax._warnings import ConditioningWarning, NegativeScaleWarning, NormWarning, UnchangedNormWarning

__all__ = [
    "ConditioningWarning",
    "Moments",
    "NegativeScaleWarning",
    "NormWarning",
    "UnchangedNormWarning",
    "batch_norm",
    "batch_renorm",
    "conditioning",
    "fold",
    "normalize",
    "pool",
    "recalibrate",
    "relaxed_d_max",
    "relaxed_r_max",
    "save_norm_inputs",
    "update_running",
]
__version__ = "0.1.0"

_PACKAGES = ("batch_size", "linen", "nnx", "torch_interop")


def __getattr__(name: str) -> _ModuleType:
    # Imported when they are asked for: a user of the functions need not have Flax.
    if name in _PACKAGES:
        return _importlib.import_module(f"{__name__}.{name}")
    if name in ("BatchNorm", "BatchRenorm", "synchronize"):
        raise AttributeError(
            f"batchnorm_jax has no {name}; take batchnorm_jax.linen.{name} or batchnorm_jax.nnx.{name}"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES})
