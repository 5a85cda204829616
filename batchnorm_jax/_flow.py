"""Follows values through a traced program: the layer whose output each norm reads, and what else reads that output."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from batchnorm_jax._compat import scan_operands

_MARK = "batchnorm_jax.fold"
# Calls that compute exactly what the program inside them does, with the same arguments in the same order.
_CALLS = {"jit", "pjit", "remat", "remat2", "checkpoint", "closed_call", "core_call", "custom_jvp_call"}
_CALLS |= {"custom_vjp_call", "custom_vjp_call_jaxpr"}
# The variables that are followed from the place where they are stored to the place where they are used.
STORED_OF_LAYER, STORED_OF_NORM = ("params", "kernel"), ("batch_stats", "mean")

# The origin of a value: ("layer", path), the output of a layer; ("stored", path), a variable of a layer or norm.
_Origin = tuple[str, str] | None


class Flow(NamedTuple):
    """The values that go between layers and norms, each of which is named by its path.

    Attributes:
      calls: the number of times that each layer and norm stands in the program.
      sources: for each norm, the layers whose output it was given; None stands for anything else.
      readers: for each layer, the norms that read its output; None stands for anything else.
      stored: the layers that compute with their kernel as it is stored, and the norms that do so with their mean:
        whole, or the slice along axis 0 that belongs to the step of a scan.
    """

    calls: dict[str, int]
    sources: dict[str, list[str | None]]
    readers: dict[str, list[str | None]]
    stored: set[str]


def mark(kind: str, path: str, value: Any) -> Any:
    """Marks a value in the program that is being traced, and returns it.

    Args:
      kind: "layer" for the output of a layer; "norm" for the input of a norm; "stored" for the kernel or mean in use.
      path: the path of the layer or norm.
      value: an array.
    """
    return checkpoint_name(value, f"{_MARK}:{kind}:{path}")


def follow(program: Any, variables: Any) -> Flow:
    """Follows the marked values through a program whose first arguments are the leaves of `variables`."""
    flow = Flow(defaultdict(int), defaultdict(list), defaultdict(list), set())
    origins = [_stored_at(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    results = _follow(flow, program, [*origins, *[None] * (len(program.invars) - len(origins))])
    _read_elsewhere(flow, results)
    return flow


def _stored_at(path: tuple[Any, ...]) -> _Origin:
    """Returns the origin of a variable, by the keys that lead to it."""
    names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return ("stored", "/".join(names[1:-1])) if (names[0], names[-1]) in (STORED_OF_LAYER, STORED_OF_NORM) else None


def _follow(flow: Flow, program: Any, arguments: list[_Origin]) -> list[_Origin]:
    """Follows values through a program, and returns the origins of its results."""
    origin = dict(zip(program.invars, arguments, strict=True))

    def read(variable) -> _Origin:
        return None if isinstance(variable, core.Literal) else origin.get(variable)

    for equation in program.eqns:
        inputs = [read(variable) for variable in equation.invars]
        inner = list(_inner_programs(equation))
        if equation.primitive.name == "name":
            origin[equation.outvars[0]] = _at_mark(flow, equation.params["name"], inputs[0])
        elif equation.primitive.name in _CALLS and len(inner) == 1:
            origin.update(zip(equation.outvars, _follow(flow, inner[0], inputs), strict=True))
        else:
            _read_elsewhere(flow, inputs)
            for body in inner:
                _follow(flow, body, _into_loop(equation, inputs, len(body.invars)))
    return [read(variable) for variable in program.outvars]


def _at_mark(flow: Flow, name: str, source: _Origin) -> _Origin:
    """Records a mark in `flow`, and returns the origin of the value behind it."""
    ours, _, rest = name.partition(":")
    kind, _, path = rest.partition(":")
    if ours != _MARK:
        return source  # The user's own name, for a checkpoint policy.
    if kind == "stored":
        if source == ("stored", path):
            flow.stored.add(path)
        return source
    flow.calls[path] += 1
    if kind == "layer":
        return ("layer", path)
    layer = source[1] if source is not None and source[0] == "layer" else None
    flow.sources[path].append(layer)
    if layer is not None:
        flow.readers[layer].append(path)
    return None


def _read_elsewhere(flow: Flow, inputs: Iterable[_Origin]) -> None:
    """Records that something other than a norm reads these values."""
    for source in inputs:
        if source is not None and source[0] == "layer":
            flow.readers[source[1]].append(None)


def _into_loop(equation: Any, inputs: list[_Origin], number: int) -> list[_Origin]:
    """Returns the origins inside a loop: for a scan those of stored variables that are not carried, else none.

    A scan reads a stored variable whole, or sliced along axis 0.
    """
    if equation.primitive.name != "scan":
        return [None] * number
    consts, carry = scan_operands(equation.params)
    carried = range(consts, consts + carry)
    return [
        source if source is not None and source[0] == "stored" and i not in carried else None
        for i, source in enumerate(inputs)
    ]


def _inner_programs(equation: Any) -> Iterator[Any]:
    """Yields the programs inside an equation."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
