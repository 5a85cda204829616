"""What a compiled program does between devices and how much memory it takes, read from the program itself."""

import math
import re
from typing import Any, NamedTuple

_COLLECTIVE = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+)\[(?P<sizes>[\d,]*)\]")


class Collective(NamedTuple):
    """One collective of a compiled program.

    Attributes:
      kind: "all-reduce", "all-gather" and so on.
      elements: how many numbers its result has, in all arrays of a combined one.
      backward: it belongs to the backward pass.
    """

    kind: str
    elements: int
    backward: bool


def collectives(compiled: Any) -> list[Collective]:
    """The collectives of a compiled program, in its order.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns.
    """
    found = []
    for line in compiled.as_text().splitlines():
        match = _COLLECTIVE.search(line)
        if match:
            sizes = [math.prod(int(s) for s in a["sizes"].split(",") if s) for a in _ARRAY.finditer(match["shape"])]
            # The start of an asynchronous one also returns what goes in; only an all-reduce is in its own place.
            half = match["start"] and match["kind"] != "all-reduce"
            elements = sum(sizes[len(sizes) // 2 :] if half else sizes)
            found.append(Collective(match["kind"], elements, "transpose(" in line))
    return found


def memory(compiled: Any) -> dict[str, int]:
    """Bytes that a compiled program takes: temporaries, arguments and outputs, less what is shared between these."""
    analysis = compiled.memory_analysis()
    sizes = {
        "temporary": analysis.temp_size_in_bytes,
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliases": analysis.alias_size_in_bytes,
    }
    sizes["total"] = sizes["temporary"] + sizes["arguments"] + sizes["outputs"] - sizes["aliases"]
    return sizes
