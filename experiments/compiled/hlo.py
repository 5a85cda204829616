"""Reads a compiled program's collectives and its memory from the program itself."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..records.benchmarks.norm import Collective, ProgramMemory

_COLLECTIVE = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d\w*)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?")


class Array(NamedTuple):
    """The type of one array in a program's text.

    Attributes:
      elements: the number of elements.
      bits: the bits of each element.
      layout: the order of the axes, the tiles and the memory space, as in the text; empty if the text names no layout.
    """

    elements: int
    bits: int
    layout: str = ""

    @property
    def bytes(self) -> int:
        """The bytes of all elements, without the padding of tiles."""
        return self.elements * self.bits // 8


def arrays(text: str) -> list[Array]:
    """Parses a type in a program's text and returns its arrays, those of a tuple in order.

    Example:
      >>> [(a.elements, a.bytes) for a in arrays("(bf16[8,64]{1,0:T(8,128)(2,1)}, pred[3]{0}, f32[])")]
      [(512, 1024), (3, 3), (1, 4)]
    """
    return [
        Array(math.prod(int(s) for s in a["sizes"].split(",") if s), _bits(a["dtype"]), a["layout"] or "")
        for a in _ARRAY.finditer(text)
    ]


def _bits(dtype: str) -> int:
    """Returns the bits of an element: the first number in the dtype, as in bf16 and f8e4m3fn; a pred takes a byte."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


def collectives(compiled: Any) -> list[Collective]:
    """Returns the collectives of a compiled program, in the order of the program.

    Args:
      compiled: the result of `jax.jit(f).lower(...).compile()`.
    """
    return [
        Collective(kind=kind, elements=sum(a.elements for a in parts), backward="transpose(" in line)
        for line, kind, parts in _collective_results(compiled)
    ]


def collective_bytes(compiled: Any) -> int:
    """Returns the bytes of the results of all collectives of a compiled program."""
    return sum(a.bytes for _, _, parts in _collective_results(compiled) for a in parts)


def _collective_results(compiled: Any) -> Iterator[tuple[str, str, list[Array]]]:
    """Yields the line, the kind and the result's arrays of each collective."""
    for line in compiled.as_text().splitlines():
        if match := _COLLECTIVE.search(line):
            parts = arrays(match["shape"])
            # The start of an asynchronous collective returns its operands before its results; an all-reduce does not,
            # because it works in place.
            half = match["start"] and match["kind"] != "all-reduce"
            yield line, match["kind"], parts[len(parts) // 2 :] if half else parts


def memory(compiled: Any) -> ProgramMemory:
    """Returns the bytes that a compiled program takes."""
    analysis = compiled.memory_analysis()
    temporary, shared = analysis.temp_size_in_bytes, analysis.alias_size_in_bytes
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    return ProgramMemory(
        temporary=temporary,
        arguments=arguments,
        outputs=outputs,
        aliases=shared,
        total=temporary + arguments + outputs - shared,
    )
