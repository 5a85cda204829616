"""Reads what an optimised program does in main memory, and the compiler's estimate of its cycles, from its text."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.benchmarking import hlo

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[\w\-]+)\((?P<rest>.*)$"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# They name an array that is there already.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "opt-barrier", "partition-id"}
# They run other computations, whose instructions are counted in their place.
_RUN_OTHERS = {"call", "while", "conditional"}
# Memory space 0, which goes unnamed, is the main memory. On a TPU 1 is the vector memory on the chip.
_ELSEWHERE = re.compile(r"S\([1-9]")


class Instruction(NamedTuple):
    """One instruction of a computation.

    Attributes:
      opcode: what it does, "fusion" for instance.
      reads: the types of its operands.
      result: the types of what it returns, those of a tuple in their order.
      line: its text, attributes included.
    """

    opcode: str
    reads: list[hlo.Array]
    result: list[hlo.Array]
    line: str

    def writes(self) -> list[hlo.Array]:
        """The types of what it writes: the result, without the operands that an asynchronous start returns, too."""
        if self.opcode == "copy-start":
            return self.result[:1]
        if self.opcode.endswith("-start") and self.opcode != "all-reduce-start":
            return self.result[len(self.reads) :]
        return self.result


class Program:
    """The computations of an optimised program.

    The entry computation is what runs. A loop's body counts as often as it is known to run, else once; of the branches
    of a conditional one counts. A fusion is one instruction, which reads its operands and writes its result.
    """

    def __init__(self, text: str):
        """Parses a program.

        Args:
          text: of `compiled.as_text()`.

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
        """The TPU compiler's estimate of the cycles, without collectives and copies between memories; 0 for a GPU.

        Args:
          branch: chooses among the cycles of a conditional's branches: `max` or `min`.
        """

        def estimated(instruction: Instruction) -> int:
            found = _CYCLES.search(instruction.line)
            return int(found[1]) if found else 0

        return self._sum(self._entry, estimated, branch)

    def bytes(self, at_least: int = 0) -> int:
        """Bytes that instructions read from the main memory and write to it; of a conditional, its largest branch.

        Args:
          at_least: leave out arrays of fewer elements.
        """

        def moved(instruction: Instruction) -> int:
            if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                return 0
            counted = [*instruction.reads, *instruction.writes()]
            return sum(a.bytes for a in counted if a.elements >= at_least and not _ELSEWHERE.search(a.layout))

        return self._sum(self._entry, moved, max)

    def passes(self, elements: int, bits: int) -> float:
        """How often an array's worth of bytes is read or written, in arrays that are at least as large.

        Args:
          elements: of the array.
          bits: of each of them.
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
    """The names between an instruction's brackets; its attributes, which name computations, follow these."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return re.findall(r"%([\w.\-]+)", rest[:i])
    return []


def _called(instruction: Instruction) -> list[str]:
    """The computations that a call, a loop (body and condition) or a conditional (its branches) runs."""
    named = re.findall(r"(?:to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)", instruction.line)
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.line)
    return named + (re.findall(r"%?([\w.\-]+)", branches[1]) if branches else [])
