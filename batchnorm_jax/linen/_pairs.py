"""Which layers of a linen model can be folded with which norms, found by tracing the model."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.experimental.xla_metadata import set_xla_metadata

from batchnorm_jax._inference import unknown_path, warn_of_norms_that_stay
from batchnorm_jax._moments import feature_axes
from batchnorm_jax.linen._adapt import looks_like_a_norm, name_lookalikes, plain_class, replacer
from batchnorm_jax.linen._flow import STORED_OF_LAYER, STORED_OF_NORM, Flow, follow, mark
from batchnorm_jax.linen._module import BatchNorm, BatchRenorm

LAYERS = (nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum)
NORMS = (nn.BatchNorm, BatchNorm, BatchRenorm)

_traces = itertools.count()


class Seen(NamedTuple):
    """A layer or a norm, as the model called it.

    Attributes:
      path: its names from the outermost module inward, with slashes between.
      module: a bound module, of which only the options are looked at.
      shape: of the layer's kernel or the norm's mean, inside whatever `nn.scan` or `nn.vmap` encloses it.
      objection: why it cannot be folded, by itself; "" where it can.
    """

    path: str
    module: Any
    shape: tuple[int, ...]
    objection: str


class Trace(NamedTuple):
    """The layers and norms that a model called, by path, and what goes from one to another.

    Attributes:
      layers: those that could be folded by what they are.
      norms: likewise.
      lookalikes: the class of each module that looks like a norm, and is of none that is known.
      flow: what goes from one to another.
    """

    layers: dict[str, Seen]
    norms: dict[str, Seen]
    lookalikes: dict[str, type]
    flow: Flow


def trace(
    model: nn.Module, variables: Mapping[str, Any], args: tuple, kwargs: dict[str, Any], rules: dict[type, Any]
) -> Trace:
    """Traces `model.apply(variables, *args, **kwargs)`; nothing is computed. `rules` is fold's `replace`."""
    layers: dict[str, Seen] = {}
    norms: dict[str, Seen] = {}
    lookalikes: dict[str, type] = {}
    leaves, structure = jax.tree.flatten((args, kwargs))
    # The rest, such as train=False, decides what the model does.
    arrays = {
        i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    }

    def run(variables, arrays):
        args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        recorder = _recorder(layers, norms, lookalikes, rules)
        with nn.intercept_methods(replacer(rules, caller="fold")), nn.intercept_methods(recorder):
            return model.apply(variables, *args, **kwargs)

    # What is traced under a name of its own is traced anew: from a jit inside the model that ran before, JAX would take
    # the program that it has, and no module would be called.
    with set_xla_metadata(batchnorm_jax_fold=next(_traces)):
        program = jax.make_jaxpr(run)(variables, arrays).jaxpr
    lookalikes = {path: kind for path, kind in lookalikes.items() if path not in norms}
    return Trace(layers, norms, lookalikes, follow(program, variables))


def pairs_of(seen: Trace) -> list[tuple[Seen, Seen]]:
    """Every layer that can be folded, with its norm; it warns of the norms that stay, and says why.

    Raises:
      ValueError: there is none; the message says why the norms there are cannot be.
    """
    found, reasons = [], []
    for path in seen.norms:
        source = next(iter(seen.flow.sources[path]), None)
        if source is None:
            reasons.append(f"what norm {path!r} is given does not come straight from a convolution or dense layer")
        elif objection := _objection(seen, source, path):
            reasons.append(objection if repr(path) in objection else f"norm {path!r}: {objection}")
        else:
            found.append((seen.layers[source], seen.norms[path]))
    if seen.lookalikes:
        reasons.insert(0, name_lookalikes(seen.lookalikes))
    if not found:
        why = "; ".join(reasons[:3]) or "the model called no BatchNorm of Flax or of batchnorm_jax"
        raise ValueError(f"fold: there is nothing to fold: {why}")
    warn_of_norms_that_stay(len(seen.norms) + len(seen.lookalikes) - len(found), reasons)
    return found


def check_pairs(seen: Trace, pairs: Iterable[tuple[str, str]]) -> list[tuple[Seen, Seen]]:
    """The layers and norms of these paths.

    Raises:
      ValueError: there is no such path, it is there twice, or the layer cannot be folded with that norm.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("fold: pairs is empty; give (layer, norm) paths, or None for every pair that there is")
    chosen = []
    for layer, norm in pairs:
        for kind, path, known in (("layer", layer, seen.layers), ("norm", norm, seen.norms)):
            if path not in known:
                raise unknown_path(kind, path, known)
            if sum(path in pair for pair in pairs) > 1:
                raise ValueError(f"fold: {kind} {path!r} is in several pairs; a layer is folded with one norm, once")
        if objection := _objection(seen, layer, norm):
            raise ValueError(f"fold: {objection}")
        chosen.append((seen.layers[layer], seen.norms[norm]))
    return chosen


def _objection(seen: Trace, layer: str, norm: str) -> str:
    """Why the pair cannot be folded; "" where it can."""
    flow = seen.flow
    for kind, path, found in (("layer", layer, seen.layers), ("norm", norm, seen.norms)):
        if found[path].objection:
            return f"{kind} {path!r}: {found[path].objection}"
        if flow.calls[path] != 1:
            return f"{kind} {path!r} is called {flow.calls[path]} times; what is shared cannot be folded"
    if flow.sources[norm] != [layer]:
        given = flow.sources[norm][0]
        return f"norm {norm!r} is not given the output of layer {layer!r} as it is, but " + (
            "something else: nothing may be in between" if given is None else f"that of layer {given!r}"
        )
    if flow.readers[layer] != [norm]:
        return f"the output of layer {layer!r} goes to other places than norm {norm!r}, which need it as it is"
    for kind, path in (("layer", layer), ("norm", norm)):
        if path not in flow.stored:
            return (
                f"{kind} {path!r} does not compute with its variables as they are stored, whole or along the axes 0 of "
                "its scans: nn.SpectralNorm, nn.WeightNorm, another map of variables or another axis comes first"
            )
    return ""


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
    if plain_class(module) is not nn.Einsum:
        return ""
    equation = module.einsum_str or kwargs.get("einsum_str") or args[1]
    operands, result = equation.replace(" ", "").split("->")
    last = operands[-1:]
    return "" if last == result[-1:] and last.isalpha() else f"{equation!r} does not have the kernel's last axis last"


def _objection_to_norm(module: Any, given: Mapping[str, Any]) -> str:
    ndim = given["x"].ndim
    if feature_axes(module.axis, ndim, caller="fold") != (ndim - 1,):
        return f"its feature axis is {module.axis}, and the features of a layer are on the last of {ndim} axes"
    running = module.use_running_average if module.use_running_average is not None else given.get("use_running_average")
    if not running:
        return "it normalises by the batch; give the arguments that evaluate, for example train=False"
    updates = given.get("update_stats")
    if updates if updates is not None else getattr(module, "update_stats", None):
        return "it updates its statistics in evaluation too (update_stats=True)"
    return ""
