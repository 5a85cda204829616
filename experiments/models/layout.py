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
    """Returns the faster layout on the devices that the model is traced for.

    Those are the devices of the mesh, which may be of a topology that is not here; without a mesh, the default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return CHWN if platform == "cpu" else NHWC
