"""The options that `synchronize` may give to a norm of an existing model."""

import difflib
from collections.abc import Iterable
from typing import TypedDict

from batchnorm_jax.typing import AxisName, Collective, Groups


class SynchronizeOptions(TypedDict, total=False):
    """Options of `BatchNorm` that decide how a norm pools and averages, not what the model computes or keeps."""

    axis_index_groups: Groups | None
    span: int | None
    collective: Collective
    use_fast_variance: bool
    unbiased_running_var: bool
    skip_nonfinite: bool
    check_conditioning: bool
    momentum: float


class PoolingOptions(TypedDict, total=False):
    """Options of `BatchNorm` that decide which examples are pooled."""

    axis_name: AxisName | None
    axis_index_groups: Groups | None
    span: int | None


class GivenOptions(SynchronizeOptions, total=False):
    """Options that `synchronize` sets: those that it was given, and the axes to reduce over."""

    axis_name: AxisName | None


def check_synchronize(options: Iterable[str]) -> None:
    """Raises a ValueError for an option that `synchronize` does not take."""
    known = tuple(SynchronizeOptions.__annotations__)
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"synchronize: {name!r} is not an option here{hint} Options are {', '.join(known)}")


def with_axes(axis_name: AxisName | None, options: SynchronizeOptions) -> GivenOptions:
    """Returns the options together with the axes; the groups of a norm belong to its own axis, and go with it."""
    return {"axis_name": axis_name, "axis_index_groups": None, **options}


def pooling_of(options: GivenOptions) -> PoolingOptions:
    """Returns the options that decide which examples are pooled, as far as they are given."""
    names = PoolingOptions.__annotations__
    given: PoolingOptions = {}
    for name in names:
        if options.get(name) is not None:
            given[name] = options[name]
    return given
