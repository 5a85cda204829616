"""Folds the norms of a linen model into the layers before them."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import core
from flax import linen as nn

from batchnorm_jax import _folding
from batchnorm_jax._arrays import statistics_dtype
from batchnorm_jax._checks import feature_axes
from batchnorm_jax._options import NormOptions
from batchnorm_jax._pairs import Seen
from batchnorm_jax._recalibrate import check_variables
from batchnorm_jax._saving import effective_scale
from batchnorm_jax.linen._adapt import Replace, Rules, check_model, check_replace, plain_class, replacer
from batchnorm_jax.linen._pairs import NORMS, check_pairs, pairs_of, trace
from batchnorm_jax.typing import VariableDict, Variables

Pairs = Iterable[tuple[str, str]]


def fold(
    model: nn.Module,
    variables: Variables,
    pairs: Pairs | None,
    *args: Any,
    replace: Replace | None = None,
    **kwargs: Any,
) -> tuple[Callable[..., Any], VariableDict]:
    """Folds batch norms into the convolutions and dense layers before them, for evaluation.

    `apply(folded, ...)` gives what `model.apply(variables, ...)` gives in evaluation, to rounding, with one
    multiplication and one subtraction per value less; see `batchnorm_jax.fold` for the formula. A norm's activation and
    residual are still applied. The model's own code runs, with its folded norms skipped, so it need not be changed.
    Neither the model nor `variables` changes.

    The model is traced with the example, and nothing is computed. Tracing is needed because the options of the norms
    are known only from the modules that the code makes, and because the program shows whether a norm, and nothing else,
    reads a layer's output as it is. Where a layer has no bias, the folded bias is kept as the bias of its norm and
    added there, in float32 or more.

    The layers that can be folded are `nn.Conv`, `nn.ConvLocal`, `nn.ConvTranspose`, `nn.Dense`, `nn.DenseGeneral` and
    `nn.Einsum`, but no class derived from them, which might do more. The norms are those of Flax and of
    `batchnorm_jax`. Both may be under `nn.remat` and `nn.jit`, and under `nn.scan` and `nn.vmap` where variables are
    shared or stacked along axis 0. In bfloat16 (`dtype`) results differ by a few roundings, about 1e-2 of the greatest.

    Args:
      model: the module.
      variables: its `params` and `batch_stats`.
      pairs: (layer, norm) paths, such as ("block_0/Conv_0", "block_0/BatchNorm_0"); None: every layer that can be
        folded, with a warning that names the norms that stay, and the reasons.
      *args: an example of the arguments of `model.apply` in evaluation; arrays may be `jax.ShapeDtypeStruct`s.
      replace: the way that norms of other classes are run, as in `batchnorm_jax.linen.synchronize`; None for a class:
        its norms stay.
      **kwargs: further arguments of the example, such as `train=False` or `method=...`.

    Returns:
      apply: a function like `model.apply`, which can be jitted. It raises a ValueError where a folded norm is to
        normalise by the batch.
      folded: the variables without those of folded norms, except a bias that a layer has no place for.

    Raises:
      ValueError: there is nothing to fold, a path is unknown, or a pair cannot be folded: the norm does not read the
        layer's output as it is, or something else reads it too; one of them is called twice; the feature axis is not
        the last; the example trains; or the variables are stacked along another axis.
      UnchangedNormWarning: without pairs, a norm stays as it is; the message says why.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from batchnorm_jax.linen import BatchNorm, fold
      >>> model = nn.Sequential([nn.Dense(4), BatchNorm(use_running_average=True, activation=nn.relu)])
      >>> x = jnp.array([[1.0, 2.0]])
      >>> variables = model.init(jax.random.key(0), x)
      >>> apply, folded = fold(model, variables, [("layers_0", "layers_1")], x)
      >>> bool(jnp.allclose(apply(folded, x), model.apply(variables, x), atol=1e-5)), list(folded["params"])
      (True, ['layers_0'])

    Source: see `batchnorm_jax.fold`.
    """
    check_model(model, caller="fold")
    check_variables(variables, caller="fold", collections=True)
    variables = core.unfreeze(dict(variables))
    rules = check_replace(replace, caller="fold")
    seen = trace(model, variables, args, kwargs, rules)
    chosen = pairs_of(seen) if pairs is None else check_pairs(seen, pairs)
    folded = jax.tree.map(lambda leaf: leaf, variables)
    parameter_dtypes = {}
    for layer, norm in chosen:
        parameters = nn.unbox(_at(variables["params"], norm.path))
        parameter_dtypes[norm.path] = [a.dtype for a in parameters.values()]
        _fold_pair(folded, layer, norm)
    return _applied(model, parameter_dtypes, rules), folded


def _fold_pair(variables: VariableDict, layer: Seen, norm: Seen) -> None:
    """Puts the folded kernel and bias in their places, and removes the norm's variables."""
    stored = _at(variables["params"], layer.path)
    parameters = nn.unbox(_at(variables["params"], norm.path))
    stats = nn.unbox(_at(variables["batch_stats"], norm.path))
    kernel, bias = nn.unbox(stored["kernel"]), nn.unbox(stored.get("bias"))
    stacked = kernel.shape[: kernel.ndim - len(layer.shape)]
    for name, value, shape in (("kernel", kernel, layer.shape), ("mean", stats["mean"], norm.shape)):
        if value.shape != stacked + shape:
            raise ValueError(
                f"fold: {layer.path!r} and {norm.path!r} are not stacked alike along the axes 0 of their scans: the "
                f"{name} has shape {value.shape} in the variables and {shape} in the call; scan params and batch_stats "
                "along axis 0, or neither"
            )
    function = partial(_folding.fold, epsilon=norm.module.epsilon)
    for _ in stacked:
        function = jax.vmap(function)
    transposed = getattr(layer.module, "transpose_kernel", False)
    # Wide, so that a bias that stays with the norm keeps its digits.
    wide = _swapped(kernel, transposed).astype(statistics_dtype(kernel.dtype))
    scale = effective_scale(parameters.get("scale"), getattr(norm.module, "save_for_backward", "input"))
    folded, new = function(wide, bias, stats["mean"], stats["var"], scale, parameters.get("bias"))
    stored["kernel"] = _boxed_as(stored["kernel"], _swapped(folded, transposed).astype(kernel.dtype))
    boxed = _at(variables["params"], norm.path).get("bias")
    for collection in list(variables):
        _drop(variables, [collection, *norm.path.split("/")])
    if bias is not None:
        stored["bias"] = _boxed_as(stored["bias"], new if jnp.iscomplexobj(new) else new.astype(bias.dtype))
    else:
        _at(variables["params"], norm.path, make=True)["bias"] = new if boxed is None else _boxed_as(boxed, new)


def _applied(model: nn.Module, parameter_dtypes: dict[str, list[jnp.dtype]], rules: Rules) -> Callable[..., Any]:
    """Returns a function like `model.apply` that skips the folded norms.

    Args:
      model: the module.
      parameter_dtypes: the dtypes of the parameters that each folded norm had, by its path.
      rules: fold's `replace`.
    """

    def skip(next_fun, args, kwargs, context):
        is_norm = context.method_name == "__call__" and plain_class(context.module) in NORMS
        dtypes = parameter_dtypes.get("/".join(context.module.path)) if is_norm else None
        return next_fun(*args, **kwargs) if dtypes is None else _folded_norm(context.module, dtypes, *args, **kwargs)

    def apply(variables: Variables, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(replacer(rules, caller="fold", folded=parameter_dtypes)), nn.intercept_methods(skip):
            return model.apply(variables, *args, **kwargs)

    return apply


def _folded_norm(module: Any, dtypes, x, use_running_average=None, *, mask=None, residual=None, update_stats=None):
    """Runs in place of the norm's own call; `mask` concerns only the statistics."""
    caller = f"folded BatchNorm {module.name or ''}".strip()
    if feature_axes(module.axis, x.ndim, caller=caller) != (x.ndim - 1,):
        raise ValueError(f"{caller}: axis={module.axis} is not the last of an input of shape {x.shape}")
    own = getattr(module, "update_stats", None)
    options = NormOptions(
        activation=getattr(module, "activation", None),
        dtype=module.dtype or jnp.result_type(x, *dtypes),
        caller=caller,
    )
    return _folding.apply_folded(
        x,
        nn.unbox(module.get_variable("params", "bias")),
        residual,
        options,
        use_running_average=nn.merge_param("use_running_average", module.use_running_average, use_running_average),
        update_stats=own if update_stats is None else update_stats,
    )


def _at(tree: VariableDict, path: str, *, make: bool = False) -> VariableDict:
    """Returns the variables of a module in one collection; an empty dictionary where it has none."""
    for name in path.split("/"):
        tree = tree.setdefault(name, {}) if make else tree.get(name, {})
    return tree


def _drop(tree: VariableDict, names: list[str]) -> None:
    """Removes a part, and the dictionaries around it that are then empty."""
    if len(names) > 1 and names[0] in tree:
        _drop(tree[names[0]], names[1:])
    if len(names) == 1 or not tree.get(names[0]):
        tree.pop(names[0], None)


def _swapped(kernel: jax.Array, transposed: bool) -> jax.Array:
    """Swaps the last two axes of a kernel that is stored transposed."""
    return jnp.swapaxes(kernel, -1, -2) if transposed else kernel


def _boxed_as(box: Any, value: jax.Array) -> Any:
    """Returns the value with the metadata, such as a sharding, of the box."""
    return core.meta.replace_boxed(box, value)
