"""Types of the fields of records, with the values that each field may hold.

Each is a plain Python type with bounds, which `msgspec.convert` checks when a file is read.
"""

import math
from typing import Annotated

from msgspec import Meta

_LARGEST_FLOAT = 1.7976931348623157e308
# JSON integers are unbounded; arrays and figures cannot hold larger ones than this.
_LARGEST_INT = 2**63 - 1
# 31 December 9999, the last day that the standard library's dates reach, in seconds since 1970.
_LAST_MOMENT = 253_402_300_799.0

# Finite real numbers.
Finite = Annotated[float, Meta(ge=-_LARGEST_FLOAT, le=_LARGEST_FLOAT)]
Positive = Annotated[float, Meta(gt=0, le=_LARGEST_FLOAT)]
NonNegative = Annotated[float, Meta(ge=0, le=_LARGEST_FLOAT)]
# An accuracy, a confidence or another share of a whole.
Share = NonNegative
# A scaling factor.
AboveOne = Annotated[float, Meta(gt=1, le=_LARGEST_FLOAT)]
# Any number; infinite where a fit has no bound.
Unbounded = float
# Whole numbers: at least 0, at least 1, of either sign.
Count = Annotated[int, Meta(ge=0, le=_LARGEST_INT)]
Size = Annotated[int, Meta(ge=1, le=_LARGEST_INT)]
Whole = Annotated[int, Meta(ge=-_LARGEST_INT, le=_LARGEST_INT)]
# Seconds since 1970.
Moment = Annotated[float, Meta(ge=0, le=_LAST_MOMENT)]

# The ends of an interval, infinite where there is no bound.
Interval = tuple[Unbounded, Unbounded]
# The ends of an interval, null where there is no bound.
OpenInterval = tuple[Finite | None, Finite | None]
# A value and the ends of its interval.
Bounded = tuple[Finite, Finite | None, Finite | None]

# The value of an option of a run, such as 128, "lars" or null.
Option = bool | Whole | Finite | str | None
# Options of a run by their names, as `TrainConfig` has them.
Options = dict[str, Option]
# Seconds by what they were spent on.
Seconds = dict[str, NonNegative]


def finite(value: float) -> float | None:
    """Returns a number, or None where it is not finite, which JSON has no way to write.

    Example:
      >>> finite(2.5), finite(float("inf"))
      (2.5, None)
    """
    return float(value) if math.isfinite(value) else None
