"""Batch normalization for `flax.nnx`: modules, and what one does with them around training."""

from batchnorm_jax._extras import need as _need

_need("flax", extra="flax", caller=__name__)

from batchnorm_jax.nnx._fold import fold
from batchnorm_jax.nnx._module import BatchNorm
from batchnorm_jax.nnx._recalibrate import recalibrate
from batchnorm_jax.nnx._renorm import BatchRenorm
from batchnorm_jax.nnx._synchronize import synchronize, unsynchronize

__all__ = ["BatchNorm", "BatchRenorm", "fold", "recalibrate", "synchronize", "unsynchronize"]
