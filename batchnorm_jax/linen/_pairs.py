"""Finds the layers of a linen model that can be folded with its norms, by tracing the model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from batchnorm_jax._checks import feature_axes
from batchnorm_jax._flow import STORED_OF_LAYER, STORED_OF_NORM, mark
from batchnorm_jax._pairs import (
    Seen,
    Trace,
    check_paths,
    every_pair,
    objection,
    objection_to_equation,
    objection_to_norm,
    say_what_stays,
    traced,
)
from batchnorm_jax.linen._adapt import Rules, looks_like_a_norm, name_lookalikes, plain_class, replacer
from batchnorm_jax.linen._module import BatchNorm, BatchRenorm
from batchnorm_jax.typing import Variables

LAYERS = (nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum)
NORMS = (nn.BatchNorm, BatchNorm, BatchRenorm)


class Traced(NamedTuple):
    """The record of one run of a linen model.

    Attributes:
      seen: the layers and norms of the model.
      lookalikes: the class of each module that looks like a norm but is of no known class, by path.
    """

    seen: Trace
    lookalikes: dict[str, type]


def trace(model: nn.Module, variables: Variables, args: tuple, kwargs: Mapping[str, Any], rules: Rules) -> Traced:
    """Traces `model.apply(variables, *args, **kwargs)`; nothing is computed. `rules` is fold's `replace`."""
    layers: dict[str, Seen] = {}
    norms: dict[str, Seen] = {}
    lookalikes: dict[str, type] = {}

    def run(variables, *args, **kwargs):
        recorder = _recorder(layers, norms, lookalikes, rules)
        with nn.intercept_methods(replacer(rules, caller="fold")), nn.intercept_methods(recorder):
            return model.apply(variables, *args, **kwargs)

    flow = traced(run, variables, args, kwargs)
    lookalikes = {path: kind for path, kind in lookalikes.items() if path not in norms}
    return Traced(Trace(layers, norms, flow), lookalikes)


def pairs_of(model: Traced) -> list[tuple[Seen, Seen]]:
    """Returns every layer that can be folded, with its norm; warns of the norms that stay, with the reasons.

    Raises:
      ValueError: there is none; the message says why the norms of the model cannot be folded.
    """
    found, reasons = every_pair(model.seen)
    number = len(reasons) + len(model.lookalikes)
    if model.lookalikes:
        reasons.insert(0, name_lookalikes(model.lookalikes))
    say_what_stays(found, number, reasons)
    return [(model.seen.layers[layer], model.seen.norms[norm]) for layer, norm in found]


def check_pairs(model: Traced, pairs: Iterable[tuple[str, str]]) -> list[tuple[Seen, Seen]]:
    """Returns the layers and norms of these paths.

    Raises:
      ValueError: a path does not exist or is given twice, or the layer cannot be folded with the norm.
    """
    layers, norms = model.seen.layers, model.seen.norms
    pairs = check_paths(pairs, layers, norms)
    for layer, norm in pairs:
        if reason := objection(model.seen, layer, norm):
            raise ValueError(f"fold: {reason}")
    return [(layers[layer], norms[norm]) for layer, norm in pairs]


def _recorder(
    layers: dict[str, Seen], norms: dict[str, Seen], lookalikes: dict[str, type], rules: Rules
) -> Callable[..., Any]:
    """Returns an interceptor that records each layer and norm, and marks their inputs and outputs in the program."""

    def intercept(next_fun, args, kwargs, context):
        module, cls = context.module, plain_class(context.module)
        if context.method_name != "__call__" or cls not in (*LAYERS, *NORMS):
            result = next_fun(*args, **kwargs)
            if module.scope is not None and cls not in (*rules, *NORMS) and looks_like_a_norm(module):
                lookalikes["/".join(module.path)] = cls
            return result
        path = "/".join(module.path)
        stored = nn.unbox(module.get_variable(*(STORED_OF_LAYER if cls in LAYERS else STORED_OF_NORM)))
        if stored is None:
            return next_fun(*args, **kwargs)  # Flax raises the error that names the missing variable.
        mark("stored", path, stored)
        if cls in LAYERS:
            layers[path] = Seen(path, module, stored.shape, _objection_to_layer(module, args, kwargs))
            return mark("layer", path, next_fun(*args, **kwargs))
        given = {**dict(zip(("x", "use_running_average"), args, strict=False)), **kwargs}
        norms[path] = Seen(path, module, stored.shape, _objection_to_norm(module, given))
        return next_fun(**{**given, "x": mark("norm", path, given["x"])})

    return intercept


def _objection_to_layer(module: Any, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """Returns the reason why a layer cannot be folded, by its call; "" where it can."""
    is_einsum = plain_class(module) is nn.Einsum
    return objection_to_equation(module.einsum_str or kwargs.get("einsum_str") or args[1]) if is_einsum else ""


def _objection_to_norm(module: Any, given: Mapping[str, Any]) -> str:
    """Returns the reason why a norm cannot be folded, by its call; "" where it can."""
    ndim = given["x"].ndim
    running = module.use_running_average if module.use_running_average is not None else given.get("use_running_average")
    updates = given.get("update_stats")
    return objection_to_norm(
        feature_axes(module.axis, ndim, caller="fold"),
        module.axis,
        ndim,
        running=bool(running),
        updates=updates if updates is not None else getattr(module, "update_stats", None),
    )
