"""Models of the time of an all-reduce over an accelerator's links, from published latencies and bandwidths.

Sources:
  TPUs: Austin et al., "How to Scale Your Model", https://jax-ml.github.io/scaling-book, 2025; part 2 for the links and
    their bandwidth, part 3 for the time of a collective and the least time per hop, 1 us.
  GPUs: the model by which NCCL chooses its algorithm, `ncclTopoTuneModel` in src/graph/tuning.cc of
    https://github.com/NVIDIA/nccl, 2026: a tree, with LL, the protocol for small messages.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Torus:
    """Chips on a grid, each linked to its neighbours.

    Attributes:
      axes: the number of axes of the grid, 2 or 3.
      largest: the number of chips that these links connect.
      wraps: a function (size of an axis, grid) -> whether that axis is closed to a ring.
      link_bytes_per_second: the bandwidth of one link in one direction.
      hop_seconds: the least time from one chip to the next.
    """

    axes: int
    largest: int
    wraps: Callable[[int, tuple[int, ...]], bool]
    link_bytes_per_second: float
    hop_seconds: float = 1e-6

    def all_reduce_seconds(self, devices: int, size: float) -> float:
        """Returns the time of an all-reduce as a reduce-scatter and an all-gather, along one axis after another.

        Args:
          devices: the number of devices, a power of two.
          size: the number of bytes that each device contributes.
        """
        grid = self.grid(devices)
        hops, links = 0, 0
        for n in grid:
            ring = self.wraps(n, grid)
            hops += n // 2 if ring else n - 1
            links += 0 if n == 1 else 2 if ring else 1
        if not links:
            return 0.0
        return 2 * max(hops * self.hop_seconds, size / (links * self.link_bytes_per_second))

    def grid(self, devices: int) -> tuple[int, ...]:
        """Returns the most nearly square or cubic grid of a number of chips."""
        doublings = devices.bit_length() - 1
        if devices < 1 or 2**doublings != devices or devices > self.largest:
            raise ValueError(f"devices must be a power of two up to {self.largest}; got {devices}")
        return tuple(2 ** ((doublings + i) // self.axes) for i in range(self.axes))


@dataclass(frozen=True)
class Nodes:
    """GPUs in nodes, joined by NVLink within a node and by InfiniBand or Ethernet between nodes.

    Attributes:
      per_node: the number of GPUs per node.
      largest: the largest number of GPUs for which times are computed.
      base_seconds: the fixed time of every all-reduce.
      link_seconds: the time per step within a node.
      network_seconds: the time per step between nodes.
      bytes_per_second: the bandwidths for small messages, within a node and between nodes.
    """

    per_node: int = 8
    largest: int = 4096
    base_seconds: float = 6.8e-6
    link_seconds: float = 0.6e-6
    network_seconds: float = 5.0e-6
    bytes_per_second: tuple[float, float] = (141e9, 35e9)

    def all_reduce_seconds(self, devices: int, size: float) -> float:
        """Returns the time of an all-reduce as a tree, which is at least as fast as a ring for small messages.

        Args:
          devices: the number of devices: at most one node, or several whole nodes.
          size: the number of bytes that each device contributes.
        """
        if devices == 1:
            return 0.0
        nodes = max(1, devices // self.per_node)
        steps = (devices // nodes - 1) * self.link_seconds + math.floor(math.log2(nodes)) * self.network_seconds
        return self.base_seconds + 2 * steps + 2 * size / self.bytes_per_second[nodes > 1]


Interconnect = Torus | Nodes


def _full_axis(n: int, _: tuple[int, ...]) -> bool:
    return n == 16


def _whole_cubes(n: int, grid: tuple[int, ...]) -> bool:
    """Returns whether an axis is a ring: optical switches close the axes of grids made of whole 4x4x4 cubes."""
    return n > 1 and all(side % 4 == 0 for side in grid)


INTERCONNECTS: dict[str, Interconnect] = {
    "v5e": Torus(2, 256, _full_axis, 4.5e10),
    "v5p": Torus(3, 4096, _whole_cubes, 9e10),
    "v6e": Torus(2, 256, _full_axis, 9e10),
    "h100": Nodes(),
}
