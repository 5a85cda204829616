"""Batch renormalization as a `flax.nnx` module."""

from collections.abc import Callable, Mapping
from typing import Any, Required, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from batchnorm_jax._options import SharedKeywords
from batchnorm_jax._renorm import Limits, check_limits, limits_at, relaxed_d_max, relaxed_r_max
from batchnorm_jax._synchronize import SynchronizeOptions
from batchnorm_jax.nnx._module import BatchNorm
from batchnorm_jax.typing import Limit


class BatchNormOptions(SharedKeywords, SynchronizeOptions, total=False):
    """The keyword arguments of `BatchNorm`, of which `rngs` is required: here those that only the module has."""

    use_running_average: bool | None
    axis: int
    param_dtype: DTypeLike
    use_bias: bool
    use_scale: bool
    bias_init: nnx.Initializer
    scale_init: nnx.Initializer
    promote_dtype: Callable[..., Any]
    rngs: Required[nnx.Rngs]
    bias_metadata: Mapping[str, Any]
    scale_metadata: Mapping[str, Any]
    update_stats: bool | None


class BatchRenorm(BatchNorm):
    """Batch renormalization: the batch's statistics, corrected towards the running ones within limits.

    See `batchnorm_jax.batch_renorm` and `batchnorm_jax.linen.BatchRenorm`. It has one `BatchStat` more than
    `BatchNorm`, `steps`, the number of calls that updated the running statistics.

    Args:
      num_features: the number of features.
      r_max: a number of at least 1, or a function of `steps`; by default the paper's.
      d_max: a number of at least 0, or a function of `steps`; by default the paper's.
      **options: the other arguments of `BatchNorm`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from batchnorm_jax.nnx import BatchRenorm
      >>> norm = BatchRenorm(1, momentum=0.9, r_max=3.0, d_max=5.0, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[1.0], [3.0]]))
      >>> norm.steps[...]
      Array(1, dtype=int32)

    Source: Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017.
    """

    def __init__(
        self,
        num_features: int,
        *,
        r_max: Limit = relaxed_r_max,
        d_max: Limit = relaxed_d_max,
        **options: Unpack[BatchNormOptions],
    ):
        check_limits(r_max, d_max, caller="BatchRenorm")
        super().__init__(num_features, **options)
        self.r_max = r_max
        self.d_max = d_max
        self.steps = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def _limits(self) -> Limits:
        return limits_at(self.r_max, self.d_max, self.steps[...])

    def _count_step(self) -> None:
        self.steps.set_value(self.steps[...] + 1)
