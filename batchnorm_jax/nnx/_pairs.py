"""Which layers of an nnx model can be folded with which norms, and where they stand in it."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from batchnorm_jax._inference import unknown_path
from batchnorm_jax.nnx._module import BatchNorm, BatchRenorm

LAYERS = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral, nnx.Einsum)
NORMS = (nnx.BatchNorm, BatchNorm, BatchRenorm)


class Place(NamedTuple):
    """Where a module or a variable stands in the model: once for each path to it."""

    path: str
    parent: Any
    key: Any
    value: Any


class Pair(NamedTuple):
    """A layer, and the norm behind it."""

    layer: Place
    norm: Place


def find_pairs(model: nnx.Module, pairs: Iterable[tuple[str, str]] | None) -> list[Pair]:
    """The layers and norms of these paths, or without paths those that stand one behind the other.

    Raises:
      ValueError: there are none, a path is unknown, or they cannot be folded.
    """
    places = {place.path: place for place in _places(model)}
    chosen = _chained(places.values()) if pairs is None else list(pairs)
    if not chosen:
        raise ValueError(
            "fold: there is nothing to fold: no nnx.Sequential or nnx.List has a BatchNorm directly behind a "
            f"{' or '.join(layer.__name__ for layer in LAYERS)}; give pairs, such as [('block/conv', 'block/norm')]"
        )
    found = [Pair(_find(places, layer, "layer", LAYERS), _find(places, norm, "norm", NORMS)) for layer, norm in chosen]
    uses = defaultdict(set)
    for place in places.values():
        uses[id(place.value)].add((id(place.parent), place.key))
    taken = [id(place.value) for pair in found for place in pair]
    for pair in found:
        for place in pair:
            owned = (place.value.kernel, place.value.bias) if place is pair.layer else ()
            if taken.count(id(place.value)) > 1 or any(len(uses[id(v)]) > 1 for v in (place.value, *owned)):
                raise ValueError(
                    f"fold: {place.path!r} is shared: it, or a variable of it, is in several places or pairs. Folded "
                    "for one of them it would be wrong for the other"
                )
        _check(*pair)
    return found


def put(place: Place, value: Any) -> None:
    """Puts another module in a place."""
    if isinstance(place.parent, list | dict):
        place.parent[place.key] = value
    elif isinstance(place.parent, tuple):
        raise ValueError(f"fold: {place.path!r} is in a tuple, which cannot be changed; keep it in an nnx.List")
    else:
        setattr(place.parent, place.key, value)


def features_last(layer: Any, kernel: jax.Array) -> jax.Array:
    """A kernel of the layer with its output features last, or such a one as the layer has it."""
    return jnp.swapaxes(kernel, -1, -2) if getattr(layer, "transpose_kernel", False) else kernel


def _places(node: Any, path: tuple[str, ...] = (), above: tuple[int, ...] = ()) -> Iterator[Place]:
    if isinstance(node, dict):
        items: Iterable[tuple[Any, Any]] = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    else:
        items = vars(node).items()
    for key, value in items:
        if isinstance(value, nnx.Module | nnx.Variable | list | tuple | dict) and not str(key).startswith("_pytree__"):
            here = (*path, str(key))
            yield Place("/".join(here), node, key, value)
            if not isinstance(value, nnx.Variable) and id(value) not in above:
                yield from _places(value, here, (*above, id(node)))


def _chained(places: Iterable[Place]) -> list[tuple[str, str]]:
    """The paths of every layer and norm that stand next to each other in a list, as that of a Sequential."""
    places = list(places)
    first_path: dict[int, str] = {}
    for place in places:
        first_path.setdefault(id(place.value), place.path)
    found = {}
    for place in places:
        if isinstance(place.value, nnx.List):
            chain = list(_flattened(place.value))
            for layer, norm in itertools.pairwise(chain):
                if type(layer) in LAYERS and type(norm) in NORMS:
                    found[first_path[id(layer)], first_path[id(norm)]] = None
    return list(found)


def _flattened(chain: Iterable[Any]) -> Iterator[Any]:
    for child in chain:
        # A derived class may do something before, after or around its layers.
        if type(child) is nnx.Sequential:
            yield from _flattened(child.layers)
        else:
            yield child


def _find(places: dict[str, Place], path: str, kind: str, classes: tuple[type, ...]) -> Place:
    # As attributes are written, too.
    path = path if path in places else path.replace(".", "/")
    known = [p for p, place in places.items() if type(place.value) in classes]
    if path not in known:
        raise unknown_path(kind, path, known)
    return places[path]


def _check(layer: Place, norm: Place) -> None:
    """Raises a ValueError where the two do not fit, or cannot be folded."""
    pair = f"fold: {layer.path!r} and {norm.path!r}"
    if norm.value.mean[...].ndim != 1:
        raise ValueError(
            f"{pair} are stacked: the mean has shape {norm.value.mean[...].shape}; fold one at a time, as "
            "nnx.vmap(fold)(model) does"
        )
    features = features_last(layer.value, layer.value.kernel[...]).shape[-1]
    if features != norm.value.num_features:
        raise ValueError(f"{pair} do not belong together: {features} features and {norm.value.num_features}")
    rank = len(layer.value.kernel_size) + 2 if hasattr(layer.value, "kernel_size") else None
    if norm.value.axis != -1 and (norm.value.axis < 0 or rank not in (None, norm.value.axis + 1)):
        raise ValueError(f"{pair}: the norm's feature axis is {norm.value.axis}, and the layer's is the last")
    if getattr(norm.value, "update_stats", None):
        raise ValueError(f"{pair}: the norm updates its statistics in evaluation too (update_stats=True)")
    if isinstance(layer.value, nnx.Einsum):
        operands, result = layer.value.einsum_str.split("->")
        if operands[-1] != result[-1] or not result[-1].isalpha():
            raise ValueError(f"{pair}: {layer.value.einsum_str!r} does not have the kernel's last axis last")
