"""The order of activations in memory, chosen here for each kind of device.

On every device a model takes images as NHWC, and its parameters have the same shapes.
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
        """Returns NHWC activations in this layout."""
        return x.transpose([("NHWC").index(axis) for axis in self.name])

    def to_nhwc(self, x: jax.Array) -> jax.Array:
        """Returns activations of this layout as NHWC."""
        return x.transpose([self.name.index(axis) for axis in "NHWC"])


NHWC = Layout("NHWC")
# With the examples innermost, a convolution on a CPU is made of contiguous slices, a reduction over all axes but the
# features runs along memory, and as few as ten channels do not leave vector registers half empty.
CHWN = Layout("CHWN")


def preferred() -> Layout:
    """Returns the faster layout on the default backend."""
    return CHWN if jax.default_backend() == "cpu" else NHWC
