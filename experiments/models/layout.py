"""How activations lie in memory: one choice for each kind of device, made here.

A model takes images as NHWC everywhere, and its parameters have the same shapes on every device.
"""

from typing import NamedTuple

import jax


class Layout(NamedTuple):
    """The order of the axes of activations.

    Attributes:
      name: the axes in order: N examples, H rows, W columns, C features.
    """

    name: str

    @property
    def feature_axis(self) -> int:
        """The axis of the features."""
        return self.name.index("C")

    @property
    def example_axis(self) -> int:
        """The axis of the examples."""
        return self.name.index("N")

    def from_nhwc(self, x: jax.Array) -> jax.Array:
        """Activations in this layout from NHWC ones."""
        return x.transpose([("NHWC").index(axis) for axis in self.name])

    def to_nhwc(self, x: jax.Array) -> jax.Array:
        """NHWC activations from ones in this layout."""
        return x.transpose([self.name.index(axis) for axis in "NHWC"])


NHWC = Layout("NHWC")
# With the examples innermost, every slice that a convolution on a CPU is made of is contiguous, a
# reduction over all but the features runs along memory, and ten channels fill no vector badly.
CHWN = Layout("CHWN")


def preferred() -> Layout:
    """The faster layout on the default backend."""
    return CHWN if jax.default_backend() == "cpu" else NHWC
