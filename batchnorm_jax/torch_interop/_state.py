"""The state dictionary of a PyTorch model as variables of a Flax model, and the reverse."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from batchnorm_jax.torch_interop._layers import (
    COUNT,
    as_jax,
    as_numpy,
    as_torch,
    kind_of_flax,
    kind_of_torch,
    layer_to_flax,
    layer_to_torch,
)
from batchnorm_jax.torch_interop._names import (
    Names,
    check_like,
    check_match,
    flat,
    key,
    nested,
    parse_names,
    place,
    text,
    unclear,
)


def from_torch(
    state_dict: Mapping[str, Any], names: Names | None = None, *, api: str = "linen", like: Any = None
) -> tuple[dict[Any, Any], dict[str, np.ndarray]]:
    """Makes Flax variables of a PyTorch state dictionary.

    Every number stays as it is. That includes the running variance, which PyTorch averages over batch variances that
    are divided by n - 1: with the options of `options_from_torch` a norm goes on doing so.

    Args:
      state_dict: PyTorch's name of each array -> a PyTorch tensor on any device, or a NumPy array.
      names: PyTorch's name of each module with arrays of its own, "layer1.0.bn1" -> its path in the Flax model,
        "layer1/block0/norm", or a `Layer`, which says more. None: the dictionary is that of one layer.
      api: "linen", or "nnx".
      like: variables of the Flax model, to check that the result has their paths and shapes: for linen what
        `model.init` gives, or `jax.eval_shape` of it; for nnx `nnx.state(model, (nnx.Param, nnx.BatchStat))`, since
        `nnx.update` checks no shapes and leaves what it is not given as it was. None: no check.

    Returns:
      Two things:

      - the variables: for linen {"params": ..., "batch_stats": ...}; for nnx one nested dict, for
        `nnx.update(model, variables)`. JAX arrays of the tensors' dtypes, which share nothing with them; float64
        stays a NumPy array while JAX would round it (without `jax_enable_x64`).
      - the counts, which have no place in Flax's variables: PyTorch's name of each `num_batches_tracked` -> an int64.
        Keep them for `to_torch`.

    Raises:
      ValueError: a name is not in the dictionary, or an entry of it not in the names; it is not clear of what kind a
        layer is; a layer's arrays have names or shapes that its kind has not; two layers have one path; the result is
        not like `like`.

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

      For nnx, and of one layer:

      >>> variables, _ = from_torch({"weight": np.zeros((3, 2)), "bias": np.zeros(3)}, api="nnx")
      >>> variables["kernel"].shape
      (2, 3)

    Source: the state of the layers in PyTorch's documentation of `torch.nn` and in Flax's of its layers.
    """
    caller = "from_torch"
    layers = parse_names(names, api, caller)
    groups: dict[str, dict[str, Any]] = {}
    for full, value in state_dict.items():
        name, _, entry = full.rpartition(".")
        groups.setdefault(name, {})[entry] = value
    unnamed = [name for name in groups if name not in layers]
    left_over = [key(name, entry) for name in unnamed for entry in groups[name]]
    check_match([name for name in layers if name not in groups], unnamed, left_over, "the state dictionary", caller)
    leaves, counts = {}, {}
    for name, (path, layer) in layers.items():
        arrays = {entry: as_numpy(value) for entry, value in groups[name].items()}
        kind = layer.kind or kind_of_torch(arrays)
        if kind is None:
            raise unclear(name, path, arrays, caller)
        if kind == "batch_norm" and COUNT in arrays:
            counts[key(name, COUNT)] = arrays.pop(COUNT)
        turned = layer_to_flax(arrays, kind, layer.flattened, f"{caller}: layer {name!r}")
        leaves |= {place(path, leaf, api): as_jax(array) for leaf, array in turned.items()}
    if like is not None:
        check_like(leaves, like, caller)
    return nested(leaves), counts


def to_torch(
    variables: Mapping[Any, Any],
    names: Names | None = None,
    num_batches_tracked: Mapping[str, Any] | int | None = None,
    *,
    api: str = "linen",
    as_tensor: Callable[[np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """Makes a PyTorch state dictionary of Flax variables: the reverse of `from_torch`, with the same names.

    Args:
      variables: for linen, "params" and "batch_stats"; for nnx a nested dict, or
        `nnx.state(model, (nnx.Param, nnx.BatchStat))`.
      names: as for `from_torch`.
      num_batches_tracked: the counts that `from_torch` gave, with the steps since then added; or one number for every
        batch norm. None: the dictionary has none, and `load_state_dict` leaves those of the PyTorch model as they are.
      api: "linen", or "nnx".
      as_tensor: `torch.as_tensor`, for a dictionary that `load_state_dict` takes. None: NumPy arrays.

    Returns:
      PyTorch's name of each array -> the array in the variable's dtype. It shares nothing with the variables.

    Raises:
      ValueError: a named layer is not in the variables, or a variable not in the names; a layer's arrays have names or
        shapes that its kind has not; a count is that of no batch norm.

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
    left_over = []
    for path, value in flat(variables).items():
        branch, leaf = path[depth:-1], path[-1]
        if branch in by_path and path == place(branch, leaf, api):
            groups.setdefault(by_path[branch], {})[leaf] = value
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
        turned = layer_to_torch(arrays, kind, layer.flattened, f"{caller}: layer {name!r}")
        state |= {key(name, entry): as_torch(array, as_tensor) for entry, array in turned.items()}
        if kind == "batch_norm":
            counted.append(key(name, COUNT))
    counts = {} if num_batches_tracked is None else num_batches_tracked
    if not isinstance(counts, Mapping):
        counts = dict.fromkeys(counted, counts)
    if unknown := sorted(set(counts) - set(counted)):
        raise ValueError(f"{caller}: num_batches_tracked has {unknown}; the batch norms that are named have {counted}")
    return state | {name: as_torch(np.asarray(count, np.int64), as_tensor) for name, count in counts.items()}
