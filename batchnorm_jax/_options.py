"""The static options of one call of a norm, in one record from the public function down to its derivative rules."""

import dataclasses
from typing import Any, TypedDict, get_args

import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from batchnorm_jax._activations import static
from batchnorm_jax._checks import check_activation, check_choice, check_dtype, check_epsilon
from batchnorm_jax._collectives import Pool, axis_size, check_groups
from batchnorm_jax._operands import Operands
from batchnorm_jax._saving import SAVINGS, Saving, check_saving
from batchnorm_jax.typing import Activation, Axes, AxisName, Collective, Groups, SaveForBackward


@dataclasses.dataclass(frozen=True)
class NormOptions:
    """The static options of one call, under the names and with the defaults that they have in `batch_norm`.

    `resolved` checks them and gives the record that the core takes: hashable, as a static argument of `jit` and of a
    custom derivative rule must be. A new option of the norm is a field here and in `SharedKeywords`, a keyword of
    `batch_norm`, and a field of each module: the layers pass on every field that is here.

    Attributes:
      axis: the feature axis or axes; resolved: non-negative and ascending, a tuple.
      epsilon: added to the variance.
      axis_name: the name or names of the axes to reduce over.
      axis_index_groups: groups of the participants on `axis_name`; resolved: a tuple of tuples.
      span: the number of examples that are normalised together; None: all.
      collective: the way that devices pool their statistics.
      activation: an elementwise function, or None; resolved: hashable, and the function of `jax.nn` that it is.
      save_for_backward: the array that is kept for the backward pass.
      dtype: the dtype of the result; resolved: never None.
      caller: the public call, which errors name. It has no part in comparisons: it changes nothing in the program.
    """

    axis: Axes = -1
    epsilon: float = 1e-5
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    span: int | None = None
    collective: Collective = "psum"
    activation: Activation | None = None
    save_for_backward: SaveForBackward = "input"
    dtype: DTypeLike | None = None
    caller: str = dataclasses.field(default="batch_norm", compare=False)

    @property
    def features(self) -> tuple[int, ...]:
        """The resolved feature axes."""
        return (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)

    @property
    def pool(self) -> Pool:
        """The devices whose statistics are pooled with this device's."""
        return Pool(self.axis_name, self.axis_index_groups)

    @property
    def saving(self) -> Saving:
        """The properties of the choice of `save_for_backward`."""
        return SAVINGS[self.save_for_backward]

    def replace(self, **changes: Any) -> "NormOptions":
        """Returns the options with other values for some of them."""
        return dataclasses.replace(self, **changes)

    def check(self, *, has_residual: bool) -> None:
        """Checks every option by itself, and those that may conflict.

        Args:
          has_residual: a residual is added before the activation.

        Raises:
          ValueError: an option has a value that it cannot have, or two options conflict.
        """
        check_dtype(self.dtype, caller=self.caller)
        check_epsilon(self.epsilon, caller=self.caller)
        check_activation(self.activation, caller=self.caller)
        check_choice(self.collective, "collective", get_args(Collective), caller=self.caller)
        check_choice(self.save_for_backward, "save_for_backward", get_args(SaveForBackward), caller=self.caller)
        check_saving(self.save_for_backward, self.activation, has_residual=has_residual, caller=self.caller)

    def resolved(self, features: tuple[int, ...], operands: Operands) -> "NormOptions":
        """Returns the options as the core takes them, checked and hashable.

        Args:
          features: the feature axes of the input.
          operands: the arrays of the call, checked.

        Raises:
          ValueError: as `check`; epsilon is traced, the axes are not bound here, the groups do not split their
            participants, or a span counts examples along a feature axis.
        """
        if isinstance(self.epsilon, Tracer):
            raise ValueError(
                f"{self.caller}: epsilon must be a number, known when the function is traced; no gradient flows to it"
            )
        self.check(has_residual=operands.residual is not None)
        axis_name = tuple(self.axis_name) if isinstance(self.axis_name, list) else self.axis_name
        participants = axis_size(axis_name, caller=self.caller)
        groups = check_groups(self.axis_index_groups, participants, caller=self.caller)
        if self.span is not None and 0 in features:
            raise ValueError(
                f"{self.caller}: span={self.span} counts examples along axis 0, which is a feature axis here "
                f"(axis={self.axis})"
            )
        return self.replace(
            axis=features,
            epsilon=float(self.epsilon),
            axis_name=axis_name,
            axis_index_groups=groups,
            activation=static(self.activation),
            dtype=jnp.dtype(operands.result_dtype() if self.dtype is None else self.dtype),
        )


class SharedKeywords(TypedDict, total=False):
    """The fields of `NormOptions` for functions and modules that take them as keyword arguments; each adds its axis."""

    epsilon: float
    axis_name: AxisName | None
    axis_index_groups: Groups | None
    span: int | None
    collective: Collective
    activation: Activation | None
    save_for_backward: SaveForBackward
    dtype: DTypeLike | None


class NormKeywords(SharedKeywords, total=False):
    """The keyword arguments of `batch_norm`: the options, and arrays."""

    axis: Axes
    mask: ArrayLike | None
    shift: ArrayLike | None
    residual: ArrayLike | None
