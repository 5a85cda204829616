"""Batch normalization as a `flax.linen` module: state, and nothing else, around the functions of `batchnorm_jax`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from batchnorm_jax._batch_norm import batch_norm
from batchnorm_jax._collectives import AxisName
from batchnorm_jax._inference import normalize
from batchnorm_jax._moments import feature_axes


class BatchNorm(nn.Module):
    """Batch normalization over the examples of every device.

    The arguments mean what they mean in `flax.linen.BatchNorm`, with the same defaults, and the variables have the same
    names, shapes and dtypes: `params` {scale, bias} and `batch_stats` {mean, var}, so a checkpoint of one loads in
    the other. What differs: examples are weighted by count where a mask leaves the devices unequal numbers, the
    variance is computed about the running mean, which keeps its digits when the mean is far from zero, and the
    backward pass keeps the input in its own dtype alone. Not yet there: `axis_index_groups`, `use_fast_variance`
    and `force_float32_reductions`.

    Which examples are pooled is said at `batchnorm_jax.batch_norm`.

    Attributes:
      use_running_average: normalise by the running statistics, and leave them as they are. Give it here or in the call.
      axis: the feature axis or axes.
      momentum: running = momentum running + (1 - momentum) batch. (PyTorch's momentum is 1 minus this one.)
      epsilon: added to the variance.
      dtype: of the result; None: what the input and the parameters promote to.
      param_dtype: of `scale` and `bias`.
      use_bias: add a learned bias.
      use_scale: multiply by a learned scale.
      bias_init: the bias's initializer.
      scale_init: the scale's initializer.
      axis_name: the name or names of the axes over which to pool; not needed, and not bound, while initialising.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from batchnorm_jax.linen import BatchNorm
      >>> norm = BatchNorm(use_running_average=False, momentum=0.9)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
      >>> updates["batch_stats"]["mean"]
      Array([0.2], dtype=float32)

    Source: the interface is that of `flax.linen.BatchNorm`; Ioffe and Szegedy, arXiv 1502.03167, 2015.
    """

    use_running_average: bool | None = None
    axis: int | Sequence[int] = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    axis_name: AxisName | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalises `x`, and updates the running statistics unless `use_running_average`.

        Args:
          x: an array of floating point numbers, of any rank.
          use_running_average: overrides the module's own where that is None.
          mask: broadcastable to `x`, True where a position counts towards the statistics.

        Returns:
          An array of the shape of `x`.

        Raises:
          ValueError: `use_running_average` is given neither here nor in the constructor, or in both; and what
            `batchnorm_jax.batch_norm` raises.
        """
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        features = feature_axes(self.axis, x.ndim, caller=f"BatchNorm {self.name or ''}".strip())
        shape = tuple(x.shape[i] for i in features)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype) if self.use_scale else None
        bias = self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else None
        if self.dtype is not None and jnp.issubdtype(self.dtype, jnp.floating):
            # A wider result than the input and the parameters promote to must be computed that wide.
            x = x.astype(jnp.promote_types(x.dtype, self.dtype))

        if use_running_average:
            y = normalize(x, mean.value, var.value, scale, bias, axis=features, epsilon=self.epsilon)
        else:
            initializing = self.is_initializing()
            y, moments = batch_norm(
                x,
                scale,
                bias,
                axis=features,
                epsilon=self.epsilon,
                mask=mask,
                shift=mean.value,
                axis_name=None if initializing else self.axis_name,
            )
            if not initializing:
                mean.value = self._averaged(mean.value, moments.mean, moments.count)
                var.value = self._averaged(var.value, moments.var, moments.count)
        return y if self.dtype is None else y.astype(self.dtype)

    def _averaged(self, running: jax.Array, batch: jax.Array, count: jax.Array) -> jax.Array:
        updated = self.momentum * running + (1 - self.momentum) * batch
        return jnp.where(count > 0, updated, running).astype(running.dtype)
