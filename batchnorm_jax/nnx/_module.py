"""Batch normalization as a `flax.nnx` module, which holds only state around the functions of `batchnorm_jax`."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike, DTypeLike

from batchnorm_jax._checks import as_array, feature_axes
from batchnorm_jax._collectives import as_groups, check_axis_name
from batchnorm_jax._inference import Running
from batchnorm_jax._layer import Request, call, check_layer, diagnose, options_of
from batchnorm_jax._operands import as_operands
from batchnorm_jax._peers import check_names
from batchnorm_jax._renorm import Limits
from batchnorm_jax._saving import check_scale
from batchnorm_jax.typing import Activation, AxisName, Collective, Groups, SaveForBackward

_ZEROS, _ONES = nnx.initializers.zeros_init(), nnx.initializers.ones_init()


class BatchNorm(nnx.Module):
    """Batch normalization over the examples of every device.

    The arguments up to `scale_metadata` are those of `flax.nnx.BatchNorm`, with the same meaning and defaults, and so
    are the variables, `Param` scale and bias and `BatchStat` mean and var: a state of one loads in the other.
    `batchnorm_jax.linen.BatchNorm` says what differs, and `batchnorm_jax.batch_norm` which examples are pooled.
    One more difference: the running statistics are never rounded to `dtype`, so that training and evaluation agree.

    Args:
      num_features: the number of features.
      use_running_average: normalise by the running statistics; `model.train()` and `model.eval()` set it.
      axis: the feature axis.
      momentum: running = momentum running + (1 - momentum) batch. (PyTorch's momentum is 1 minus this one.)
      epsilon: added to the variance.
      dtype: the dtype of the result; None: the dtype that the input, the parameters and the statistics promote to.
      param_dtype: the dtype of `scale` and `bias`.
      use_bias: add a learned bias.
      use_scale: multiply by a learned scale.
      bias_init: the bias's initializer.
      scale_init: the scale's initializer.
      axis_name: the name or names of the axes to reduce over.
      axis_index_groups: groups of the participants on `axis_name`, each pooled by itself.
      use_fast_variance: False is the same as `collective="all_gather"`.
      promote_dtype: decides the result's dtype from (inputs, mean, var, scale, bias); a function other than Flax's own
        also promotes the parameters themselves.
      rngs: the key of the initializers.
      bias_metadata: the metadata of the variable `bias`.
      scale_metadata: the metadata of the variable `scale`.
      span: the number of examples that are normalised together; None: all.
      collective: "psum", or "all_gather", which is exact.
      activation: an elementwise function of the result, computed again in the backward pass.
      save_for_backward: the array that is kept: see `batchnorm_jax.batch_norm`.
      unbiased_running_var: average the variance that is divided by max(n - 1, 1), as PyTorch does.
      skip_nonfinite: leave the running statistics of a feature as they are where the batch's are not finite.
      update_stats: update the running statistics. None: the opposite of `use_running_average`.
      check_conditioning: give a `ConditioningWarning` when the mean is so far from the running mean that the variance
        loses digits.
      **peers: none is accepted; an option of another library is answered with its name here.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from batchnorm_jax.nnx import BatchNorm
      >>> norm = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[1.0], [3.0]]))
      >>> norm.mean[...]
      Array([0.2], dtype=float32)

    Source: the interface is that of `flax.nnx.BatchNorm`; Ioffe and Szegedy, arXiv 1502.03167, 2015.
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = _ZEROS,
        scale_init: nnx.Initializer = _ONES,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        use_fast_variance: bool = True,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        span: int | None = None,
        collective: Collective = "psum",
        activation: Activation | None = None,
        save_for_backward: SaveForBackward = "input",
        unbiased_running_var: bool = False,
        skip_nonfinite: bool = False,
        update_stats: bool | None = None,
        check_conditioning: bool = False,
        **peers: Any,
    ):
        whole = isinstance(num_features, int | np.integer) and not isinstance(num_features, bool)
        if not whole or not 1 <= num_features < 2**31:
            raise ValueError(
                f"BatchNorm: num_features={num_features!r} must be a whole number of at least 1, below 2^31"
            )
        if peers:
            known = [n for n in inspect.signature(BatchNorm.__init__).parameters if n not in ("self", "peers")]
            check_names(peers, known, caller=type(self).__name__)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype: DTypeLike | None = dtype
        self.param_dtype: DTypeLike = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        check_axis_name(axis_name, caller="BatchNorm")
        # Tuples, because nnx would count a list as state.
        self.axis_name: AxisName | None = tuple(axis_name) if isinstance(axis_name, list) else axis_name
        self.axis_index_groups: Groups | None = as_groups(axis_index_groups, caller="BatchNorm")
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.span = span
        self.collective: Collective = collective
        self.activation = activation
        self.save_for_backward: SaveForBackward = save_for_backward
        self.unbiased_running_var = unbiased_running_var
        self.skip_nonfinite = skip_nonfinite
        self.update_stats = update_stats
        self.check_conditioning = check_conditioning
        check_layer(self, caller="BatchNorm")
        shape = (num_features,)
        self.mean = nnx.BatchStat(jnp.zeros(shape, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(shape, jnp.float32))
        # The order of the keys is Flax's, so that a seed gives the same parameters.
        self.scale = (
            nnx.Param(scale_init(rngs.params(), shape, param_dtype), **scale_metadata) if use_scale else nnx.data(None)
        )
        self.bias = (
            nnx.Param(bias_init(rngs.params(), shape, param_dtype), **bias_metadata) if use_bias else nnx.data(None)
        )
        if self.scale is not None:
            check_scale(self.scale[...], save_for_backward, caller="BatchNorm")

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
        residual: ArrayLike | None = None,
        update_stats: bool | None = None,
    ) -> jax.Array:
        """Normalises `x`, and updates the running statistics.

        Args:
          x: an array of floating point or complex numbers, of any rank.
          use_running_average: overrides the module's own.
          mask: broadcastable to `x`, True where a position counts towards the statistics.
          residual: an array of the shape of `x`, added before the activation.
          update_stats: overrides the module's own. With `use_running_average=True` the batch's statistics are
            computed only for the update.

        Returns:
          An array of the shape of `x`.

        Raises:
          ValueError: `use_running_average` is given neither here nor in the constructor, or the input does not have
            `num_features` features; and every error of `batchnorm_jax.batch_norm`.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError(
                "BatchNorm: use_running_average is given neither in the constructor nor in the call; give it in one of "
                "them, or call model.train() or model.eval()"
            )
        x = as_array(x, "the input", caller="BatchNorm", listed=False)
        features = feature_axes(self.axis, x.ndim, caller="BatchNorm")
        if tuple(x.shape[i] for i in features) != (self.num_features,):
            raise ValueError(
                f"BatchNorm: num_features={self.num_features}, and the input of shape {x.shape} has "
                f"{[x.shape[i] for i in features]} on axis {self.axis}"
            )
        mean, var = self.mean[...], self.var[...]
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        promoted = self.promote_dtype((x, mean, var, scale, bias), dtype=self.dtype)
        dtype = promoted[0].dtype
        if self.promote_dtype is not dtypes.promote_dtype:
            x, _, _, scale, bias = promoted
        operands = as_operands(x, caller="BatchNorm", scale=scale, bias=bias, mask=mask, residual=residual)
        options = options_of(self, features, dtype)
        request = Request(use_running_average, update_stats)
        called = call(self, operands, Running(mean, var), options, request, self._limits())
        diagnose(self, called.conditioning, "BatchNorm")
        if called.running is not None:
            # A variable may be a reference that a gradient is taken through, which takes only values.
            for variable, value in zip((self.mean, self.var), jax.lax.stop_gradient(called.running), strict=True):
                variable.set_value(value)
            self._count_step()
        return called.y

    def _limits(self) -> Limits | None:
        """Returns the limits of batch renormalization; None: there is no renormalization."""
        return None

    def _count_step(self) -> None:
        """Counts an update of the running statistics, where a class keeps their number."""

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode; `nnx.view` calls it.

        Args:
          use_running_average: normalise by the running statistics; None: leave the mode as it is.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
