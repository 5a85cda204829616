"""Which layers of a linen model can be folded with which norms, found by tracing the model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from batchnorm_jax._flow import STORED_OF_LAYER, STORED_OF_NORM, mark
from batchnorm_jax._moments import feature_axes
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
from batchnorm_jax.linen._adapt import looks_like_a_norm, name_lookalikes, plain_class, replacer
from batchnorm_jax.linen._module import BatchNorm, BatchRenorm

LAYERS = (nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum)
NORMS = (nn.BatchNorm, BatchNorm, BatchRenorm)


class Traced(NamedTuple):
    """The record of one run of a linen model.

    Attributes:
      seen: its layers and norms.
      lookalikes: the class of each module that looks like a norm, and is of none that is known, by path.
    """

    seen: Trace
    lookalikes: dict[str, type]


def trace(
    model: nn.Module, variables: Mapping[str, Any], args: tuple, kwargs: dict[str, Any], rules: dict[type, Any]
) -> Traced:
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
    """Every layer that can be folded, with its norm; it warns of the norms that stay, and says why.

    Raises:
      ValueError: there is none; the message says why the norms there are cannot be.
    """
    found, reasons = every_pair(model.seen)
    number = len(reasons) + len(model.lookalikes)
    if model.lookalikes:
        reasons.insert(0, name_lookalikes(model.lookalikes))
    say_what_stays(found, number, reasons)
    return [(model.seen.layers[layer], model.seen.norms[norm]) for layer, norm in found]


def check_pairs(model: Traced, pairs: Iterable[tuple[str, str]]) -> list[tuple[Seen, Seen]]:
    """The layers and norms of these paths.

    Raises:
      ValueError: there is no such path, it is there twice, or the layer cannot be folded with that norm.
    """
    layers, norms = model.seen.layers, model.seen.norms
    pairs = check_paths(pairs, layers, norms)
    for layer, norm in pairs:
        if reason := objection(model.seen, layer, norm):
            raise ValueError(f"fold: {reason}")
    return [(layers[layer], norms[norm]) for layer, norm in pairs]


def _recorder(
    layers: dict[str, Seen], norms: dict[str, Seen], lookalikes: dict[str, type], rules: dict[type, Any]
) -> Callable[..., Any]:
    """Notes each layer and norm, and marks in the program what goes in and what comes out."""

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
            return next_fun(*args, **kwargs)  # Which says what is missing.
        mark("stored", path, stored)
        if cls in LAYERS:
            layers[path] = Seen(path, module, stored.shape, _objection_to_layer(module, args, kwargs))
            return mark("layer", path, next_fun(*args, **kwargs))
        given = {**dict(zip(("x", "use_running_average"), args, strict=False)), **kwargs}
        norms[path] = Seen(path, module, stored.shape, _objection_to_norm(module, given))
        return next_fun(**{**given, "x": mark("norm", path, given["x"])})

    return intercept


def _objection_to_layer(module: Any, args: tuple, kwargs: Mapping[str, Any]) -> str:
    is_einsum = plain_class(module) is nn.Einsum
    return objection_to_equation(module.einsum_str or kwargs.get("einsum_str") or args[1]) if is_einsum else ""


def _objection_to_norm(module: Any, given: Mapping[str, Any]) -> str:
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
