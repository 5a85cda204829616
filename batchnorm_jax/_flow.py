"""Following values through a traced program: which layer's output each norm was given, and who else was given it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

_MARK = "batchnorm_jax.fold"
# What these compute is what the program inside them computes, of the same arguments in the same order.
_CALLS = {"jit", "pjit", "remat", "remat2", "checkpoint", "closed_call", "core_call", "custom_jvp_call"}
_CALLS |= {"custom_vjp_call", "custom_vjp_call_jaxpr"}
# The variables that are followed from where they are stored to where they are used.
STORED_OF_LAYER, STORED_OF_NORM = ("params", "kernel"), ("batch_stats", "mean")

# Where a value comes from: ("layer", path), the output of a layer; ("stored", path), what is stored of a layer or norm.
_Origin = tuple[str, str] | None


class Flow(NamedTuple):
    """What was found; each layer and norm goes by its path.

    Attributes:
      calls: how often each stands in the program.
      sources: for each norm, the layers whose output it was given, None for anything else.
      readers: for each layer, the norms that read its output, None for anything else.
      stored: the layers that compute with their kernel, and the norms with their mean, as it is stored: whole, or the
        slice along axis 0 that belongs to the step of a scan.
    """

    calls: dict[str, int]
    sources: dict[str, list[str | None]]
    readers: dict[str, list[str | None]]
    stored: set[str]


def mark(kind: str, path: str, value: Any) -> Any:
    """The same value, marked in the program that is being traced.

    Args:
      kind: "layer", the output of one; "norm", the input of one; "stored", the kernel or the mean in use.
      path: of the layer or norm.
      value: an array.
    """
    return checkpoint_name(value, f"{_MARK}:{kind}:{path}")


def follow(program: Any, variables: Any) -> Flow:
    """Follows what was marked through a program whose first arguments are the leaves of `variables`."""
    flow = Flow(defaultdict(int), defaultdict(list), defaultdict(list), set())
    origins = [_stored_at(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    results = _follow(flow, program, [*origins, *[None] * (len(program.invars) - len(origins))])
    _read_elsewhere(flow, results)
    return flow


def _stored_at(path) -> _Origin:
    names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return ("stored", "/".join(names[1:-1])) if (names[0], names[-1]) in (STORED_OF_LAYER, STORED_OF_NORM) else None


def _follow(flow: Flow, program: Any, arguments: list[_Origin]) -> list[_Origin]:
    """Returns the origins of the program's results."""
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
    for source in inputs:
        if source is not None and source[0] == "layer":
            flow.readers[source[1]].append(None)


def _into_loop(equation: Any, inputs: list[_Origin], number: int) -> list[_Origin]:
    """The origins inside: of a scan, of what is stored, whole or sliced along axis 0, but not carried; else none."""
    if equation.primitive.name != "scan":
        return [None] * number
    consts = equation.params["num_consts"]
    carried = range(consts, consts + equation.params["num_carry"])
    return [
        source if source is not None and source[0] == "stored" and i not in carried else None
        for i, source in enumerate(inputs)
    ]


def _inner_programs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
