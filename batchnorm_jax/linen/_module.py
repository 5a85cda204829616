"""Batch normalization as a `flax.linen` module, which holds only state around the functions of `batchnorm_jax`."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from batchnorm_jax._arrays import promoted
from batchnorm_jax._checks import as_array, as_flag, feature_axes
from batchnorm_jax._inference import Running
from batchnorm_jax._layer import Request, call, check_layer, diagnose, options_of
from batchnorm_jax._operands import as_operands
from batchnorm_jax._peers import check_names
from batchnorm_jax._renorm import Limits, check_limits, limits_at, relaxed_d_max, relaxed_r_max
from batchnorm_jax._saving import check_scale
from batchnorm_jax.typing import Activation, Axes, AxisName, Collective, Groups, Limit, SaveForBackward


def _answer_peers(kind: type[nn.Module]) -> None:
    """Makes a class answer an option of another library with its name here, in place of Python's bare error."""
    construct, known = kind.__init__, list(inspect.signature(kind.__init__).parameters)[1:]

    @functools.wraps(construct)
    def checked(self, *args, **kwargs):
        check_names(kwargs, known, caller=kind.__name__)
        construct(self, *args, **kwargs)

    kind.__init__ = checked


class BatchNorm(nn.Module):
    """Batch normalization over the examples of every device.

    The arguments up to `force_float32_reductions` are those of `flax.linen.BatchNorm`, with the same meaning and
    defaults, and the variables have the same names, shapes and dtypes: `params` {scale, bias} and `batch_stats` {mean,
    var}, so a checkpoint of one loads in the other. There are three differences. Examples are weighted by count where a
    mask leaves the devices unequal numbers. The variance is computed about the running mean, which keeps its digits
    when the mean is far from zero. The backward pass keeps the input only in its own dtype.

    `batchnorm_jax.batch_norm` says which examples are pooled, and what each option costs.

    Under `nn.scan` scan the statistics along an axis, one set per step: `variable_axes={"batch_stats": 0}`.

    Attributes:
      use_running_average: normalise by the running statistics. Give it here or in the call.
      axis: the feature axis or axes.
      momentum: running = momentum running + (1 - momentum) batch. (PyTorch's momentum is 1 minus this one.)
      epsilon: added to the variance.
      dtype: the dtype of the result; None: the dtype that the input and the parameters promote to.
      param_dtype: the dtype of `scale` and `bias`.
      use_bias: add a learned bias.
      use_scale: multiply by a learned scale.
      bias_init: the bias's initializer.
      scale_init: the scale's initializer.
      axis_name: the name or names of the axes to reduce over; not needed, and not bound, while initialising.
      axis_index_groups: groups of the participants on `axis_name`, each pooled by itself.
      use_fast_variance: False is the same as `collective="all_gather"`.
      force_float32_reductions: False keeps the running statistics in `param_dtype`. (Sums are taken in float32 or more
        either way.)
      span: the number of examples that are normalised together; None: all.
      collective: "psum", or "all_gather", which is exact.
      activation: an elementwise function of the result, computed again in the backward pass.
      save_for_backward: the array that is kept: see `batchnorm_jax.batch_norm`.
      unbiased_running_var: average the variance that is divided by max(n - 1, 1), as PyTorch does.
      skip_nonfinite: leave the running statistics of a feature as they are where the batch's are not finite.
      update_stats: update the running statistics. None: the opposite of `use_running_average`.
      check_conditioning: give a `ConditioningWarning` when the mean is so far from the running mean that the variance
        loses digits, and sow the figure, `batchnorm_jax.conditioning`, as "conditioning" into "intermediates". Every
        device warns for itself.

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
    axis: Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    span: int | None = None
    collective: Collective = "psum"
    activation: Activation | None = None
    save_for_backward: SaveForBackward = "input"
    unbiased_running_var: bool = False
    skip_nonfinite: bool = False
    update_stats: bool | None = None
    check_conditioning: bool = False

    def __post_init__(self):
        check_layer(self, caller="BatchNorm")
        as_flag(self.force_float32_reductions, "force_float32_reductions", caller="BatchNorm")
        if self.use_scale and self.scale_init is nn.initializers.zeros:
            # A NumPy array: JAX would make a tracer where the module is made inside a traced function.
            check_scale(np.zeros(1), self.save_for_backward, caller="BatchNorm")
        super().__post_init__()

    @nn.compact
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
          use_running_average: overrides the module's own where that is None.
          mask: broadcastable to `x`, True where a position counts towards the statistics.
          residual: an array of the shape of `x`, added before the activation.
          update_stats: overrides the module's own. With `use_running_average=True` the batch's statistics are
            computed only for the update.

        Returns:
          An array of the shape of `x`.

        Raises:
          ValueError: `use_running_average` is given neither here nor in the constructor, or in both; and every error
            of `batchnorm_jax.batch_norm`.
        """
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        x = as_array(x, "the input", caller="BatchNorm", listed=False)
        features = feature_axes(self.axis, x.ndim, caller=f"BatchNorm {self.name or ''}".strip())
        shape = tuple(x.shape[i] for i in features)
        stats_dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        mean_dtype = promoted(stats_dtype, jnp.complex64) if jnp.iscomplexobj(x) else stats_dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, mean_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, stats_dtype)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype) if self.use_scale else None
        bias = self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else None
        dtype = self.dtype or jnp.result_type(*(a for a in (x, scale, bias) if a is not None))
        operands = as_operands(x, caller="BatchNorm", scale=scale, bias=bias, mask=mask, residual=residual)
        options = options_of(self, features, dtype, alone=self.is_initializing())
        request = Request(use_running_average, update_stats, self.is_initializing())
        called = call(self, operands, Running(mean.value, var.value), options, request, self._limits())
        if called.running is not None:
            mean.value, var.value = called.running
            self._count_step()
        if called.conditioning is not None:
            # Only the last figure: the variables that a step returns may be given to the next step.
            figure = called.conditioning
            self.sow("intermediates", "conditioning", figure, reduce_fn=lambda _, new: new, init_fn=lambda: figure)
            diagnose(self, figure, "/".join(self.path) or "BatchNorm")
        return called.y

    # Not wrapped: a wrapped method is a row of `nn.tabulate` and a call that interceptors see.
    @nn.nowrap
    def _limits(self) -> Limits | None:
        """Returns the limits of batch renormalization; None: there is no renormalization."""
        return None

    @nn.nowrap
    def _count_step(self) -> None:
        """Counts an update of the running statistics, where a class keeps their number."""


_answer_peers(BatchNorm)


class BatchRenorm(BatchNorm):
    """Batch renormalization: the batch's statistics, corrected towards the running ones within limits.

    It is for small batches: see `batchnorm_jax.batch_renorm`. The limits widen as training goes on, while the running
    statistics become meaningful. `batch_stats` has one variable more than in `BatchNorm`, `steps`, the number of calls
    that updated the running statistics; give a checkpoint of `BatchNorm` a `steps` of 0.

    Attributes:
      r_max: a number of at least 1, or a function of `steps`; by default the paper's, 1 for 5,000 steps and then rising
        to 3 at 40,000. Scale it for a shorter training, as in
        `lambda step: batchnorm_jax.relaxed_r_max(10 * step)`.
      d_max: a number of at least 0, or a function of `steps`; by default the paper's, 0 for 5,000 steps and then rising
        to 5 at 25,000.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from batchnorm_jax.linen import BatchRenorm
      >>> norm = BatchRenorm(use_running_average=False, momentum=0.9, r_max=3.0, d_max=5.0)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> y, updates = norm.apply(norm.init(jax.random.key(0), x), x, mutable=["batch_stats"])
      >>> updates["batch_stats"]["steps"]
      Array(1, dtype=int32)

    Source: Ioffe, "Batch Renormalization", arXiv 1702.03275, 2017.
    """

    r_max: Limit = relaxed_r_max
    d_max: Limit = relaxed_d_max

    def __post_init__(self):
        check_limits(self.r_max, self.d_max, caller="BatchRenorm")
        super().__post_init__()

    @nn.nowrap
    def _limits(self) -> Limits:
        steps = self.variable("batch_stats", "steps", jnp.zeros, (), jnp.int32)
        return limits_at(self.r_max, self.d_max, steps.value)

    @nn.nowrap
    def _count_step(self) -> None:
        self.put_variable("batch_stats", "steps", self.get_variable("batch_stats", "steps") + 1)


_answer_peers(BatchRenorm)
