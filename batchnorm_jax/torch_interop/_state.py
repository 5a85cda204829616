"""Converts the state dictionary of a PyTorch model to variables of a Flax model, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from batchnorm_jax.torch_interop._hints import (
    as_is,
    check_alone,
    check_derived,
    check_extra,
    check_like,
    check_match,
    check_places,
    check_state,
    hint_of_torch,
    unclear,
)
from batchnorm_jax.torch_interop._layers import (
    COUNT,
    as_jax,
    as_numpy,
    as_torch,
    kind_of_flax,
    kind_of_torch,
    layer_to_flax,
    layer_to_torch,
    listed,
)
from batchnorm_jax.torch_interop._names import (
    Api,
    Layer,
    Names,
    Path,
    flat,
    key,
    modules_of,
    nested,
    parse_names,
    place,
    text,
)
from batchnorm_jax.typing import Variables


def from_torch(
    state_dict: Mapping[str, Any], names: Names | None = None, *, api: Api = "linen", like: Variables | None = None
) -> tuple[dict[Any, Any], dict[str, np.ndarray]]:
    """Converts a PyTorch state dictionary to Flax variables.

    Every number stays as it is. That includes the running variance, which PyTorch averages over batch variances that
    are divided by n - 1: with the options of `options_from_torch` a norm continues to do so.

    Args:
      state_dict: PyTorch's name of each array -> a PyTorch tensor on any device, or a NumPy array.
      names: PyTorch's name of each module with arrays of its own, "layer1.0.bn1" -> its path in the Flax model,
        "layer1/block0/norm", or a `Layer`, which says more. None: the dictionary is that of one layer.
        `names_from_torch` makes a first map. Parameters that belong to no layer (a class token, a LayerScale's gamma)
        are carried as they are by `Layer(path, kind="as_is")`.
      api: the interface of Flax.
      like: variables of the Flax model, to check that the result has their paths and shapes: for linen the result of
        `model.init`, or `jax.eval_shape` of it; for nnx `nnx.state(model, (nnx.Param, nnx.BatchStat))`, because
        `nnx.update` checks no shapes and leaves variables that it is not given as they were. None: no check.

    Returns:
      Two things:

      - the variables: for linen {"params": ..., "batch_stats": ...}; for nnx one nested dict, for
        `nnx.update(model, variables)`. JAX arrays of the tensors' dtypes, which share nothing with them; float64
        stays a NumPy array while JAX would round it (without `jax_enable_x64`).
      - the counts, which have no place in Flax's variables: PyTorch's name of each `num_batches_tracked` -> an int64.
        Keep them for `to_torch`.

    Raises:
      ValueError: a name is not in the dictionary, or an entry of it not in the names; the kind of a layer is not clear;
        a layer's arrays have names or shapes that its kind does not have; two layers have one path; the result is
        not like `like`. The dictionary is inside the given one, or has a weight in parts, as `weight_norm` and
        `spectral_norm` keep it; the message gives the call that restores the weight. A module has bare parameters, or a
        buffer of integers, which is no parameter; the message gives the line of names that carries it, or says to take
        it out.

    Example:
      >>> import numpy as np
      >>> ones = np.ones(2, np.float32)
      >>> norm = {"bn.weight": ones, "bn.bias": ones, "bn.running_mean": ones, "bn.running_var": 4 * ones}
      >>> state = {"conv.weight": np.zeros((2, 1, 5, 3), np.float32), **norm, "bn.num_batches_tracked": np.array(7)}
      >>> variables, counts = from_torch(state, {"conv": "Conv_0", "bn": "BatchNorm_0"})
      >>> variables["params"]["Conv_0"]["kernel"].shape, variables["batch_stats"]["BatchNorm_0"]["var"]
      ((5, 3, 1, 2), Array([4., 4.], dtype=float32))
      >>> counts
      {'bn.num_batches_tracked': array(7)}

      For nnx, and the state of one layer:

      >>> variables, _ = from_torch({"weight": np.zeros((3, 2)), "bias": np.zeros(3)}, api="nnx")
      >>> variables["kernel"].shape
      (2, 3)

    Source: the state of the layers in PyTorch's documentation of `torch.nn` and in Flax's of its layers.
    """
    caller = "from_torch"
    layers = parse_names(names, api, caller)
    check_state(state_dict, layers, caller)
    # Names of one array, not of a module.
    alone = (set(layers) & set(state_dict)) - set(modules_of(state_dict))
    groups = modules_of({name: value for name, value in state_dict.items() if name not in alone})
    for name in sorted(alone):
        path, layer = layers[name]
        check_alone(name, layer, path, caller)
        groups[name] = {name.rpartition(".")[2]: state_dict[name]}
    check_derived(groups, caller, [name for name, (_, layer) in layers.items() if layer.verbatim])
    missing = [name for name in layers if name not in groups]
    unnamed = [name for name in groups if name not in layers]
    left_over = [key(name, entry) for name in unnamed for entry in groups[name]]
    hint = hint_of_torch(missing, groups, unnamed, names is None)
    check_match(missing, unnamed, left_over, "the state dictionary", caller, hint)
    leaves, counts, owners = {}, {}, []
    for name, (path, layer) in layers.items():
        arrays = {entry: as_numpy(value) for entry, value in groups[name].items()}
        kind = layer.kind or kind_of_torch(arrays)
        if kind is None:
            raise unclear(name, path, arrays, caller)
        if kind == "batch_norm" and COUNT in arrays:
            counts[key(name, COUNT)] = arrays.pop(COUNT)
        check_extra(name, path, arrays, kind, caller)
        turned = layer_to_flax(arrays, kind, layer.flattened, f"{caller}: layer {name!r}")
        for entry, array in turned.items():
            branch, leaf = (path[:-1], path[-1]) if name in alone else (path, _leaf(entry, layer, api))
            at = place(branch, leaf, api, layer.verbatim)
            owners.append((at, name))
            leaves[at] = as_jax(array)
    check_places(owners, caller)
    if like is not None:
        check_like(leaves, like, caller)
    return nested(leaves), counts


def _leaf(entry: str, layer: Layer, api: Api) -> str | int:
    """Returns the key of an array; in nnx a number is the index of a list if the array is carried as it is."""
    return int(entry) if api == "nnx" and layer.verbatim and entry.isdecimal() else entry


def to_torch(
    variables: Mapping[Any, Any],
    names: Names | None = None,
    num_batches_tracked: Mapping[str, ArrayLike] | int | None = None,
    *,
    api: Api = "linen",
    as_tensor: Callable[[np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """Converts Flax variables to a PyTorch state dictionary: reverses `from_torch`, with the same names.

    Args:
      variables: for linen, "params" and "batch_stats"; for nnx a nested dict, or
        `nnx.state(model, (nnx.Param, nnx.BatchStat))`.
      names: as in `from_torch`.
      num_batches_tracked: the counts that `from_torch` gave, with the steps since then added; or one number for every
        batch norm. None: the dictionary has none, and `load_state_dict` leaves those of the PyTorch model as they are.
      api: the interface of Flax.
      as_tensor: `torch.as_tensor`, for a dictionary that `load_state_dict` takes. None: NumPy arrays.

    Returns:
      PyTorch's name of each array -> the array in the variable's dtype. It shares no memory with the variables.

    Raises:
      ValueError: a named layer is not in the variables, or a variable not in the names; a layer's arrays have names or
        shapes that its kind does not have; a count belongs to no batch norm.

    Example:
      >>> import jax.numpy as jnp
      >>> variables = {"params": {"head": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}}
      >>> {name: array.shape for name, array in to_torch(variables, {"fc": "head"}).items()}
      {'fc.weight': (2, 3), 'fc.bias': (2,)}

      Into a PyTorch model, after k more steps:

          counts = {name: count + k for name, count in counts.items()}
          model.load_state_dict(to_torch(variables, names, counts, as_tensor=torch.as_tensor))

    Source: the state of the layers in PyTorch's documentation of `torch.nn` and in Flax's of its layers.
    """
    caller = "to_torch"
    layers = parse_names(names, api, caller)
    by_path = {path: name for name, (path, _) in layers.items()}
    depth = 1 if api == "linen" else 0
    groups: dict[str, dict[Any, Any]] = {}
    alone: set[str] = set()
    left_over: list[Path] = []
    for path, value in flat(variables).items():
        whole, branch, leaf = path[depth:], path[depth:-1], path[-1]
        name = by_path.get(whole)
        if name is not None and whole:
            # The path leads to one array, not to a module.
            if not layers[name][1].verbatim:
                raise ValueError(
                    f"{caller}: the path of {name!r}, {text(whole)!r}, is that of an array; give its module's, "
                    f"{text(branch)!r}, or carry the array as it is, with {as_is(name, whole)}"
                )
            alone.add(name)
        else:
            name = by_path.get(branch)
        if name is not None and path == place(branch, leaf, api, layers[name][1].verbatim):
            groups.setdefault(name, {})[leaf] = value
        else:
            left_over.append(path)
    missing = [text(path) for name, (path, _) in layers.items() if name not in groups]
    candidates = [text(path[depth:-1]) for path in left_over]
    check_match(missing, candidates, [text(path) for path in left_over], "the variables", caller)
    state, counted = {}, []
    for name, (path, layer) in layers.items():
        arrays = {leaf: as_numpy(value) for leaf, value in groups[name].items()}
        kind = layer.kind or kind_of_flax(arrays)
        if kind is None:
            raise unclear(name, path, arrays, caller)
        check_extra(name, path, arrays, kind, caller)
        turned = layer_to_torch(arrays, kind, layer.flattened, f"{caller}: layer {name!r}")
        for entry, array in turned.items():
            state[name if name in alone else key(name, str(entry))] = as_torch(array, as_tensor)
        if kind == "batch_norm":
            counted.append(key(name, COUNT))
    counts = {} if num_batches_tracked is None else num_batches_tracked
    if not isinstance(counts, Mapping):
        counts = dict.fromkeys(counted, counts)
    if unknown := sorted(set(counts) - set(counted)):
        raise ValueError(
            f"{caller}: num_batches_tracked has [{listed(unknown)}]; the batch norms that are named have "
            f"[{listed(counted)}]"
        )
    return state | {name: as_torch(np.asarray(count, np.int64), as_tensor) for name, count in counts.items()}
