"""Batch normalization over the examples of every device."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from batchnorm_jax._activations import Activation, static
from batchnorm_jax._collectives import AxisName, Pool, axis_size, check_groups, vary_like
from batchnorm_jax._core import Correction, Spec, effective_scale, normalize_by_batch
from batchnorm_jax._moments import Moments, as_array, check_mask
from batchnorm_jax._options import check_dtype, check_epsilon, check_input, check_options, check_real, check_scale
from batchnorm_jax._spans import average_over_spans, cut_spans, plan_span


def batch_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    shift: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    span: int | None = None,
    collective: str = "psum",
    activation: Activation | None = None,
    residual: jax.Array | None = None,
    save_for_backward: str = "input",
    dtype: Any = None,
) -> tuple[jax.Array, Moments]:
    """Normalises `x` by the mean and variance of all its positions, on every device of `axis_name`.

    With m the mask, K the shift or 0, and sums over every axis but `axis` and over `axis_name`:

        n = sum m,   S1 = sum m (x - K),   S2 = sum m |x - K|^2
        mean = K + S1/n,   var = max(0, S2/n - |S1/n|^2)
        y = activation(scale (x - mean) / sqrt(var + epsilon) + bias + residual)

    K is the nearer to the mean for each feature, so a shift that is far off, or not finite, does no harm. The sums
    about both travel in one psum (4 floats per feature, 2 where no shift is given; n is added only if there is a mask),
    and the backward pass takes one psum of 2 floats per feature. Collectives stand outside of the derivative rules, so
    a gradient may be taken outside of what binds the axis. Which examples are pooled:

    - inside `pmap`, `shard_map` or `vmap` with `axis_name`: those of every participant on that axis;
    - inside them without `axis_name`: each participant's own;
    - under `jit` with sharded arrays, `axis_name=None`: those of the whole array;
    - with `axis_index_groups`: those of the participant's group; with `span`: those of the example's span.

    Gradients of `scale` and `bias` follow the transform: local under `pmap` and `shard_map(check_vma=False)`,
    where the caller reduces gradients; reduced under `shard_map(check_vma=True)` for a replicated parameter,
    as JAX requires. Forward mode, reverse mode and their compositions work.

    Other collectives are taken by:

    - groups of devices under `shard_map(check_vma=True)`, over several axis names, or in `vmap`, where JAX has no
      grouped psum: one psum of as many rows of floats as there are groups, and under check_vma=True in the backward
      pass of one row more;
    - a span inside a device: no collective but one psum of the averaged moments, which XLA drops where they are not
      used; across devices: groups, and that psum; under `jit` with Explicit axes some small gathers;
    - `collective="all_gather"`: forward one all_gather of 3 floats per feature; under `jit` two all-reduces;
    - a mask that differs per feature: one float more; complex input: 3 floats about each K, and 3 backward;
    - one device, and `vmap`: nothing.

    Args:
      x: floating point or complex numbers, of any rank; sums are taken in at least float32.
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      axis: the feature axis or axes; features are in ascending order of axes.
      epsilon: added to the variance.
      mask: broadcastable to `x`, True where a position counts towards the statistics. Every position is normalised.
      shift: shape (*features), a guess of the mean, the same on every device, such as the running mean. The relative
        error of the variance is a few eps (1 + (mean - K)^2 / var), eps 6e-8, with K the shift or 0, whichever is
        nearer to the mean: never more than with no shift. No gradient flows into it.
      axis_name: the name or names of the axes over which to pool.
      axis_index_groups: groups of equal size of the participants on `axis_name`, pooled each by itself.
      span: how many examples along axis 0 are normalised together, contiguous in the global order, whether inside a
        device or across several; None: all. The moments are then the mean over the spans of each one's mean and
        variance, and of its count.
      collective: "psum", of sums about K; "all_gather", of each device's moments about its own mean: exact however far
        the mean is from K, for a second pass over `x` and a gather that grows with the devices.
      activation: an elementwise function, computed again in the backward pass: nothing of it is kept. It must not close
        over a value that is differentiated, such as a learned slope.
      residual: of the shape of `x`, added before the activation.
      save_for_backward: "input", keep `x` in its own dtype; with a residual and `jax.nn.relu` also y, with
        another activation also the residual. "output", keep y alone and undo the activation and the norm, so that
        `x` need not live: for no activation, `jax.nn.leaky_relu` and `jax.nn.elu`. In it |scale| + 1e-5 takes the
        place of scale, and a gradient is only as exact as y holds x: in bfloat16 that of a scale of 0.01 beside a
        bias of 0.5 is 13% off. Not for networks whose scales go to zero. "nothing", as "input", but inside
        `jax.checkpoint` with the policy `save_norm_inputs` `x` is computed again, with the layer before it.
      dtype: of y; None: what `x`, `scale`, `bias` and `residual` promote to.

    Returns:
      y, of the shape of `x`, and the `Moments` that it was normalised by, differentiable, the same on every
      participant (of a group). Where no position counts at all: mean `shift` (or 0), var 1, count 0, and zero
      gradients of `x`, `scale` and `bias`.

    Raises:
      ValueError: integer input, no positions at all, a feature axis out of range, a parameter, mask or residual of the
        wrong shape, an `axis_name` that is not bound, groups or a span that do not split the devices and examples,
        an option that is not known, or `save_for_backward="output"` with what it cannot undo.

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
    return pooled_norm(
        x,
        scale,
        bias,
        axis=axis,
        epsilon=epsilon,
        mask=mask,
        shift=shift,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        span=span,
        collective=collective,
        activation=activation,
        residual=residual,
        save_for_backward=save_for_backward,
        dtype=dtype,
        caller="batch_norm",
    )


def pooled_norm(
    x,
    scale,
    bias,
    *,
    axis,
    epsilon,
    mask,
    shift,
    axis_name,
    axis_index_groups,
    span,
    collective,
    activation,
    residual,
    save_for_backward,
    dtype,
    caller: str,
    correction: Correction | None = None,
) -> tuple[jax.Array, Moments]:
    """`batch_norm`, and with a `correction` batch renormalization; `caller` is named in errors."""
    x = as_array(x, "the input", caller=caller)
    scale, bias, shift, residual = (
        None if a is None else as_array(a, name, caller=caller)
        for name, a in (("scale", scale), ("bias", bias), ("shift", shift), ("residual", residual))
    )
    check_dtype(dtype, caller=caller)
    features = check_input(x, axis, caller=caller)
    axis_name = tuple(axis_name) if isinstance(axis_name, list) else axis_name
    shape = tuple(x.shape[i] for i in features)
    known = None if correction is None else correction.mean
    for name, value in (("scale", scale), ("bias", bias), ("mean", known), ("shift", shift)):
        if value is not None and jnp.shape(value) != shape:
            raise ValueError(
                f"{caller}: {name} has shape {jnp.shape(value)}, but the input of shape {x.shape} "
                f"has features of shape {shape} (axis={axis}); give it that shape"
            )
    if residual is not None and jnp.shape(residual) != x.shape:
        raise ValueError(
            f"{caller}: residual has shape {jnp.shape(residual)} and the input {x.shape}; they must be the same"
        )
    check_real(scale, bias, x, caller=caller)
    if isinstance(epsilon, Tracer):
        raise ValueError(
            f"{caller}: epsilon must be a number, known when the function is traced; no gradient flows to it"
        )
    check_epsilon(epsilon, caller=caller)
    check_options(
        collective=collective,
        activation=activation,
        save_for_backward=save_for_backward,
        has_residual=residual is not None,
        caller=caller,
    )
    check_scale(scale, save_for_backward, caller=caller)
    if mask is not None:
        mask = check_mask(mask, x.shape, caller=caller)
        # A replicated input under a mask that differs between devices is one that differs, to its derivative.
        x = vary_like(x, mask)
    participants = axis_size(axis_name, caller=caller)
    pool = Pool(axis_name, check_groups(axis_index_groups, participants, caller=caller))
    if span is not None and 0 in features:
        raise ValueError(f"{caller}: span={span} counts examples along axis 0, which is a feature axis here ({axis=})")
    plan = plan_span(span, x.shape[0] if 0 not in features else 1, pool, caller=caller)
    if dtype is None:
        dtype = jnp.result_type(*(a for a in (x, scale, bias, residual) if a is not None))

    scale = effective_scale(scale, save_for_backward)
    shift, correction = lax.stop_gradient((shift, correction))
    options = (float(epsilon), plan.statistics, collective, static(activation), save_for_backward, jnp.dtype(dtype))
    if plan.per_device is None:
        y, statistics = normalize_by_batch(Spec(features, *options), x, scale, bias, mask, shift, residual, correction)
    else:
        if correction is not None:
            spans = {name: jnp.expand_dims(getattr(correction, name), 0) for name in ("mean", "var")}
            correction = correction._replace(**spans)
        arrays = cut_spans(plan.per_device, x, scale, bias, mask, shift, residual)
        cut, scale, bias, mask, shift, residual = arrays
        spec = Spec((0, *(f + 1 for f in features)), *options)
        y, statistics = normalize_by_batch(spec, cut, scale, bias, mask, shift, residual, correction)
        y = y.reshape(x.shape)
    mean = statistics.reference + statistics.offset
    return y, average_over_spans(plan, Moments(mean, statistics.var, statistics.count))
