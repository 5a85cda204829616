"""Raises errors for PyTorch states, names and variables that do not fit, each with the way to mend it."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from batchnorm_jax.torch_interop._layers import KINDS, Arrays, LayerKind, listed
from batchnorm_jax.torch_interop._names import Layer, Path, flat, key, text

Groups = Mapping[str, Mapping[str, Any]]


class _Derived(NamedTuple):
    """A PyTorch utility that computes a parameter from other arrays, which replace it in the state.

    Attributes:
      what: the name of the utility.
      entries: the endings of the arrays' names.
      undo: the call that restores the parameter, given a module and the parameter's name.
    """

    what: str
    entries: tuple[str, ...]
    undo: Callable[[str, str], str]


_DERIVED = (
    _Derived("weight_norm", ("_g", "_v"), lambda m, t: f"torch.nn.utils.remove_weight_norm({m}, {t!r})"),
    _Derived("spectral_norm", ("_orig", "_u"), lambda m, t: f"torch.nn.utils.remove_spectral_norm({m}, {t!r})"),
    _Derived("prune", ("_orig", "_mask"), lambda m, t: f"torch.nn.utils.prune.remove({m}, {t!r})"),
)
_PARAMETRIZED = "parametrizations"


def check_state(state: Any, layers: Iterable[str], caller: str) -> None:
    """Raises a ValueError for a state that is not a state dictionary, such as a model, or a file that contains one.

    Args:
      state: the state, as given.
      layers: PyTorch's names of the layers that it should hold.
      caller: begins the message.
    """
    if not isinstance(state, Mapping):
        hint = "its state_dict()" if hasattr(state, "state_dict") else "PyTorch's name of each array -> the array"
        raise ValueError(f"{caller}: {type(state).__name__} is no state dictionary; give {hint}")
    if not state:
        raise ValueError(f"{caller}: the state dictionary is empty; give that of a model, model.state_dict()")
    strange = {name: value for name, value in state.items() if not isinstance(name, str) or not _is_array(value)}
    if not strange:
        return
    layers = list(layers)

    def fit(found: tuple[str, Mapping[Any, Any]]) -> tuple[int, int, int]:
        # An optimizer's state holds arrays per parameter too, but not by the names of modules.
        modules = [str(name).rpartition(".")[0] for name in found[1]]
        return sum(name in modules for name in layers), sum(map(bool, modules)), len(modules)

    if inner := sorted(_states(state), key=fit, reverse=True):
        best = [f"file{where}" for where, found in inner if fit((where, found)) == fit(inner[0])]
        raise ValueError(
            f"{caller}: the state dictionary is inside the one that was given, whose keys are "
            f"{listed(state)}; with `file` for that one, give {' or '.join(best)}"
        )
    kinds = listed(strange.items(), lambda item: f"{item[0]!r} ({type(item[1]).__name__})")
    raise ValueError(f"{caller}: the state dictionary has what is no array: {kinds}; take it out")


def _is_array(value: Any) -> bool:
    """Returns whether an entry of a state dictionary can be an array."""
    return hasattr(value, "shape") or isinstance(value, int | float | complex | list | tuple)


def _states(tree: Mapping[Any, Any], where: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yields the state dictionaries within another dictionary, each with the keys that lead to it."""
    for name, value in tree.items():
        inside = f"{where}[{name!r}]"
        if not isinstance(value, Mapping):
            state = value.state_dict() if callable(getattr(value, "state_dict", None)) else None
            if isinstance(state, Mapping) and any(hasattr(array, "shape") for array in state.values()):
                yield f"{inside}.state_dict()", state
        elif any(hasattr(array, "shape") for array in value.values()):
            yield inside, value
        else:
            yield from _states(value, inside)


def check_derived(groups: Groups, caller: str, carried: Iterable[str] = ()) -> None:
    """Raises a ValueError for parameters that PyTorch computes from other arrays of the state.

    Args:
      groups: the arrays of each PyTorch module, by their names in the module.
      caller: begins the message.
      carried: the modules whose arrays are carried as they are.
    """
    found: dict[str, list[tuple[str, str, str]]] = {}
    for name in sorted(set(groups) - set(carried)):
        entries = groups[name]
        before, marker, tensor = name.rpartition(f"{_PARAMETRIZED}.")
        if marker and "." not in tensor and any(entry.startswith("original") for entry in entries):
            where = before.removesuffix(".")
            undo = f"torch.nn.utils.parametrize.remove_parametrizations({_module(where)}, {tensor!r})"
            found.setdefault(_PARAMETRIZED, []).append((where, tensor, undo))
        for derived in _DERIVED:
            first = derived.entries[0]
            for tensor in (entry.removesuffix(first) for entry in entries if entry.endswith(first)):
                if tensor not in entries and all(tensor + ending in entries for ending in derived.entries):
                    found.setdefault(derived.what, []).append((name, tensor, derived.undo(_module(name), tensor)))
    for what, layers in found.items():
        _, tensor, undo = layers[0]
        raise ValueError(
            f"{caller}: the state has {tensor!r} of {listed(name for name, _, _ in layers)} in parts, from which "
            f"torch.nn.utils.{what.replace(_PARAMETRIZED, 'parametrize')} computes it; before state_dict() call {undo}"
            f"{', and so for each of the others' * (len(layers) > 1)}"
        )


def _module(name: str) -> str:
    """Returns the expression that gives a module of the model."""
    return f"model.get_submodule({name!r})" if name else "model"


def check_match(
    missing: list[str], candidates: list[str], left_over: list[str], source: str, caller: str, hint: str = ""
) -> None:
    """Raises a ValueError for names that lead nowhere, with the closest candidates, and for arrays without a name.

    Args:
      missing: the names that are not in the source.
      candidates: the names that may have been meant.
      left_over: the arrays of the source that no name covers.
      source: the source, for the message.
      caller: begins the message.
      hint: ends the message.
    """
    wrong = []
    if missing:
        closest = listed(missing, lambda name: _with_closest(name, candidates))
        wrong.append(f"named and not in {source}: {closest}")
    if left_over:
        wrong.append(f"in {source} and not named: {listed(left_over)}")
    if wrong:
        raise ValueError(
            f"{caller}: {'; '.join(wrong)}. Every name needs a layer and every layer a name: mend the names, or take "
            f"what is not wanted out of {source}{hint}"
        )


def hint_of_torch(missing: list[str], groups: Groups, unnamed: list[str], everything: bool) -> str:
    """Guesses why names do not match a state dictionary, and returns the way to mend them.

    Args:
      missing: the names that are not in the dictionary.
      groups: the modules of the dictionary.
      unnamed: the modules that are not among the names.
      everything: no names were given, so the state was taken for that of one layer.
    """
    if everything:
        return ". Without names it is that of one layer; names_from_torch(state_dict) makes names to begin with"
    prefixes = {group.removesuffix(name) for name in missing[:1] for group in groups if group.endswith(f".{name}")}
    for prefix in sorted(prefixes, key=len):
        of_all = all(group.startswith(prefix) for group in groups)
        if of_all and all(prefix + name in groups for name in missing):
            return (
                f". Each of its names begins with {prefix!r}, as a wrapper of the model makes them: give "
                f"{{name.removeprefix({prefix!r}): array for name, array in state_dict.items()}}"
            )
    for name in unnamed:
        if not any(set(rule.required) <= set(groups[name]) for rule in KINDS.values() if not rule.verbatim):
            entry = next(iter(groups[name]))
            if any(word in str(getattr(groups[name][entry], "dtype", "")) for word in ("int", "bool")):
                return (
                    f". {key(name, entry)!r} is a buffer that is no parameter; leave it out: {{name: array for name, "
                    f"array in state_dict.items() if not name.endswith({entry!r})}}"
                )
            entry = key(name, entry)
            return f". An array that is no layer's is carried by a name of its own, {as_is(entry, _path(entry))}"
    return ""


def _path(name: str) -> Path:
    """Returns a PyTorch name as a path of names."""
    return tuple(name.split("."))


def as_is(name: str, path: Path) -> str:
    """Returns the line of the names that carries a module's arrays, or one array, as they are."""
    return f"{name!r}: {Layer(text(path) if not any('.' in str(part) for part in path) else path, kind='as_is')!r}"


def unclear(name: str, path: Path, arrays: Arrays, caller: str) -> ValueError:
    """Returns the error for arrays that may belong to several kinds of layer, or to none."""
    ranks = {arrays[entry].ndim for entry in ("weight", "kernel", "scale") if entry in arrays}
    kinds = [kind for kind, rule in KINDS.items() if ranks & set(rule.ranks) and kind != "batch_norm"]
    shapes = {entry: array.shape for entry, array in arrays.items()}
    if not kinds:
        shown = listed(shapes.items(), lambda item: f"{item[0]!r} {item[1]}")
        return ValueError(
            f"{caller}: {name!r} has the arrays {shown}, which are those of no layer that is known, but bare "
            f"parameters; carry them as they are with {as_is(name, path)}"
        )
    hint = " A batch norm has a running mean and variance, which are not there." if ranks == {1} else ""
    return ValueError(
        f"{caller}: layer {name!r} has arrays of the shapes {shapes}, from which its kind is not clear; say it in the "
        f"names, {name!r}: Layer({text(path)!r}, kind=...), one of {', '.join(map(repr, kinds))}.{hint}"
    )


def check_extra(name: str, path: Path, arrays: Iterable[str], kind: LayerKind, caller: str) -> None:
    """Raises a ValueError for arrays that the kind of layer does not have, with the line that carries one beside it."""
    rule = KINDS[kind]
    ours = {entry: leaf if caller == "to_torch" else entry for entry, leaf in rule.entries.items()}
    # Flax's norms have statistics, whether they are read or not.
    known = {*ours.values(), *(("mean", "var") if caller == "to_torch" else ())}
    if rule.verbatim or not (extra := [entry for entry in arrays if entry not in known]):
        return
    needed = sorted(ours[entry] for entry in rule.required)
    others = sorted(set(ours.values()) - set(needed))
    raise ValueError(
        f"{caller}: layer {name!r} has the arrays [{listed(sorted(map(str, arrays)))}]; a layer of kind {kind!r} has "
        f"{needed}, may have {others}, and has no others. Carry {listed(extra)} by a name of its own, "
        f"{as_is(key(name, str(extra[0])), (*path, extra[0]))}, name the layer's kind, or take out what is no layer's"
    )


def check_alone(name: str, layer: Layer, path: Path, caller: str) -> None:
    """Raises a ValueError for the name of one array where a module is meant, and for a path without a name."""
    module, _, entry = name.rpartition(".")
    if not layer.verbatim:
        raise ValueError(
            f"{caller}: {name!r} is an array, and names are those of modules: name its module, {module!r}. Or carry "
            f"the array as it is, with {as_is(name, path or (entry,))}"
        )
    if not path:
        raise ValueError(f"{caller}: the array {name!r} needs a path with its own name, {as_is(name, (entry,))}")


def check_places(owners: Iterable[tuple[Path, str]], caller: str) -> None:
    """Raises a ValueError for two arrays at one place of the variables, and for an array at the place of a module."""
    taken: dict[Path, str] = {}
    for path, name in owners:
        if path in taken:
            raise ValueError(
                f"{caller}: the names lead arrays of {taken[path]!r} and {name!r} to one place, {text(path)!r}; give "
                "each its own"
            )
        taken[path] = name
    for path, name in taken.items():
        for above in (path[:i] for i in range(1, len(path))):
            if above in taken:
                raise ValueError(
                    f"{caller}: {text(above)!r} is an array of {taken[above]!r}, and {name!r} is led into it; give one "
                    "of them another path"
                )


def check_like(leaves: Mapping[Path, Any], like: Any, caller: str) -> None:
    """Raises a ValueError for leaves whose paths and shapes are not those of `like`."""
    have, want = ({p: tuple(leaf.shape) for p, leaf in tree.items()} for tree in (leaves, flat(like)))
    wrong = [f"{text(path)} is missing" for path in want if path not in have]
    wrong += [f"{text(path)} is not in `like`" for path in have if path not in want]
    wrong += [
        f"{text(path)} has shape {shape}, not {want[path]}"
        for path, shape in have.items()
        if want.get(path, shape) != shape
    ]
    if wrong:
        shown = listed(wrong, str, "; ")
        raise ValueError(f"{caller}: the result is not like `like`: {shown}. Mend the names, or the model")


def _with_closest(name: str, candidates: list[str]) -> str:
    """Returns a name with the closest of the candidates, for a message."""
    if name == "" and candidates:
        return "'' (the model itself, which has no arrays of its own here)"
    # PyTorch's names have no slashes, and no dots at the ends.
    plain = name.replace("/", ".").strip(".")
    # A wrapped model's names all begin with the wrapper's: module.conv1.
    within = [c for c in candidates if c == plain or c.endswith((f".{name}", f"/{name}"))]
    closest = within or difflib.get_close_matches(name, candidates, 1, 0.5)
    return f"{name!r} (closest: {closest[0]!r})" if closest else repr(name)
