"""Shapes of what a file holds, and a check of a value against one; the message names the place that does not fit.

A shape is a function of a value that raises `MismatchError`: `text`, `flag`, `anything`, or what one of `number`,
`matching`, `whole`, `optional`, `every`, `items`, `table` and `record` makes.
"""

import math
import re
from collections.abc import Callable
from typing import Any

Shape = Callable[[Any], None]
# Whole numbers of JSON have no end, and those of arrays and figures do.
MOST = 2**63


class MismatchError(ValueError):
    """A value that does not fit; `where` is the path of keys to it, innermost first."""

    def __init__(self, required: str, value: Any):
        shown = type(value).__name__ if isinstance(value, dict | list) else f"{value!r:.40}"
        super().__init__(f"must be {required}, and is {shown}")
        self.where: list[str] = []

    def __str__(self):
        place = ".".join(reversed(self.where)) or "the whole"
        return f"{place} {super().__str__()}"


def fits(shape: Shape, value: Any) -> bool:
    """Whether a value has a shape."""
    try:
        shape(value)
    except MismatchError:
        return False
    return True


def anything(value: Any) -> None:
    """Fits every value."""
    del value


def text(value: Any) -> None:
    """Fits text."""
    if not isinstance(value, str):
        raise MismatchError("text", value)


def flag(value: Any) -> None:
    """Fits true and false."""
    if not isinstance(value, bool):
        raise MismatchError("true or false", value)


def matching(pattern: str) -> Shape:
    """A shape that fits text that a regular expression matches from end to end."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise MismatchError(f"text of the form {pattern}", value)

    return check


def number(
    least: float = -math.inf, *, above: float = -math.inf, below: float = math.inf, finite: bool = True
) -> Shape:
    """A shape that fits numbers, from `least` on, or greater than `above`; those that are not finite on request.

    Args:
      least: the smallest that fits.
      above: fits no more, if it is given.
      below: fits no more, if it is given.
      finite: infinities and what is not a number do not fit.

    Example:
      >>> number(above=0)(0.5)
      >>> number(least=0)(-1)
      Traceback (most recent call last):
      ...
      experiments._shapes.MismatchError: the whole must be a finite number of at least 0, and is -1
    """
    limits = f" of at least {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
    limits += f" below {below:g}" if below < math.inf else ""

    def check(value: Any) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and isinstance(value, int) and abs(value) >= MOST:
            is_number = False
        # Whatever is not a number compares as false.
        inside = is_number and (not finite or math.isfinite(value)) and not (value < least or value <= above)
        inside = inside and not (below < math.inf and value >= below)
        if not inside:
            raise MismatchError(f"a {'finite ' if finite else ''}number{limits}", value)

    return check


def whole(least: int = -MOST) -> Shape:
    """A shape that fits whole numbers from `least` on."""

    def check(value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < MOST:
            raise MismatchError(f"a whole number{f' of at least {least}' if least > -MOST else ''}", value)

    return check


def optional(shape: Shape) -> Shape:
    """A shape that also fits null."""
    return lambda value: None if value is None else shape(value)


def every(*shapes: Shape) -> Shape:
    """A shape that fits what fits each of several."""

    def check(value: Any) -> None:
        for shape in shapes:
            shape(value)

    return check


def items(first: Shape, *others: Shape, least: int = 0) -> Shape:
    """A shape that fits lists: of one shape, of `least` entries or more; or of several, an entry each."""
    shapes = (first, *others)

    def check(value: Any) -> None:
        if not isinstance(value, list):
            raise MismatchError("a list", value)
        if others and len(value) != len(shapes):
            raise MismatchError(f"a list of {len(shapes)} entries", value)
        if len(value) < least:
            raise MismatchError(f"a list of at least {least} entries", value)
        for place, entry in enumerate(value):
            _inside(shapes[place] if others else first, entry, str(place))

    return check


def table(shape: Shape, *, least: int = 0) -> Shape:
    """A shape that fits objects with any keys, whose values are of one shape."""

    def check(value: Any) -> None:
        if not isinstance(value, dict) or len(value) < least:
            raise MismatchError(f"an object{f' of at least {least} entries' if least else ''}", value)
        for name, entry in value.items():
            _inside(shape, entry, name)

    return check


def record(needed: dict[str, Shape], may: dict[str, Shape] | None = None) -> Shape:
    """A shape that fits objects with the keys of `needed`, perhaps those of `may`; other keys are not looked at."""

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise MismatchError("an object", value)
        for name, shape in needed.items():
            if name not in value:
                raise MismatchError(f"an object with the entry {name!r}", value)
            _inside(shape, value[name], name)
        for name, shape in (may or {}).items():
            if name in value:
                _inside(shape, value[name], name)

    return check


def _inside(shape: Shape, value: Any, name: str) -> None:
    try:
        shape(value)
    except MismatchError as error:
        error.where.append(f"{name:.40}")
        raise
