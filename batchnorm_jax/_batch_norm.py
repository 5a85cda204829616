"""Batch normalization over the examples of every device."""

import jax
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from batchnorm_jax._checks import check_input
from batchnorm_jax._collectives import vary_like
from batchnorm_jax._core import normalize_by_batch
from batchnorm_jax._moments import Moments
from batchnorm_jax._operands import Operands, as_operands, check_operands
from batchnorm_jax._options import NormOptions
from batchnorm_jax._saving import check_scale, effective_scale
from batchnorm_jax._spans import average_over_spans, cut_spans, plan_span, within_spans
from batchnorm_jax.typing import Activation, Axes, AxisName, Collective, Groups, SaveForBackward


def batch_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    shift: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
    span: int | None = None,
    collective: Collective = "psum",
    activation: Activation | None = None,
    residual: ArrayLike | None = None,
    save_for_backward: SaveForBackward = "input",
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalises `x` by the mean and variance of all its positions, reduced over every device of `axis_name`.

    With m the mask, K the shift or 0, and sums over every axis but `axis` and over `axis_name`:

        n = sum m,   S1 = sum m (x - K),   S2 = sum m |x - K|^2
        mean = K + S1/n,   var = max(0, S2/n - |S1/n|^2)
        y = activation(scale (x - mean) / sqrt(var + epsilon) + bias + residual)

    For each feature K is whichever of the shift and 0 is nearer to the mean, so a shift that is far off, or not finite,
    does no harm. The sums about both travel in one psum (4 floats per feature, 2 where no shift is given; n is added
    only if there is a mask), and the backward pass takes one psum of 2 floats per feature. Collectives stand outside of
    the derivative rules, so a gradient may be taken outside of the transform that binds the axis. The pooled examples
    are:

    - inside `pmap`, `shard_map` or `vmap` with `axis_name`: those of every participant on that axis;
    - inside them without `axis_name`: each participant's own;
    - under `jit` with sharded arrays, `axis_name=None`: those of the whole array;
    - with `axis_index_groups`: those of the participant's group; with `span`: those of the example's span.

    Gradients of `scale` and `bias` follow the transform: local under `pmap` and `shard_map(check_vma=False)`,
    where the caller reduces gradients; reduced under `shard_map(check_vma=True)` for a replicated parameter,
    as JAX requires. Forward mode, reverse mode and their compositions work.

    Some calls take other collectives:

    - groups of devices under `shard_map(check_vma=True)`, over several axis names, or in `vmap`, where JAX has no
      grouped psum: one psum of as many rows of floats as there are groups, and under check_vma=True one row more in the
      backward pass;
    - a span inside a device: none but one psum of the averaged moments, which XLA drops where they are not used; a span
      across devices: groups, and that psum; under `jit` with Explicit axes also some small gathers;
    - `collective="all_gather"`: forward one all_gather of 3 floats per feature; under `jit` two all-reduces;
    - a mask that differs per feature: one float per feature more; complex input: 3 floats per feature about each K, and
      3 backward;
    - one device, and `vmap`: none.

    Args:
      x: floating point or complex numbers, of any rank. Sums are taken in at least float32.
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      axis: the feature axis or axes; features are in ascending order of axes.
      epsilon: added to the variance.
      mask: broadcastable to `x`, True where a position counts towards the statistics. Every position is normalised.
      shift: shape (*features), a guess of the mean, the same on every device, such as the running mean. The relative
        error of the variance is a few eps (1 + (mean - K)^2 / var) with eps = 6e-8 and K the shift or 0, whichever is
        nearer to the mean: never more than with no shift. No gradient flows into it.
      axis_name: the name or names of the axes to reduce over.
      axis_index_groups: groups of equal size of the participants on `axis_name`, each pooled by itself.
      span: the number of examples along axis 0 that are normalised together, contiguous in the global order, whether
        inside a device or across several; None: all. The moments are then the mean, over the spans, of each span's
        mean, variance and count.
      collective: "psum" pools sums about K. "all_gather" pools each device's moments about its own mean: exact however
        far the mean is from K, at the cost of a second pass over `x` and a gather that grows with the devices.
      activation: an elementwise function. The backward pass computes it again and keeps nothing of it. It must not
        close over a value that is differentiated, such as a learned slope.
      residual: an array of the shape of `x`, added before the activation.
      save_for_backward: "input" keeps `x` in its own dtype; with a residual and `jax.nn.relu` also y, with another
        activation and a residual also the residual. "output" keeps only y and undoes the activation and the norm, so
        that `x` need not stay in memory: for no activation, `jax.nn.leaky_relu` and `jax.nn.elu`. The scale is then
        |scale| + 1e-5, and a gradient is only as exact as y represents x: in bfloat16 the gradient for a scale of 0.01
        beside a bias of 0.5 is 13% off. Do not use it in networks whose scales go to zero. "nothing" is like "input",
        but inside `jax.checkpoint` with the policy `save_norm_inputs` it computes `x` again, with the layer before it.
      dtype: the dtype of y; None: the dtype that `x`, `scale`, `bias` and `residual` promote to.

    Returns:
      y, of the shape of `x`, and the `Moments` that normalised it: differentiable, and the same on every participant
      (of a group). Where no position counts at all: mean `shift` (or 0), var 1, count 0, and zero gradients of `x`,
      `scale` and `bias`.

    Raises:
      ValueError: integer input, no positions at all, a feature axis out of range, a parameter, mask or residual of the
        wrong shape, an `axis_name` that is not bound, groups or a span that do not split the devices and examples,
        an unknown option, or `save_for_backward="output"` with an activation or residual that it cannot undo.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.array([[[1.0]], [[3.0]]])  # two participants with one example of one feature each
      >>> y, moments = jax.vmap(lambda x: batch_norm(x, axis_name="batch"), axis_name="batch")(x)
      >>> moments.mean.ravel(), moments.count
      (Array([2., 2.], dtype=float32), Array([2., 2.], dtype=float32))

    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, 2015, algorithm 1; for pooling over devices
    Peng et al., "MegDet", arXiv 1711.07240, 2017; for inverting y Rota Bulo et al., "In-Place Activated BatchNorm",
    arXiv 1712.02616, 2017.
    """
    options = NormOptions(
        axis=axis,
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        span=span,
        collective=collective,
        activation=activation,
        save_for_backward=save_for_backward,
        dtype=dtype,
        caller="batch_norm",
    )
    operands = as_operands(x, scale=scale, bias=bias, mask=mask, shift=shift, residual=residual, caller=options.caller)
    return pooled_norm(operands, options)


def pooled_norm(operands: Operands, options: NormOptions) -> tuple[jax.Array, Moments]:
    """Computes `batch_norm`, and batch renormalization where the operands have a correction.

    Args:
      operands: the arrays of the call.
      options: the options, as given.

    Returns:
      y and the `Moments`, as `batch_norm`.
    """
    features = check_input(operands.x, options.axis, caller=options.caller)
    operands = check_operands(operands, features, options.axis, caller=options.caller)
    options = options.resolved(features, operands)
    check_scale(operands.scale, options.save_for_backward, caller=options.caller)
    x = operands.x
    if operands.mask is not None:
        # A replicated input under a mask that differs between devices is an input that differs, to its derivative.
        x = vary_like(x, operands.mask)
    plan = plan_span(options, x.shape[0] if 0 not in features else 1)
    shift, correction = lax.stop_gradient((operands.shift, operands.correction))
    scale = effective_scale(operands.scale, options.save_for_backward)
    operands = operands._replace(x=x, scale=scale, shift=shift, correction=correction)
    if plan.per_device is not None:
        operands = cut_spans(plan.per_device, operands)
    y, statistics = normalize_by_batch(within_spans(options, plan), operands)
    if plan.per_device is not None:
        y = y.reshape(x.shape)
    mean = statistics.reference + statistics.offset
    return y, average_over_spans(plan, Moments(mean, statistics.var, statistics.count))
