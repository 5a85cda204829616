"""The figures of a compiled program: traffic, cycles, memory and collectives."""

from typing import Any

from ..records.benchmarks.topology import Figures
from . import hlo
from .program import Program


def read(compiled: Any, seconds: float, elements: int | None = None, bits: int = 16) -> Figures:
    """Reads the figures of a compiled program.

    Args:
      compiled: the result of `jax.jit(f).lower(...).compile()`.
      seconds: the time that its compilation took.
      elements: the number of elements of the array whose passes are counted; None: passes are not counted.
      bits: the bits of each element of that array.
    """
    program, memory, found = Program(compiled.as_text()), hlo.memory(compiled), hlo.collectives(compiled)
    return Figures(
        passes=None if elements is None else program.passes(elements, bits),
        bytes=program.bytes(),
        cycles=program.cycles(max) or None,
        cycles_usually=program.cycles(min) or None,
        temporary=memory.temporary,
        total=memory.total,
        collectives=len(found),
        collective_elements=sum(c.elements for c in found),
        collective_bytes=hlo.collective_bytes(compiled),
        seconds=round(seconds, 1),
    )
