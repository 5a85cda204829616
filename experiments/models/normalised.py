"""Applies the norm after a convolution or a dense layer, in the same way for every model of this package."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .layout import NHWC, Layout

# A factory: `norm(**options)` returns a norm module; the options are among `axis`, `activation` and `scale_init`. The
# module is called as `module(x, use_running_average=..., mask=..., residual=...)`, where an absent mask or residual is
# left out, and returns `activation(norm(x) + residual)`. `batchnorm_jax.linen.BatchNorm` is such a factory;
# `resnet.plain` makes one from a norm of Flax.
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
    """Returns `activation(norm(x) + residual)`; must be called in a compact method, because it makes a submodule.

    Args:
      norm: the factory of the norm; None: only the residual and the activation are applied.
      x: the activations in `layout`; with the default layout, also of shape (N, features).
      train: True: normalise by the batch's statistics and update the running ones; False: use the running ones.
      mask: True where an example counts towards the statistics, shape (N,); None: all examples count.
      residual: the array to add to the normalised one, of the shape of `x`; None: nothing is added.
      activation: an elementwise function; None: the identity.
      layout: the order of the axes of `x` and the result.
      **options: further options for the factory, besides the axis and the activation.

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

    # A norm cuts spans from axis 0, but here the examples are on another axis. So the examples are divided into groups
    # that no span cuts, and the axis of the groups becomes axis 0; to the norm, each group looks like one example with
    # one more axis. Moving the axis of the examples itself would take several times as long as all the rest. The clone
    # is the same submodule, with the options for this view.
    axis, examples = layout.example_axis, x.shape[layout.example_axis]
    group = _group(span, examples)
    module = module.clone(parent=module.scope, axis=layout.feature_axis + 1, span=span // group)

    def grouped(a):
        return jnp.moveaxis(a.reshape(*a.shape[:axis], -1, group, *a.shape[axis + 1 :]), axis, 0)

    arrays = {name: grouped(a) for name, a in arrays.items()}
    y = module(grouped(x), **arrays, use_running_average=False)
    return jnp.moveaxis(y, 0, axis).reshape(x.shape).astype(x.dtype)


def _group(span: int, examples: int) -> int:
    """Returns the size of the largest groups of examples that no span cuts; 1 if there are none.

    In that case the norm itself refuses the span.
    """
    if span > 0 and examples % span == 0:
        return span
    return examples if span > 0 and span % examples == 0 else 1
