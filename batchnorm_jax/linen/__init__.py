"""Batch normalization for `flax.linen`: modules, and what one does with them around training."""

from batchnorm_jax._extras import need as _need

_need("flax", extra="flax", caller=__name__)

from batchnorm_jax.linen._fold import fold
from batchnorm_jax.linen._module import BatchNorm, BatchRenorm
from batchnorm_jax.linen._recalibrate import moments_fn, recalibrate
from batchnorm_jax.linen._synchronize import synchronize

__all__ = ["BatchNorm", "BatchRenorm", "fold", "moments_fn", "recalibrate", "synchronize"]
