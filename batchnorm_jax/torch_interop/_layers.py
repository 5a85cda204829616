"""Converts the state of one layer between PyTorch's names and axes and Flax's; neither library is imported."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Arrays = dict[str, np.ndarray]
"""The arrays of one layer by name."""

LayerKind = Literal[
    "conv", "conv_transpose", "linear", "embedding", "batch_norm", "untracked_batch_norm", "norm", "as_is"
]
"""A kind of layer: a row of the table in `Layer`."""

# The names in a message: enough of them to show their kind.
MAX_LISTED = 6


def listed(items: Iterable[Any], write: Callable[[Any], str] = repr, between: str = ", ") -> str:
    """Returns the first few of the items, and the number of the others."""
    items = list(items)
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return between.join(map(write, items[:MAX_LISTED])) + more


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _conv_to_flax(weight: np.ndarray) -> np.ndarray:
    return np.moveaxis(weight, (1, 0), (-2, -1))


def _conv_to_torch(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, (-2, -1), (1, 0))


# PyTorch's transposed convolution is the gradient of a convolution, which flips the kernel; Flax's default is not.
def _conv_transpose_to_flax(weight: np.ndarray) -> np.ndarray:
    return np.flip(np.moveaxis(weight, (0, 1), (-2, -1)), tuple(range(weight.ndim - 2)))


def _conv_transpose_to_torch(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.flip(kernel, tuple(range(kernel.ndim - 2))), (-2, -1), (0, 1))


class Kind(NamedTuple):
    """The differences between PyTorch and Flax in the state of one kind of layer.

    Attributes:
      entries: PyTorch's name of each array, and Flax's; empty for a kind that takes any array under its own name.
      required: PyTorch's names of the arrays that every such layer has.
      ranks: the numbers of axes that the weight may have.
      to_flax: moves the weight's axes from PyTorch's order to Flax's.
      to_torch: moves them back.
      feature_axis: the axis of PyTorch's weight that may run over a flattened feature map; None: there is none.
      output_axis: the axis of PyTorch's weight that the bias runs over; None: weight and bias have one shape, or there
        is no bias.
    """

    entries: Mapping[str, str]
    required: tuple[str, ...]
    ranks: tuple[int, ...]
    to_flax: Callable[[np.ndarray], np.ndarray] = _same
    to_torch: Callable[[np.ndarray], np.ndarray] = _same
    feature_axis: int | None = None
    output_axis: int | None = None

    @property
    def verbatim(self) -> bool:
        """True if arrays of any name and shape are carried as they are."""
        return not self.entries


_AFFINE = {"weight": "scale", "bias": "bias"}
_TRACKED = {**_AFFINE, "running_mean": "mean", "running_var": "var"}
_KERNEL = {"weight": "kernel", "bias": "bias"}
KINDS: dict[LayerKind, Kind] = {
    "conv": Kind(_KERNEL, ("weight",), (3, 4, 5), _conv_to_flax, _conv_to_torch, output_axis=0),
    "conv_transpose": Kind(
        _KERNEL, ("weight",), (3, 4, 5), _conv_transpose_to_flax, _conv_transpose_to_torch, output_axis=1
    ),
    "linear": Kind(_KERNEL, ("weight",), (2,), np.transpose, np.transpose, feature_axis=1, output_axis=0),
    "embedding": Kind({"weight": "embedding"}, ("weight",), (2,)),
    "batch_norm": Kind(_TRACKED, ("running_mean", "running_var"), (1,), feature_axis=0),
    "untracked_batch_norm": Kind(_AFFINE, ("weight", "bias"), (1,), feature_axis=0),
    "norm": Kind(_AFFINE, ("weight",), (1,), feature_axis=0),
    "as_is": Kind({}, (), ()),
}
COUNT = "num_batches_tracked"


def collection(leaf: str | int, verbatim: bool = False) -> str:
    """Returns the collection of `flax.linen` that holds an array of this name."""
    return "batch_stats" if leaf in ("mean", "var") and not verbatim else "params"


def kind_of_torch(arrays: Arrays) -> LayerKind | None:
    """Returns the kind of layer that has this state, in PyTorch's names; None where several kinds may have it."""
    weight, bias = arrays.get("weight"), arrays.get("bias")
    if "running_mean" in arrays or "running_var" in arrays:
        return "batch_norm"
    if weight is None or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    if weight.ndim in KINDS["conv"].ranks:
        return "conv"
    return "linear" if weight.ndim == 2 and bias is not None else None


def kind_of_flax(arrays: Arrays) -> LayerKind | None:
    """Returns the kind of layer that has this state, in Flax's names; None where several kinds may have it."""
    if "mean" in arrays or "var" in arrays:
        return "batch_norm"
    if "kernel" in arrays:
        kinds: dict[int, LayerKind] = {2: "linear", 3: "conv", 4: "conv", 5: "conv"}
        return kinds.get(arrays["kernel"].ndim)
    return "embedding" if "embedding" in arrays else None


def layer_to_flax(arrays: Arrays, kind: LayerKind, flattened: tuple[int, ...] | None, where: str) -> Arrays:
    """Returns one layer's arrays by Flax's names, in Flax's layout.

    Args:
      arrays: the arrays by PyTorch's names, without `num_batches_tracked`.
      kind: a key of `KINDS`.
      flattened: (channels, *space) of the feature map whose flattening the features are, or None.
      where: begins an error's message.
    """
    rule = KINDS[kind]
    if rule.verbatim:
        return _carried(arrays, flattened, where)
    _check_names(arrays, set(rule.entries), set(rule.required), kind, where)
    _check_shapes(arrays, rule, kind, where)
    if flattened is not None:
        arrays = _reordered(arrays, rule, _channels_last(flattened), where)
    turned = {rule.entries[name]: rule.to_flax(a) if name == "weight" else a for name, a in arrays.items()}
    if kind == "untracked_batch_norm":
        # PyTorch has no statistics; Flax's module has them and does not read them.
        turned |= {"mean": np.zeros_like(turned["scale"]), "var": np.ones_like(turned["scale"])}
    return turned


def layer_to_torch(arrays: Arrays, kind: LayerKind, flattened: tuple[int, ...] | None, where: str) -> Arrays:
    """Returns one layer's arrays by PyTorch's names, in PyTorch's layout: reverses `layer_to_flax`."""
    rule = KINDS[kind]
    if rule.verbatim:
        return _carried(arrays, flattened, where)
    if kind == "untracked_batch_norm":
        arrays = {name: a for name, a in arrays.items() if name not in ("mean", "var")}
    _check_names(arrays, set(rule.entries.values()), {rule.entries[name] for name in rule.required}, kind, where)
    turned = {name: arrays[leaf] for name, leaf in rule.entries.items() if leaf in arrays}
    if "weight" in turned and turned["weight"].ndim in rule.ranks:
        turned["weight"] = rule.to_torch(turned["weight"])
    _check_shapes(turned, rule, kind, where)
    if flattened is not None:
        turned = _reordered(turned, rule, np.argsort(_channels_last(flattened)), where)
    return turned


def _carried(arrays: Arrays, flattened: tuple[int, ...] | None, where: str) -> Arrays:
    """Returns arrays that can be carried as they are, among the parameters, and raises a ValueError for others."""
    if flattened is not None:
        raise ValueError(f"{where} is carried as it is, with no features of a flattened map: leave `flattened` out")
    if not {"running_mean", "running_var"}.isdisjoint(arrays):
        raise ValueError(
            f"{where} has running statistics, which are no parameters: leave kind='as_is' out, and it is a batch norm"
        )
    if whole := {str(name): str(a.dtype) for name, a in arrays.items() if not jnp.issubdtype(a.dtype, jnp.inexact)}:
        raise ValueError(
            f"{where} has {listed(whole)} of type {listed(sorted(set(whole.values())), str)}: a buffer, which has no "
            "place among parameters, since jax.grad takes none of that type. Take it out of the dictionary and compute "
            "it in the Flax model"
        )
    return arrays


def _check_names(arrays: Arrays, known: set[str], required: set[str], kind: LayerKind, where: str) -> None:
    """Checks that a layer has the arrays of its kind, and no others."""
    if not required <= set(arrays) <= known:
        raise ValueError(
            f"{where} has the arrays {sorted(arrays)}; a layer of kind {kind!r} has {sorted(required)}, may have "
            f"{sorted(known - required)}, and has no others. Name its kind, or take what is no layer's out"
        )
    if kind == "batch_norm" and len(arrays) == 3:
        raise ValueError(
            f"{where} has the arrays {sorted(arrays)}; PyTorch's batch norm has both weight and bias or neither: add "
            "a scale of ones or a bias of zeros"
        )


def _check_shapes(arrays: Arrays, rule: Kind, kind: LayerKind, where: str) -> None:
    """Checks that a layer's arrays have the ranks of its kind, and agree with each other."""
    shapes = {name: a.shape for name, a in arrays.items()}
    ranks = {name: rule.ranks if name == "weight" else (1,) for name in arrays}
    even = len(set(shapes.values())) <= 1 or rule.ranks != (1,)
    if not even or any(len(shape) not in ranks[name] for name, shape in shapes.items()):
        raise ValueError(
            f"{where} has arrays of the shapes {shapes}; for kind {kind!r} the weight has "
            f"{' or '.join(map(str, rule.ranks))} axes and the others one{', all of one size' * (rule.ranks == (1,))}"
        )
    if rule.output_axis is None or not {"weight", "bias"} <= set(arrays):
        return
    outputs, biases = arrays["weight"].shape[rule.output_axis], arrays["bias"].size
    if outputs == biases:
        return
    if kind == "conv_transpose" and outputs and biases % outputs == 0:
        groups = biases // outputs
        raise ValueError(
            f"{where} has {outputs} outputs per group and a bias of {biases}: a transposed convolution of {groups} "
            f"groups, and Flax's has one. Give the state and the Flax model one layer per group, with "
            f"weight.chunk({groups}) and bias.chunk({groups}) of it"
        )
    raise ValueError(
        f"{where} has arrays of the shapes {shapes}: for kind {kind!r} the weight has {outputs} outputs, and so must "
        "the bias. Name another kind"
    )


def _channels_last(shape: tuple[int, ...]) -> np.ndarray:
    """Returns, for each feature of a map flattened with channels last, its index in one flattened channels first."""
    return np.moveaxis(np.arange(math.prod(shape)).reshape(shape), 0, -1).ravel()


def _reordered(arrays: Arrays, rule: Kind, order: np.ndarray, where: str) -> Arrays:
    """Returns the arrays with their features in another order, where they have features of a flattened map."""
    axis = rule.feature_axis
    if axis is None:
        raise ValueError(f"{where} has no features of a flattened map: leave `flattened` out")
    chosen = [name for name in arrays if axis == 0 or name == "weight"]
    for name in chosen:
        if arrays[name].shape[axis] != order.size:
            raise ValueError(
                f"{where} has {arrays[name].shape[axis]} features, and the flattened map {order.size}; give "
                "flattened=(channels, height, width), as the map is before it is flattened"
            )
    return {name: np.take(a, order, axis) if name in chosen else a for name, a in arrays.items()}


def as_numpy(value: Any) -> np.ndarray:
    """Copies a PyTorch, NumPy or JAX array or a Flax variable to a NumPy array, bit for bit."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            # NumPy has no bfloat16 of its own: copy the bits.
            return value.view(value.new_empty(0).short().dtype).numpy().view(jnp.bfloat16).copy()
        value = value.numpy()
    return np.array(value)


def as_jax(array: np.ndarray) -> Any:
    """Returns the array in JAX, or as it is where JAX would round it, as it does float64 while x64 is not enabled."""
    # Not np.ascontiguousarray, which turns a scalar into an array of one number.
    array = np.asarray(array, order="C")
    return jnp.asarray(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array


def as_torch(array: np.ndarray, as_tensor: Callable[[np.ndarray], Any] | None) -> Any:
    """Returns a copy of the array, made a tensor by `as_tensor` if it is given."""
    array = np.array(array, order="C")
    if as_tensor is None:
        return array
    if array.dtype == jnp.bfloat16:
        bits = as_tensor(array.view(np.int16))
        return bits.view(bits.new_empty(0).bfloat16().dtype)
    return as_tensor(array)
