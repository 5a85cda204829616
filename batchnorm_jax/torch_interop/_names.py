"""Maps the names of PyTorch layers to the paths of Flax layers."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from batchnorm_jax.torch_interop._layers import KINDS, LayerKind, collection

Path = tuple[str | int, ...]
"""The names and indices that lead to a module or an array of a Flax model."""

Modules = dict[str, dict[str, Any]]
"""The arrays of each PyTorch module, by the module's name and by their names in the module."""

Api = Literal["linen", "nnx"]
"""An interface of Flax."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """The place of a PyTorch layer in the Flax model, and the facts that its arrays alone do not show.

    | kind | in PyTorch | in Flax |
    |---|---|---|
    | "conv" | Conv1d, 2d, 3d: (out, in / groups, *window) | Conv: (*window, in / groups, out) |
    | "conv_transpose" | ConvTranspose1d, 2d, 3d, of one group: (in, out, *window) | ConvTranspose: (*window, in, out) |
    | "linear" | Linear: (out, in) | Dense, nnx.Linear: (in, out) |
    | "embedding" | Embedding: (number, features) | Embed: the same |
    | "batch_norm" | BatchNorm1d, 2d, 3d, SyncBatchNorm | BatchNorm |
    | "untracked_batch_norm" | the same with track_running_stats=False | BatchNorm, whose mean and var are not read |
    | "norm" | LayerNorm, GroupNorm: (features,) | LayerNorm, GroupNorm |
    | "as_is" | bare parameters of a module: a LayerScale's gamma, a class token, attention biases | the same, under \
their own names |

    "as_is" carries every array that a module itself holds, in PyTorch's layout, as parameters. Named instead of the
    module, one array is carried alone, under any name: {"stem.conv": "stem/conv", "stem.conv.gain":
    Layer("stem/conv/scale", kind="as_is")}. The module's floating-point buffers are carried too, because a state
    dictionary does not tell them from parameters; arrays of integers, such as a `relative_position_index`, are refused,
    because they are never parameters.

    A grouped ConvTranspose is one layer per group here, because Flax has no grouped one. Without a bias its arrays do
    not show how many groups it has; the argument `like` of `from_torch` does.

    Attributes:
      path: the path of the module in the Flax model, "stage1/block0/norm" or ("stage1", "block0", "norm"), or of an
        array that is carried alone; "" is the model itself. For nnx the numbers in a string are indices:
        "blocks/0/norm" is `model.blocks[0].norm`.
      kind: the kind of layer, a row of the table. None: the kind that its arrays show. Where several kinds have such
        arrays (a linear layer without bias or an embedding; one-dimensional norms) an error asks for it. A transposed
        convolution looks like a convolution, so always state it.
      flattened: the shape (channels, height, width), or (channels, *any), of the feature map that is flattened before
        the layer. PyTorch flattens channels first and Flax channels last, so the layer's input features are put in the
        other order. (Or transpose the map before it is flattened in Flax, and leave this out.)

    Raises:
      ValueError: the kind is not in the table, or the path is not a path.

    Example:
      >>> Layer("head", kind="linear", flattened=(64, 7, 7)).kind
      'linear'

    Source: PyTorch's documentation of `torch.nn` and Flax's of its layers, for the axes of the arrays.
    """

    path: str | Path = ""
    kind: LayerKind | None = None
    flattened: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.kind is not None:
            _check_choice("Layer: kind", self.kind, KINDS)
        _check_path(self.path, "Layer: path")

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name in ("kind", "flattened") if (value := getattr(self, name)) is not None]
        return f"Layer({', '.join([repr(self.path), *given])})"

    @property
    def verbatim(self) -> bool:
        """True if the kind carries arrays as they are."""
        return self.kind is not None and KINDS[self.kind].verbatim


Names = Mapping[str, str | Path | Layer]
"""PyTorch's name of each module with arrays of its own -> its path in the Flax model, or a `Layer`."""


def parse_names(names: Names | None, api: Api, caller: str) -> dict[str, tuple[Path, Layer]]:
    """Returns for PyTorch's name of each layer its path, no two the same, and its `Layer`."""
    check_api(api, caller)
    if names is not None and (not isinstance(names, Mapping) or not names):
        raise ValueError(
            f"{caller}: names={names!r} names no layer; give PyTorch's name of each -> its path in the Flax model, as "
            "names_from_torch(state_dict) does for a start, or None where the state is that of one layer"
        )
    layers: dict[str, tuple[Path, Layer]] = {}
    taken: dict[Path, str] = {}
    for name, value in ({"": ""} if names is None else names).items():
        if not isinstance(name, str):
            raise ValueError(f"{caller}: the name {name!r} must be a string, PyTorch's name of a module")
        if not isinstance(value, Layer):
            _check_path(value, f"{caller}: the path of {name!r}")
            value = Layer(value)
        layer, path = value, parse_path(value.path, api)
        if api == "linen" and isinstance(layer.path, str) and path[:1] in (("params",), ("batch_stats",)):
            raise ValueError(
                f"{caller}: the path of {name!r} is {layer.path!r}; a path begins below the collection: "
                f"{text(path[1:])!r}. Where a module of that name is meant, give {path!r}"
            )
        if path in taken:
            raise ValueError(
                f"{caller}: the names lead {taken[path]!r} and {name!r} to one path, {text(path)!r}; give each its "
                "own. Where the PyTorch model uses one layer twice, leave one of its names out, and its entries too"
            )
        taken[path] = name
        layers[name] = path, layer
    return layers


def check_api(api: Api, caller: str) -> None:
    """Raises a ValueError for an unknown interface of Flax."""
    _check_choice(f"{caller}: api", api, get_args(Api))


def parse_path(path: str | Path, api: Api) -> Path:
    """Returns a path as a tuple: a number in a string is an index for nnx, and a name for linen."""
    if not isinstance(path, str):
        return path
    return tuple(int(part) if api == "nnx" and part.isdecimal() else part for part in path.split("/") if part)


def key(name: str, entry: str) -> str:
    """Returns PyTorch's name of an array, given that of its module and the name in the module."""
    return f"{name}.{entry}" if name else entry


def modules_of(state_dict: Mapping[str, Any]) -> Modules:
    """Returns the arrays of each PyTorch module, by their names in the module."""
    groups: Modules = {}
    for full, value in state_dict.items():
        name, _, entry = full.rpartition(".")
        groups.setdefault(name, {})[entry] = value
    return groups


def place(path: Path, leaf: str | int, api: Api, verbatim: bool = False) -> Path:
    """Returns the keys that lead to an array in Flax's variables."""
    return (collection(leaf, verbatim), *path, leaf) if api == "linen" else (*path, leaf)


def text(path: Path) -> str:
    """Returns a path as it is written in messages."""
    return "/".join(map(str, path))


def flat(tree: Any) -> dict[Path, Any]:
    """Returns the leaves of nested mappings by the keys that lead to them."""
    if not isinstance(tree, Mapping):
        return {} if tree is None else {(): tree}
    return {(name, *path): leaf for name, branch in tree.items() for path, leaf in flat(branch).items()}


def nested(leaves: Mapping[Path, Any]) -> dict[Any, Any]:
    """Returns nested dictionaries of leaves by the keys that lead to them: reverses `flat`."""
    tree: dict[Any, Any] = {}
    for (*branch, last), leaf in leaves.items():
        node = tree
        for name in branch:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def _check_path(path: Any, what: str) -> None:
    """Checks that a path is a string without dots, or a tuple of names and indices."""
    if isinstance(path, str):
        if "." in path:
            raise ValueError(
                f"{what} is {path!r}; the parts of a path are separated by slashes: {path.replace('.', '/')!r}. Where "
                f"a name in the Flax model has a dot, give a tuple of names, {tuple(path.split('/'))!r}"
            )
        return
    if not isinstance(path, tuple) or any(not isinstance(part, str | int) or part == "" for part in path):
        raise ValueError(f"{what} is {path!r}; a path is a string, 'stage1/norm', or a tuple, ('stage1', 'norm')")


def _check_choice(what: str, given: str, choices: Iterable[str]) -> None:
    """Checks that a choice is known; the error names the closest one."""
    choices = list(choices)
    if given not in choices:
        closest = difflib.get_close_matches(str(given), choices, 1)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        raise ValueError(f"{what}={given!r} is none of {', '.join(map(repr, choices))}{hint}")
