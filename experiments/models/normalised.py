"""The norm after a convolution or a dense layer, as every model in this package applies it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.models.layout import NHWC, Layout

# `norm(**options)` returns a norm; the options are among `axis`, `activation` and `scale_init`. The norm is called as
# `module(x, use_running_average=..., mask=..., residual=...)`, without a mask or a residual where there is none, and
# returns `activation(norm(x) + residual)`. `batchnorm_jax.linen.BatchNorm` is such a factory; `resnet.plain` makes one
# from a norm of Flax.
NormFactory = Callable[..., Callable[..., jax.Array]]


def normalised(
    norm: NormFactory | None,
    x: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    residual: jax.Array | None = None,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    layout: Layout = NHWC,
    **options,
) -> jax.Array:
    """Returns `activation(norm(x) + residual)`; call it inside a compact method, since it makes a submodule.

    Args:
      norm: makes the norm; None: no norm, only the residual and the activation.
      x: activations in `layout`, or of shape (N, features) with the default one.
      train: normalise by the batch's statistics and update the running ones.
      mask: shape (N,), True where an example counts towards the statistics.
      residual: an array of the shape of `x`.
      activation: an elementwise function.
      layout: the order of the axes of `x` and the result.
      **options: for the factory, besides the axis and the activation.

    Returns:
      An array of the shape and dtype of `x`.
    """
    if norm is None:
        y = x if residual is None else x + residual
        return y if activation is None else activation(y)
    if activation is not None:
        options["activation"] = activation
    module = norm(axis=-1 if layout == NHWC else layout.feature_axis, **options)
    arrays = {}
    if residual is not None:
        arrays["residual"] = residual
    if mask is not None:
        mask = mask.reshape(-1, *(1,) * (x.ndim - 1))
        arrays["mask"] = mask if layout == NHWC else layout.from_nhwc(mask)
    span = getattr(module, "span", None)
    if layout == NHWC or span is None or not train:
        return module(x, **arrays, use_running_average=not train).astype(x.dtype)

    # A norm cuts spans from axis 0, and the examples are on another axis. So the examples are divided into groups that
    # no span cuts, and axis 0 becomes the axis of the groups, each like one example with one more axis: moving the axis
    # of the examples itself would take several times as long as all else. The clone is the same submodule, for that
    # view.
    axis, examples = layout.example_axis, x.shape[layout.example_axis]
    group = _group(span, examples)
    module = module.clone(parent=module.scope, axis=layout.feature_axis + 1, span=span // group)

    def grouped(a):
        return jnp.moveaxis(a.reshape(*a.shape[:axis], -1, group, *a.shape[axis + 1 :]), axis, 0)

    arrays = {name: grouped(a) for name, a in arrays.items()}
    y = module(grouped(x), **arrays, use_running_average=False)
    return jnp.moveaxis(y, 0, axis).reshape(x.shape).astype(x.dtype)


def _group(span: int, examples: int) -> int:
    """Returns the size of the largest groups of examples that no span cuts; 1 if there are none: the norm refuses."""
    if span > 0 and examples % span == 0:
        return span
    return examples if span > 0 and span % examples == 0 else 1
