"""Guesses a first map from the names of a PyTorch model to the paths of a Flax model, to be edited."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from batchnorm_jax.torch_interop._hints import check_derived, check_state
from batchnorm_jax.torch_interop._layers import COUNT, KINDS, Arrays, LayerKind, kind_of_torch, layer_to_flax
from batchnorm_jax.torch_interop._names import (
    Api,
    Layer,
    Path,
    check_api,
    key,
    modules_of,
    parse_path,
    place,
    text,
)
from batchnorm_jax.typing import Variables

Shapes = dict[Path, tuple[int, ...]]
# The kinds by the number of axes of the weight, the likeliest first, where the arrays do not decide.
_GUESSES: dict[int, tuple[LayerKind, ...]] = {
    1: ("norm", "untracked_batch_norm"),
    2: ("linear", "embedding"),
    **dict.fromkeys((3, 4, 5), ("conv", "conv_transpose")),
}
_OF_LAYERS = {entry for rule in KINDS.values() for entry in rule.entries}


def names_from_torch(
    state_dict: Mapping[str, Any], like: Variables | None = None, *, api: Api = "linen"
) -> dict[str, str | Layer]:
    """Guesses the names that `from_torch` needs, as a first map for you to edit.

    Without `like` the paths are PyTorch's names as a Flax model would write them, "layer1.0.bn1" as "layer1_0/bn1" for
    linen and "layer1/0/bn1" for nnx. With `like` they are paths of the Flax model: a layer goes to one that has arrays
    of the same kinds and shapes, by the same name if there is one, and otherwise in the order in which both models have
    such layers. A layer without a counterpart keeps the path that it has without `like`.

    Shapes and order prove nothing: read the map, and compare the outputs of the two models. Add the facts that the
    arrays do not show at all: the `flattened` of a `Layer` behind a flattened map.

    Args:
      state_dict: as in `from_torch`.
      like: variables of the Flax model, as in `from_torch`.
      api: the interface of Flax.

    Returns:
      PyTorch's name of each module -> its path, or a `Layer` where the kind must be stated, which is a guess without
      `like`. Parameters that belong to no layer have one line each, of the kind "as_is". Arrays of integers, which
      `from_torch` does not take, are left out.

    Raises:
      ValueError: as `from_torch`, for a dictionary that is inside the given one, or that has a weight in parts.

    Example:
      >>> import numpy as np
      >>> from pprint import pprint
      >>> state = {"block.0.fc.weight": np.zeros((3, 2)), "block.0.gamma": np.ones(3), "out.weight": np.ones((2, 3))}
      >>> pprint(names_from_torch(state))
      {'block.0.fc': Layer('block_0/fc', kind='linear'),
       'block.0.gamma': Layer('block_0/gamma', kind='as_is'),
       'out': Layer('out', kind='linear')}
      >>> like = {"params": {"Dense_0": {"kernel": np.zeros((2, 3))}, "Dense_1": {"kernel": np.ones((3, 2))}}}
      >>> names_from_torch({name: state[name] for name in ("block.0.fc.weight", "out.weight")}, like)
      {'block.0.fc': Layer('Dense_0', kind='linear'), 'out': Layer('Dense_1', kind='linear')}
    """
    caller = "names_from_torch"
    check_api(api, caller)
    check_state(state_dict, (), caller)
    groups = modules_of(state_dict)
    check_derived(groups, caller)
    stand_ins = {
        name: {entry: _stand_in(value) for entry, value in entries.items() if _is_parameter(entry, value)}
        for name, entries in groups.items()
    }
    modules = {
        name: {entry: array for entry, array in arrays.items() if entry in _OF_LAYERS}
        for name, arrays in stand_ins.items()
    }
    kinds = {name: _kinds(name, arrays, api) for name, arrays in modules.items()}
    chosen = {} if like is None else _matched(kinds, _branches(like, api), api)
    names: dict[str, str | Layer] = {}
    bare: dict[str, tuple[int, ...]] = {}
    for name, arrays in stand_ins.items():
        if kinds[name]:
            path, kind = chosen.get(name) or (_path(name, api), next(iter(kinds[name])))
            names[name] = _written(path, None if kind == kind_of_torch(modules[name]) else kind, api)
        for entry, array in arrays.items():
            if not kinds[name] or entry not in modules[name]:
                names[key(name, entry)] = _written(_path(key(name, entry), api), "as_is", api)
                bare[key(name, entry)] = array.shape
    return names | ({} if like is None else _matched_alone(bare, chosen, like, api))


def _stand_in(value: Any) -> np.ndarray:
    """Returns an array of the value's shape that takes no memory."""
    return np.broadcast_to(np.zeros((), np.float32), tuple(np.shape(value)))


def _is_parameter(entry: str, value: Any) -> bool:
    """Returns whether an array of a state dictionary can be a parameter or a statistic."""
    return entry != COUNT and not any(word in str(getattr(value, "dtype", type(value))) for word in ("int", "bool"))


def _kinds(name: str, arrays: Arrays, api: Api) -> dict[LayerKind, Shapes]:
    """Returns the kinds of layer that may have these arrays, the likeliest first, with the shapes of each in Flax."""
    certain = kind_of_torch(arrays)
    guesses = _GUESSES.get(arrays["weight"].ndim, ()) if "weight" in arrays and certain != "batch_norm" else ()
    if "emb" in name.rpartition(".")[2].lower():
        guesses = tuple(reversed(guesses))
    found: dict[LayerKind, Shapes] = {}
    for kind in (certain, *guesses):
        if kind is not None:
            try:
                leaves = layer_to_flax(dict(arrays), kind, None, name)
            except ValueError:
                continue
            found.setdefault(kind, {place((), leaf, api): array.shape for leaf, array in leaves.items()})
    return found


def _path(name: str, api: Api) -> Path:
    """Returns a PyTorch name as a path: a number is an index for nnx, and for linen a part of the name before it."""
    if api == "nnx":
        return tuple(int(part) if part.isdecimal() else part for part in name.split(".")) if name else ()
    return tuple(part for part in re.sub(r"\.(?=\d+(\.|$))", "_", name).split(".") if part)


def _written(path: Path, kind: LayerKind | None, api: Api) -> str | Layer:
    """Returns a path as it is given among names: as a string, unless the string would be read as another path."""
    plain = text(path)
    simple = "." not in plain and parse_path(plain, api) == path and path[:1] not in (("params",), ("batch_stats",))
    return plain if simple and kind is None else Layer(plain if simple else path, kind)


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """Yields the shapes of the variables, in the order of the model's definition as far as the names show it."""
    if not isinstance(tree, Mapping):
        if tree is not None:
            yield path, tuple(np.shape(tree))
        return
    keys = list(tree)
    # JAX sorts the keys of dictionaries that pass through it: Conv_10 before Conv_2.
    if keys == sorted(keys, key=str):
        keys.sort(key=lambda name: [(len(part), part) if part.isdecimal() else (0, part) for part in _parts(str(name))])
    for name in keys:
        yield from _leaves(tree[name], (*path, name))


def _parts(name: str) -> list[str]:
    """Splits a name into its numbers and the text between them."""
    return re.findall(r"\d+|\D+", name)


def _branches(like: Variables, api: Api) -> dict[Path, Shapes]:
    """Returns the shapes of the arrays of each Flax module."""
    branches: dict[Path, Shapes] = {}
    for path, shape in _leaves(like):
        top = 1 if api == "linen" else 0
        branches.setdefault(path[top:-1], {})[(*path[:top], path[-1])] = shape
    return branches


def _plain(path: Path) -> str:
    """Returns a path in small letters and digits, to compare names of the two libraries."""
    return re.sub(r"[\W_]", "", text(path)).lower()


def _closest(path: Path, candidates: list[Path]) -> Path:
    """Returns the candidate whose name is most like that of the path."""
    return max(candidates, key=lambda other: difflib.SequenceMatcher(None, _plain(path), _plain(other)).ratio())


def _matched(
    kinds: dict[str, dict[LayerKind, Shapes]], branches: dict[Path, Shapes], api: Api
) -> dict[str, tuple[Path, LayerKind]]:
    """Returns the path of each PyTorch module that has a counterpart, and its kind there."""
    chosen: dict[str, tuple[Path, LayerKind]] = {}
    free = dict(branches)
    by_name = {_plain(path): path for path in free}
    for name, options in kinds.items():
        path = by_name.get(_plain(_path(name, api)))
        same: list[LayerKind] = [
            kind for kind, shapes in options.items() if path is not None and free.get(path) == shapes
        ]
        if same and path is not None:
            chosen[name] = path, same[0]
            del free[path]
    for name, options in kinds.items():
        for kind, shapes in options.items() if name not in chosen else ():
            if candidates := [path for path, others in free.items() if others == shapes]:
                rivals = [n for n, others in kinds.items() if n not in chosen and shapes in others.values()]
                in_order = len(rivals) == len(candidates)
                path = candidates[0] if in_order else _closest(_path(name, api), candidates)
                chosen[name] = path, kind
                del free[path]
                break
    return chosen


def _matched_alone(
    bare: dict[str, tuple[int, ...]], chosen: dict[str, tuple[Path, LayerKind]], like: Variables, api: Api
) -> dict[str, str | Layer]:
    """Returns the line of each bare parameter that has a counterpart of its shape outside of the matched layers."""
    top = 1 if api == "linen" else 0
    taken = {path for path, _ in chosen.values()}
    of_layers = {leaf for rule in KINDS.values() for leaf in rule.entries.values()}
    free = {
        path[top:]: shape
        for path, shape in _leaves(like)
        if path == place(path[top:-1], path[-1], api, verbatim=True)
        and (path[top:-1] not in taken or path[-1] not in of_layers)
    }
    found: dict[str, str | Layer] = {}
    for same in (lambda a, b: _plain(a) == _plain(b), lambda a, b: _plain(a[-1:]) == _plain(b[-1:]), lambda a, b: True):
        for name, shape in bare.items():
            path = _path(name, api)
            candidates = [other for other, size in free.items() if size == shape and same(path, other)]
            if name not in found and candidates:
                found[name] = _written(candidates[0], "as_is", api)
                del free[candidates[0]]
    return found
