"""Reads the main-memory traffic of an optimised program, and the compiler's estimate of its cycles, from its text."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import hlo

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[\w\-]+)\((?P<rest>.*)$"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# These instructions only name an array that exists already.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "opt-barrier", "partition-id"}
# These instructions run other computations, whose instructions are counted instead.
_RUN_OTHERS = {"call", "while", "conditional"}
# Memory space 0 is the main memory, and is not named in the text. Space 1 of a TPU is the chip's vector memory.
_ELSEWHERE = re.compile(r"S\([1-9]")


class Instruction(NamedTuple):
    """One instruction of a computation.

    Attributes:
      opcode: the name of the operation, such as "fusion".
      reads: the types of the operands.
      result: the types of the results, those of a tuple in order.
      line: the text of the instruction, attributes included.
    """

    opcode: str
    reads: list[hlo.Array]
    result: list[hlo.Array]
    line: str

    def writes(self) -> list[hlo.Array]:
        """Returns the types of the written arrays: the results without the operands that an async start returns."""
        if self.opcode == "copy-start":
            return self.result[:1]
        if self.opcode.endswith("-start") and self.opcode != "all-reduce-start":
            return self.result[len(self.reads) :]
        return self.result


class Program:
    """The computations of an optimised program.

    Counting begins at the entry computation. A loop's body counts once per known iteration, or once if their number is
    not known; one branch of a conditional counts. A fusion is one instruction, which reads its operands and writes its
    result.
    """

    def __init__(self, text: str):
        """Parses a program.

        Args:
          text: the result of `compiled.as_text()`.

        Raises:
          ValueError: the text has no entry computation.
        """
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        block: list[re.Match[str]] = []
        name = ""
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                name, block = header["name"], []
                self._entry = name if header["entry"] else self._entry
            elif line.startswith("}"):
                self._computations[name] = _instructions(block)
            elif instruction := _INSTRUCTION.match(line):
                block.append(instruction)
        if self._entry not in self._computations:
            raise ValueError(
                f"Program: a text with an entry computation is required; got one that begins {text[:60]!r}"
            )

    def cycles(self, branch: Callable[[Sequence[int]], int] = max) -> int:
        """Returns the TPU compiler's estimate of the cycles without collectives and memory copies; 0 for a GPU.

        Args:
          branch: the function that chooses among the cycles of a conditional's branches: `max` or `min`.
        """

        def estimated(instruction: Instruction) -> int:
            found = _CYCLES.search(instruction.line)
            return int(found[1]) if found else 0

        return self._sum(self._entry, estimated, branch)

    def bytes(self, at_least: int = 0) -> int:
        """Returns the bytes read from and written to main memory; of a conditional, the largest branch counts.

        Args:
          at_least: the number of elements below which an array is left out.
        """

        def moved(instruction: Instruction) -> int:
            if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                return 0
            counted = [*instruction.reads, *instruction.writes()]
            return sum(a.bytes for a in counted if a.elements >= at_least and not _ELSEWHERE.search(a.layout))

        return self._sum(self._entry, moved, max)

    def passes(self, elements: int, bits: int) -> float:
        """Returns the number of passes over an array: bytes moved in arrays at least as large, divided by its bytes.

        Args:
          elements: the number of elements of the array.
          bits: the bits per element.
        """
        return self.bytes(at_least=elements) / (elements * bits / 8)

    def _sum(self, name: str, measure: Callable[[Instruction], int], branch: Callable[[Sequence[int]], int]) -> int:
        @functools.cache
        def total(name: str) -> int:
            return sum(nested(i) if i.opcode in _RUN_OTHERS else measure(i) for i in self._computations[name])

        def nested(instruction: Instruction) -> int:
            values = [total(called) for called in _called(instruction)]
            if instruction.opcode == "conditional":
                return branch(values)
            trips = _TRIP_COUNT.search(instruction.line)
            return sum(values) * (int(trips[1]) if trips else 1)

        return total(name)


def _instructions(block: list[re.Match[str]]) -> list[Instruction]:
    shapes = {m["name"]: hlo.arrays(m["shape"]) for m in block}
    return [
        Instruction(
            m["opcode"],
            [a for operand in _operands(m["rest"]) for a in shapes.get(operand, [])],
            shapes[m["name"]],
            m.string,
        )
        for m in block
    ]


def _operands(rest: str) -> list[str]:
    """Returns the names between an instruction's brackets, without those in the attributes that follow."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return re.findall(r"%([\w.\-]+)", rest[:i])
    return []


def _called(instruction: Instruction) -> list[str]:
    """Returns the computations that a call, a loop (body and condition) or a conditional (all branches) may run."""
    named = re.findall(r"(?:to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)", instruction.line)
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.line)
    return named + (re.findall(r"%?([\w.\-]+)", branches[1]) if branches else [])
