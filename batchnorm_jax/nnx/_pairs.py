"""Finds the layers of an nnx model that can be folded with its norms, and their places in the model."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from batchnorm_jax._pairs import Trace, check_paths, every_pair, objection, objection_to_equation, say_what_stays
from batchnorm_jax.nnx._module import BatchNorm
from batchnorm_jax.nnx._renorm import BatchRenorm
from batchnorm_jax.nnx._synchronize import lookalikes, name_lookalikes, norms

LAYERS = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral, nnx.Einsum)
NORMS = (nnx.BatchNorm, BatchNorm, BatchRenorm)


class Place(NamedTuple):
    """One place of a module or a variable in the model; what is shared has one place per path to it.

    Attributes:
      path: the names from the model inward, with slashes between.
      parent: the module, list, tuple or dictionary that holds it.
      key: the name or index in the parent.
      value: the module or variable.
    """

    path: str
    parent: Any
    key: Any
    value: Any


class Pair(NamedTuple):
    """A layer, and the norm that reads its output."""

    layer: Place
    norm: Place


class Model:
    """The places of the modules and variables of a model.

    Attributes:
      places: by path; a shared module has one place per path to it.
      first: the first path of each module, by its id.
      layers: the paths of the layers of a class that can be folded, a shared layer once.
      norms: the paths of the norms of a class that can be folded, a shared norm once.
    """

    def __init__(self, model: nnx.Module):
        self.places = {place.path: place for place in _places(model)}
        self.first: dict[int, str] = {}
        self._uses: dict[int, set[tuple[int, Any]]] = defaultdict(set)
        for path, place in self.places.items():
            self.first.setdefault(id(place.value), path)
            self._uses[id(place.value)].add((id(place.parent), place.key))
        self.layers, self.norms = (
            [path for path in self.first.values() if type(self.places[path].value) in classes]
            for classes in (LAYERS, NORMS)
        )

    def pair(self, layer: str, norm: str) -> Pair:
        """Returns the modules of two paths."""
        return Pair(self.places[layer], self.places[norm])

    def check(self, pairs: Any) -> list[tuple[str, str]]:
        """Returns the given pairs with slashes, if each path exists and is given once."""

        def with_slashes(path: Any) -> Any:
            # Paths may be written with dots, as attributes are.
            return path.replace(".", "/") if isinstance(path, str) and path not in self.places else path

        if isinstance(pairs, Iterable) and not isinstance(pairs, str) and not hasattr(pairs, "shape"):
            pairs = [tuple(map(with_slashes, p)) if isinstance(p, tuple | list) else p for p in pairs]
        layers, norms = (
            [path for path, place in self.places.items() if type(place.value) in classes] for classes in (LAYERS, NORMS)
        )
        return check_paths(pairs, layers, norms)

    def objection(self, layer: str, norm: str) -> str:
        """Returns the reason why the modules of the pair cannot be folded, whatever calls them; "" where they can."""
        pair = self.pair(layer, norm)
        for place in pair:
            owned = (place.value.kernel, place.value.bias) if place is pair.layer else ()
            if any(len(self._uses[id(v)]) > 1 for v in (place.value, *owned)):
                return (
                    f"{place.path!r} is shared: it, or a variable of it, is in several places. Folded for one of them "
                    "it would be wrong for the other"
                )
        if isinstance(pair.norm.parent, tuple):
            return f"{norm!r} is in a tuple, which cannot be changed; keep it in an nnx.List"
        reason = _misfit(pair.layer.value, pair.norm.value)
        return f"{layer!r} and {norm!r}{reason}" if reason else ""


def find_pairs(
    model: nnx.Module, pairs: Iterable[tuple[str, str]] | None, trace: Callable[[], Trace] | None
) -> list[Pair]:
    """Returns the layers and norms of these paths, or without paths every pair that can be folded.

    Args:
      model: the copy that is folded.
      pairs: as in `fold`.
      trace: runs the model on an example and returns the record; None: there is no example.

    Raises:
      ValueError: there are none, a path is unknown, or they cannot be folded.
      UnchangedNormWarning: without pairs, a norm stays.
    """
    known = Model(model)
    chosen = None if pairs is None else known.check(pairs)
    seen = None if trace is None else trace()
    if chosen is not None:
        for layer, norm in chosen:
            if reason := known.objection(layer, norm) or _objection_seen(seen, layer, norm):
                raise ValueError(f"fold: {reason}")
        return [known.pair(*pair) for pair in chosen]
    candidates, reasons = _chained(known) if seen is None else every_pair(seen)
    if seen is not None:
        reasons += [_not_called("norm", path) for path in known.norms if path not in seen.norms]
    found = []
    for layer, norm in candidates:
        if reason := known.objection(layer, norm):
            reasons.append(reason if repr(norm) in reason else f"norm {norm!r}: {reason}")
        else:
            found.append(known.pair(layer, norm))
    for path, norm in norms(model):
        if type(norm) not in NORMS:
            reasons.append(f"norm {path!r} is of the class {type(norm).__name__}, which may do more than its base")
    left = lookalikes(model)
    number = len(reasons) + len(left)
    if left:
        reasons.insert(0, name_lookalikes(left))
    example = "Give an example of what the model is called with, as in fold(model, None, x), or pairs"
    say_what_stays(found, number, reasons, **({"advice": example} if seen is None else {}))
    return found


def _objection_seen(seen: Trace | None, layer: str, norm: str) -> str:
    """Returns the reason why the pair cannot be folded, by the record of an example; "" where it can."""
    if seen is None:
        return ""
    for kind, path, called in (("layer", layer, seen.layers), ("norm", norm, seen.norms)):
        if path not in called:
            return _not_called(kind, path)
    return objection(seen, layer, norm)


def _not_called(kind: str, path: str) -> str:
    """Returns the reason for a module that the example does not call."""
    return f"{kind} {path!r} is not called with this example"


def put(place: Place, value: Any) -> None:
    """Puts another module in a place."""
    if isinstance(place.parent, tuple):
        raise ValueError(f"fold: {place.path!r} is in a tuple, which cannot be changed; keep it in an nnx.List")
    # In older versions of Flax, such as 0.12.2, the places of an `nnx.List` are numbers; later they are attributes.
    if isinstance(place.parent, dict) or isinstance(place.key, int):
        place.parent[place.key] = value
    else:
        setattr(place.parent, place.key, value)


def features_last(layer: Any, kernel: jax.Array) -> jax.Array:
    """Moves a kernel's output features last, from the layer's own order of axes, or back into that order."""
    return jnp.swapaxes(kernel, -1, -2) if getattr(layer, "transpose_kernel", False) else kernel


def _places(node: Any, path: tuple[str, ...] = (), above: tuple[int, ...] = ()) -> Iterator[Place]:
    """Yields every place below a node; `above` holds the ids of the nodes around it, so that a cycle ends."""
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


def _chained(known: Model) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the layers and norms that stand next to each other in a list, and a reason for each other norm."""
    found = {}
    for place in known.places.values():
        if isinstance(place.value, nnx.List):
            chain = list(_flattened(place.value))
            for layer, norm in itertools.pairwise(chain):
                if type(layer) in LAYERS and type(norm) in NORMS:
                    found[known.first[id(layer)], known.first[id(norm)]] = None
    reasons, behind = [], {norm for _, norm in found}
    for path in known.norms:
        if path not in behind:
            reasons.append(f"norm {path!r} does not stand directly behind a layer in an nnx.Sequential or nnx.List")
        elif len(layers := [layer for layer, norm in found if norm == path]) > 1:
            reasons.append(f"norm {path!r} is shared: it stands behind {' and '.join(map(repr, layers))}")
    taken = [path for pair in found for path in pair]
    return [pair for pair in found if all(taken.count(path) == 1 for path in pair)], reasons


def _flattened(chain: Iterable[Any]) -> Iterator[Any]:
    """Yields the modules of a chain in their order, those of nested `nnx.Sequential`s included."""
    for child in chain:
        # A derived class may do something before, after or around its layers.
        if type(child) is nnx.Sequential:
            yield from _flattened(child.layers)
        else:
            yield child


def _misfit(layer: Any, norm: Any) -> str:
    """Returns the reason why the two do not fit, or cannot be folded, as the end of a sentence; "" where they can."""
    if norm.mean[...].ndim != 1:
        return f" are stacked: the mean has shape {norm.mean[...].shape}; fold one at a time, as nnx.vmap(fold)(model)"
    features = features_last(layer, layer.kernel[...]).shape[-1]
    if features != norm.num_features:
        return f" do not belong together: {features} features and {norm.num_features}"
    rank = len(layer.kernel_size) + 2 if hasattr(layer, "kernel_size") else None
    if norm.axis != -1 and (norm.axis < 0 or rank not in (None, norm.axis + 1)):
        return f": the norm's feature axis is {norm.axis}, and the layer's is the last"
    if getattr(norm, "update_stats", None):
        return ": the norm updates its statistics in evaluation too (update_stats=True)"
    reason = objection_to_equation(layer.einsum_str) if isinstance(layer, nnx.Einsum) else ""
    return f": {reason}" if reason else ""
