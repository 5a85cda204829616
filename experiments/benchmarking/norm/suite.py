"""The norm suite: exactness, collectives, memory and time of the layer, each part measured and printed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...records.benchmarks.norm import NormFile, NormRows
from ...training.machine import devices
from ..suite import Chosen, Keep, Suite, forget
from ..topology.suite import SUITE as COMPILED
from . import accuracy, collectives, layers, memory, speed, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Part(NamedTuple):
    """A part of the suite.

    Attributes:
      measure: a function that returns the value for the field of `NormRows` of the same name, and may give a part of it
        to the `Keep` before.
      lines: a function that returns the lines of the printed table; those of a part of the value come first.
    """

    measure: Callable[[Chosen, Keep], Any]
    lines: Callable[[Any], list[str]]


PARTS = {
    "accuracy": Part(lambda *_: accuracy.run(), table.accuracy_lines),
    "collectives": Part(
        lambda chosen, _: collectives.run(rounds=chosen.rounds, seconds=chosen.seconds), table.collectives_lines
    ),
    "memory": Part(lambda *_: memory.run(), table.memory_lines),
    "speed": Part(speed.on_cpu, table.speed_lines),
    "gpu": Part(speed.on_gpu, table.speed_lines),
}


def run(chosen: Chosen, keep: Keep = forget) -> NormRows:
    """Measures parts of the suite, and prints and keeps each, and each row of a part on speed, when it is done.

    Args:
      chosen: the parts, names from `PARTS`, and the peers and the timing of the part on speed.
      keep: a function that is given the parts so far.

    Returns:
      The parts. On a machine without a GPU, `gpu` holds the cases and a note that they were not measured.
    """
    # Otherwise freed memory would go back to the system, and the timings would be those of fresh pages.
    devices.keep_freed_memory()
    results: dict[str, Any] = {}
    for name in chosen.parts:
        part, printed = PARTS[name], 0

        def show(value: Any, name: str = name, part: Part = part) -> None:
            nonlocal printed
            results[name] = value
            lines = part.lines(value)
            print("\n".join(lines[printed:]), flush=True)
            printed = len(lines)
            keep(NormRows(**results))

        show(part.measure(chosen, show))
        print()
    return NormRows(**results)


def _draw(path: Path) -> "Figure":
    from ...reporting import norm_figure

    return norm_figure(path)


SUITE = Suite(
    name="norm",
    help="the layer",
    parts=tuple(PARTS),
    peers=layers.PEERS,
    seconds=0.5,
    measure=lambda chosen, _, keep: run(chosen, keep),
    file=NormFile,
    draw=_draw,
    compiled=COMPILED,
)
