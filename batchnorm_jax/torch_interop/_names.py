"""Which layer of a PyTorch model is which of a Flax model: paths, and what is said where the two do not match."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from batchnorm_jax.torch_interop._layers import KINDS, Arrays, collection

Path = tuple[str | int, ...]
APIS = ("linen", "nnx")


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where a PyTorch layer is in the Flax model, and what its arrays alone do not say.

    | kind | in PyTorch | in Flax |
    |---|---|---|
    | "conv" | Conv1d, 2d, 3d: (out, in / groups, *window) | Conv: (*window, in / groups, out) |
    | "conv_transpose" | ConvTranspose1d, 2d, 3d, of one group: (in, out, *window) | ConvTranspose: (*window, in, out) |
    | "linear" | Linear: (out, in) | Dense, nnx.Linear: (in, out) |
    | "embedding" | Embedding: (number, features) | Embed: the same |
    | "batch_norm" | BatchNorm1d, 2d, 3d, SyncBatchNorm | BatchNorm |
    | "untracked_batch_norm" | the same with track_running_stats=False | BatchNorm, whose mean and var are not read |
    | "norm" | LayerNorm, GroupNorm: (features,) | LayerNorm, GroupNorm |

    Attributes:
      path: of the module in the Flax model, "stage1/block0/norm" or ("stage1", "block0", "norm"); "" is the model
        itself. For nnx the numbers in a string are indices: "blocks/0/norm" is `model.blocks[0].norm`.
      kind: of the layer, a row of the table. None: what its arrays look like. Where they could be several layers' (a
        linear layer without bias or an embedding; one-dimensional norms) it is asked for. A transposed convolution
        looks like a convolution, so always say which it is.
      flattened: the shape (channels, height, width), or (channels, *any), of the feature map that is flattened before
        the layer: PyTorch flattens channels first and Flax channels last, and the layer's input features are put in
        the other's order. (Or transpose the map before it is flattened in Flax, and leave this out.)

    Raises:
      ValueError: the kind is not in the table.

    Example:
      >>> Layer("head", kind="linear", flattened=(64, 7, 7)).kind
      'linear'

    Source: PyTorch's documentation of `torch.nn` and Flax's of its layers, for the axes of the arrays.
    """

    path: str | Path = ""
    kind: str | None = None
    flattened: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.kind is not None:
            _check_choice("Layer: kind", self.kind, KINDS)


Names = Mapping[str, str | Path | Layer]


def parse_names(names: Names | None, api: str, caller: str) -> dict[str, tuple[Path, Layer]]:
    """PyTorch's name of each layer -> its path, no two the same, and the layer."""
    _check_choice(f"{caller}: api", api, APIS)
    layers: dict[str, tuple[Path, Layer]] = {}
    taken: dict[Path, str] = {}
    for name, value in ({"": ""} if names is None else names).items():
        layer = value if isinstance(value, Layer) else Layer(value)
        path = layer.path
        if isinstance(path, str):
            parts = filter(None, path.split("/"))
            path = tuple(int(part) if api == "nnx" and part.isdecimal() else part for part in parts)
        if path in taken:
            raise ValueError(
                f"{caller}: the names lead {taken[path]!r} and {name!r} to one path, {text(path)!r}; give each its "
                "own. Where the PyTorch model uses one layer twice, leave one of its names out, and its entries too"
            )
        taken[path] = name
        layers[name] = path, layer
    return layers


def key(name: str, entry: str) -> str:
    """PyTorch's name of an array."""
    return f"{name}.{entry}" if name else entry


def place(path: Path, leaf: str | int, api: str) -> Path:
    """The keys that lead to an array in Flax's variables."""
    return (collection(leaf), *path, leaf) if api == "linen" else (*path, leaf)


def text(path: Path) -> str:
    """A path as it is written in messages."""
    return "/".join(map(str, path))


def flat(tree: Any) -> dict[Path, Any]:
    """The leaves of nested mappings by the keys that lead to them."""
    if not isinstance(tree, Mapping):
        return {} if tree is None else {(): tree}
    return {(name, *path): leaf for name, branch in tree.items() for path, leaf in flat(branch).items()}


def nested(leaves: Mapping[Path, Any]) -> dict[Any, Any]:
    """The reverse of `flat`."""
    tree: dict[Any, Any] = {}
    for (*branch, last), leaf in leaves.items():
        node = tree
        for name in branch:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def check_match(missing: list[str], candidates: list[str], left_over: list[str], source: str, caller: str) -> None:
    """Refuses names that lead nowhere, with the closest of the candidates, and what has no name."""
    wrong = []
    if missing:
        wrong.append(f"named and not in {source}: {', '.join(_with_closest(name, candidates) for name in missing)}")
    if left_over:
        wrong.append(f"in {source} and not named: {', '.join(map(repr, left_over))}")
    if wrong:
        raise ValueError(
            f"{caller}: {'; '.join(wrong)}. Every name needs a layer and every layer a name: mend the names, or take "
            f"what is not wanted out of {source}"
        )


def unclear(name: str, path: Path, arrays: Arrays, caller: str) -> ValueError:
    """The error where a layer may be of several kinds."""
    ranks = {arrays[entry].ndim for entry in ("weight", "kernel", "scale") if entry in arrays}
    kinds = [kind for kind, rule in KINDS.items() if ranks & set(rule.ranks) and kind != "batch_norm"] or list(KINDS)
    shapes = {entry: array.shape for entry, array in arrays.items()}
    hint = " A batch norm has a running mean and variance, which are not there." if ranks == {1} else ""
    return ValueError(
        f"{caller}: layer {name!r} has arrays of the shapes {shapes}, from which its kind is not clear; say it in the "
        f"names, {name!r}: Layer({text(path)!r}, kind=...), one of {', '.join(map(repr, kinds))}.{hint}"
    )


def check_like(leaves: Mapping[Path, Any], like: Any, caller: str) -> None:
    """Refuses leaves that have not the paths and shapes of those of `like`."""
    have, want = ({p: tuple(leaf.shape) for p, leaf in tree.items()} for tree in (leaves, flat(like)))
    wrong = [f"{text(path)} is missing" for path in want if path not in have]
    wrong += [f"{text(path)} is not in `like`" for path in have if path not in want]
    wrong += [
        f"{text(path)} has shape {shape}, not {want[path]}"
        for path, shape in have.items()
        if want.get(path, shape) != shape
    ]
    if wrong:
        raise ValueError(f"{caller}: the result is not like `like`: {'; '.join(wrong)}. Mend the names, or the model")


def _with_closest(name: str, candidates: list[str]) -> str:
    # A wrapped model's names all begin with the wrapper's: module.conv1.
    within = [candidate for candidate in candidates if candidate.endswith((f".{name}", f"/{name}"))]
    closest = within or difflib.get_close_matches(name, candidates, 1, 0.5)
    return f"{name!r} (closest: {closest[0]!r})" if closest else repr(name)


def _check_choice(what: str, given: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if given not in choices:
        closest = difflib.get_close_matches(str(given), choices, 1)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        raise ValueError(f"{what}={given!r} is none of {', '.join(map(repr, choices))}{hint}")
