"""The order of activations in memory, chosen for each kind of device.

The layout is internal to a model: on every device the model takes NHWC images, and its parameters have the same shapes.
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
        """Converts NHWC activations to this layout."""
        return x.transpose([("NHWC").index(axis) for axis in self.name])

    def to_nhwc(self, x: jax.Array) -> jax.Array:
        """Converts activations in this layout to NHWC."""
        return x.transpose([self.name.index(axis) for axis in "NHWC"])


NHWC = Layout("NHWC")
# With the examples innermost, a convolution on a CPU consists of contiguous slices, a reduction over all axes except
# the features runs along memory, and vector registers are full even with as few as ten channels.
CHWN = Layout("CHWN")


def preferred() -> Layout:
    """Returns the faster layout on the default backend."""
    return CHWN if jax.default_backend() == "cpu" else NHWC
