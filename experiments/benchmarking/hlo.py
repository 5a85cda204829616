"""What a compiled program does between devices and how much memory it takes, read from the program itself."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_COLLECTIVE = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d\w*)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?")


class Array(NamedTuple):
    """The type of one array in a program's text.

    Attributes:
      elements: how many numbers it has.
      bits: of each of them.
      layout: the order of its axes, tiles and memory space as the text has them; empty where it has none.
    """

    elements: int
    bits: int
    layout: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of the elements, without the padding of tiles."""
        return self.elements * self.bits // 8


def arrays(text: str) -> list[Array]:
    """The arrays of a type in a program's text, those of a tuple in their order.

    Example:
      >>> [(a.elements, a.bytes) for a in arrays("(bf16[8,64]{1,0:T(8,128)(2,1)}, pred[3]{0}, f32[])")]
      [(512, 1024), (3, 3), (1, 4)]
    """
    return [
        Array(math.prod(int(s) for s in a["sizes"].split(",") if s), _bits(a["dtype"]), a["layout"] or "")
        for a in _ARRAY.finditer(text)
    ]


def _bits(dtype: str) -> int:
    """Bits of an element: the first number in the name, as in bf16 and f8e4m3fn; a pred takes a byte."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


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
    return [
        Collective(kind, sum(a.elements for a in parts), "transpose(" in line)
        for line, kind, parts in _collective_results(compiled)
    ]


def collective_bytes(compiled: Any) -> int:
    """Bytes of the results of all collectives of a compiled program."""
    return sum(a.bytes for _, _, parts in _collective_results(compiled) for a in parts)


def _collective_results(compiled: Any) -> Iterator[tuple[str, str, list[Array]]]:
    """The line, the kind and the result's arrays of each collective."""
    for line in compiled.as_text().splitlines():
        if match := _COLLECTIVE.search(line):
            parts = arrays(match["shape"])
            # The start of an asynchronous one also returns what goes in; only an all-reduce is in its own place.
            half = match["start"] and match["kind"] != "all-reduce"
            yield line, match["kind"], parts[len(parts) // 2 :] if half else parts


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
