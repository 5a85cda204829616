"""Folds the norms of an nnx model into the layers before them."""

from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from batchnorm_jax import _folding
from batchnorm_jax._arrays import statistics_dtype
from batchnorm_jax._checks import feature_axes
from batchnorm_jax._options import NormOptions
from batchnorm_jax._saving import effective_scale
from batchnorm_jax.nnx._pairs import features_last, find_pairs, put
from batchnorm_jax.nnx._synchronize import no_norms
from batchnorm_jax.nnx._trace import trace

Model = TypeVar("Model", bound=nnx.Module)


def fold(model: Model, pairs: Iterable[tuple[str, str]] | None = None, *args: Any, **kwargs: Any) -> Model:
    """Copies a model with its batch norms folded into the convolutions and dense layers before them.

    The copy gives what the model gives in evaluation, to rounding, with one multiplication and one subtraction per
    value less; see `batchnorm_jax.fold` for the formula. In place of a norm is a module that is called in the same way
    and applies the norm's activation and residual; a layer without a bias gets one. The model is left as it is; arrays
    that do not change are the same in both, and modules shared within the model are shared within the copy.

    The layers that can be folded are `nnx.Conv`, `nnx.ConvTranspose`, `nnx.Linear`, `nnx.LinearGeneral` and
    `nnx.Einsum`, but no class derived from them, which might do more. The norms are those of Flax and of
    `batchnorm_jax`. In bfloat16 (`dtype`) results differ by a few roundings, about 1e-2 of the greatest.

    With an example, a copy of the model is traced in evaluation, and nothing is computed: the program shows which norm,
    and nothing else, reads a layer's output as it is. Without an example, a norm is folded where it stands directly
    behind a layer in an `nnx.Sequential`, also where one is nested in another, or in an `nnx.List`; the list is assumed
    to be applied in its order with nothing in between, and the norm of a given pair to be behind its layer. The modules
    alone do not show this, so give an example, or compare one result.

    Args:
      model: the model.
      pairs: (layer, norm) paths, such as ("block/conv", "block/norm") or ("layers/0", "layers/1"), with slashes as
        `synchronize` gives them, or with dots. None: every layer that can be folded, with a warning that names the
        norms that stay, and the reasons.
      *args: an example of the arguments of the model's call; arrays may be `jax.ShapeDtypeStruct`s.
      **kwargs: further arguments of the example.

    Returns:
      The folded copy, in evaluation mode. It raises a ValueError where a folded norm is to normalise by the batch, as
      after `train()`.

    Raises:
      ValueError: there is nothing to fold, a path is unknown, or a pair cannot be folded: with an example, the norm
        does not read the layer's output as it is, or something else reads it too; one of them stands in two places or
        is called twice, they differ in their features, the feature axis is not the last, the norm updates its
        statistics in evaluation, or their variables are stacked by `nnx.vmap`.
      UnchangedNormWarning: without pairs, a norm stays as it is; the message says why.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from batchnorm_jax.nnx import BatchNorm, fold
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 4, rngs=rngs), BatchNorm(4, activation=nnx.relu, rngs=rngs))
      >>> folded = fold(model, None, jnp.ones((1, 2)))
      >>> model.eval()
      >>> x = jnp.array([[1.0, 2.0]])
      >>> bool(jnp.allclose(folded(x), model(x), atol=1e-5)), len(nnx.state(folded, nnx.BatchStat))
      (True, 0)

    Source: see `batchnorm_jax.fold`.
    """
    if not isinstance(model, nnx.Module):
        raise no_norms(model, caller="fold")
    folded = nnx.clone(model)
    folded.eval()
    found = find_pairs(folded, pairs, partial(trace, folded, args, kwargs) if args or kwargs else None)
    for layer, norm in found:
        _fold_pair(layer.value, norm.value)
        put(norm, FoldedNorm(norm.value))
    return folded


class FoldedNorm(nnx.Module):
    """The rest of a norm whose scale and shift its layer has taken over: dtype, residual and activation.

    Args:
      norm: the folded norm; its options are kept, its variables are not.
    """

    def __init__(self, norm: Any):
        variables = (norm.mean, norm.var, norm.scale, norm.bias)
        self.num_features = norm.num_features
        self.axis = norm.axis
        self.dtype = norm.dtype
        self.dtypes = tuple(None if v is None else v[...].dtype for v in variables)
        self.promote_dtype = norm.promote_dtype
        self.activation = getattr(norm, "activation", None)
        # train() and eval() set it, so that training a model whose norms are folded is an error.
        self.use_running_average = True

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
        residual: ArrayLike | None = None,
        update_stats: bool | None = None,
    ) -> jax.Array:
        """Applies the residual and the activation.

        Args:
          x: the layer's output, of any rank.
          use_running_average: overrides the mode of the module; False is an error.
          mask: without effect: it concerns only statistics, of which there are none.
          residual: an array of the shape of `x`, added before the activation.
          update_stats: True is an error.

        Raises:
          ValueError: statistics of the batch are asked for, or the feature axis is not the last.
        """
        del mask
        if feature_axes(self.axis, x.ndim, caller="folded BatchNorm") != (x.ndim - 1,):
            raise ValueError(f"folded BatchNorm: axis={self.axis} is not the last of an input of shape {x.shape}")
        shapes = [None if d is None else jax.ShapeDtypeStruct((self.num_features,), d) for d in self.dtypes]
        promoted = jax.eval_shape(partial(self.promote_dtype, dtype=self.dtype), (x, *shapes))
        options = NormOptions(activation=self.activation, dtype=promoted[0].dtype, caller="folded BatchNorm")
        return _folding.apply_folded(
            x,
            None,
            residual,
            options,
            use_running_average=self.use_running_average if use_running_average is None else use_running_average,
            update_stats=update_stats,
        )

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode; `nnx.view` calls it.

        Args:
          use_running_average: False makes every call an error; None leaves the mode as it is.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


def _fold_pair(layer: Any, norm: Any) -> None:
    """Folds the norm into the layer, in place."""
    mean, var = norm.mean[...], norm.var[...]
    bias, scale, beta = (None if v is None else v[...] for v in (layer.bias, norm.scale, norm.bias))
    kernel = layer.kernel[...]
    scale = effective_scale(scale, getattr(norm, "save_for_backward", "input"))
    # Wide, so that each number is rounded once, to the dtype of its variable.
    wide = features_last(layer, kernel).astype(statistics_dtype(kernel.dtype))
    folded, new = _folding.fold(wide, bias, mean, var, scale, beta, epsilon=norm.epsilon)
    layer.kernel[...] = features_last(layer, folded).astype(kernel.dtype)
    dtype = kernel.dtype if bias is None else bias.dtype
    new = new if jnp.iscomplexobj(new) else new.astype(dtype)
    if bias is not None:
        layer.bias[...] = new
        return
    new = jnp.broadcast_to(new, _bias_shape(layer, new))
    # With the metadata of the norm's bias, such as a sharding along the features.
    layer.bias = nnx.Param(new) if norm.bias is None else norm.bias.replace(new)
    layer.use_bias = True


def _bias_shape(layer: Any, bias: jax.Array) -> tuple[int, ...]:
    """Returns the shape of the bias that a layer would have."""
    if isinstance(layer, nnx.LinearGeneral):
        return (*layer.batch_axis.values(), *layer.out_features)
    if isinstance(layer, nnx.Einsum):
        operands, result = layer.einsum_str.split("->")
        sizes = dict(zip(operands.split(",")[1], layer.kernel_shape, strict=True))
        return tuple(sizes[axis] for axis in result if axis in sizes)
    return bias.shape
