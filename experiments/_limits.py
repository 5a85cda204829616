"""Checks the limits of options, which are declared beside each option, for every program and for `TrainConfig`.

| limit | meaning |
|---|---|
| `least`, `above` | the smallest number, included or not |
| `most`, `below` | the largest number, included or not |
| `among` | the valid names |
| `form` | a function of the option's name and its text, which raises `UsageError` |
| `says` | the requirement in words, in place of the words that follow from the numbers |
| `kind` | the kind of thing that a name names, if it differs from the option's name |
| `is_made` | marks a folder for results, which the program creates |

A number without limits must be finite and fit 32 bits; a text must be printable and not empty.
"""

import dataclasses
import math
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._errors import UsageError, shown, unknown_name

# Steps, sizes and labels are int32 on the devices.
MAX_WHOLE = 2**31 - 1
# The product of two such numbers stays finite in float32.
MAX_NUMBER = 1e18
MAX_TEXT_CHARACTERS = 4_000
# The limit of all common file systems for one part of a path.
MAX_PATH_PART_BYTES = 255
MAX_FOLDER_DEPTH = 100


def option(default: Any, help: str, **limits: Any) -> Any:
    """Returns a field of a dataclass of options, with its help and its limits."""
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def option_as_in(dataclass: type, name: str, default: Any, help: str) -> Any:
    """Returns a field with the limits of a field of another dataclass, and a default and a help of its own."""
    (limits,) = (field.metadata for field in dataclasses.fields(dataclass) if field.name == name)
    return dataclasses.field(default=default, metadata={**limits, "help": help})


def check(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Checks the value of an option against its limits; of a list, each entry.

    Args:
      name: the name of the option, without dashes.
      value: a number, a text, a list of these, or None, which every option accepts.
      limits: limits by name, from the table above; other entries are ignored.

    Raises:
      UsageError: the value is not within the limits; the message names the option and what is required.

    Example:
      >>> check("epochs", 0, {"least": 1})
      Traceback (most recent call last):
      ...
      experiments._errors.UsageError: --epochs must be at least 1, not 0
    """
    if isinstance(value, list | tuple):
        if not value:
            raise UsageError(f"--{name} is empty; name at least one, or leave --{name} out")
        for one in value:
            check(name, one, limits)
    elif isinstance(value, str):
        _check_text(name, value, limits)
    elif value is not None and not isinstance(value, bool):
        _check_number(name, value, limits)


def _check_text(name: str, text: str, limits: Mapping[str, Any]) -> None:
    if not text.strip():
        raise UsageError(f"--{name} is empty; give a value, or leave --{name} out")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise UsageError(f"--{name} must consist of printable characters, not {shown(text)}")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise UsageError(f"--{name} must have at most {MAX_TEXT_CHARACTERS:,} characters, not {len(text):,}")
    if "among" in limits and text not in limits["among"]:
        raise unknown_name(limits.get("kind", name), text, limits["among"], hint=f" The flag is --{name}.")
    if "form" in limits:
        limits["form"](name, text)


def _check_number(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    whole = not isinstance(value, float)
    largest = MAX_WHOLE if whole else MAX_NUMBER
    most = limits.get("most", largest)
    fits = (
        math.isfinite(value)
        and value <= most
        and limits.get("least", -largest) <= value
        and ("above" not in limits or limits["above"] < value)
        and ("below" not in limits or value < limits["below"])
    )
    if fits:
        return
    if "says" in limits:
        raise UsageError(f"--{name} {limits['says']}, not {shown(value)}")
    bounds = [f"at least {limits['least']}"] if "least" in limits else []
    bounds += [f"greater than {limits['above']}"] if "above" in limits else []
    bounds += [f"less than {limits['below']}"] if "below" in limits else []
    # The upper limit that every number has is mentioned only to a user who exceeds it.
    if not bounds or "most" in limits or value > most:
        bounds += [f"at most {most:,}" if whole else f"at most {most:g}"] if "below" not in limits else []
    finite = "" if whole or "below" in limits else "finite and "
    raise UsageError(f"--{name} must be {finite}{' and '.join(bounds)}, not {shown(value)}")


def folder(name: str, text: str) -> None:
    """Refuses a path that no file system accepts as a folder, or that is a file."""
    parts = Path(text).parts
    if len(parts) > MAX_FOLDER_DEPTH:
        raise UsageError(f"--{name} must be at most {MAX_FOLDER_DEPTH} folders deep, not {len(parts):,}")
    longest = max((len(part.encode(errors="replace")) for part in parts), default=0)
    if longest > MAX_PATH_PART_BYTES:
        raise UsageError(
            f"--{name}: one part of the path has {longest:,} bytes, and file systems allow {MAX_PATH_PART_BYTES}; give "
            f"a shorter --{name}"
        )
    if os.path.lexists(text) and not os.path.isdir(text):
        raise UsageError(f"--{name}={shown(text)} is not a folder; give another --{name}")


def folder_there(name: str, text: str) -> None:
    """Refuses a path that is not an existing folder."""
    folder(name, text)
    if not os.path.isdir(text):
        raise UsageError(
            f"--{name}={shown(text)}: there is no such folder; give the folder of a run, such as runs/NAME"
        )


def dataset(name: str, text: str) -> None:
    """Refuses a text that has neither the form of a data set's name nor that of `package.module:function`."""
    if not re.fullmatch(r"[^\W\d]\w*(?:[./:+-][\w*]+)*", text):
        raise UsageError(
            f"--{name} must be a name such as mnist or cifar10:3.0.2, or package.module:function, not {shown(text)}"
        )


def address(name: str, text: str) -> None:
    """Refuses a text that is not of the form HOST:PORT."""
    found = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9_.-]*)):([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[1]) <= 65535:
        raise UsageError(
            f"--{name} must be HOST:PORT, with a host name or an address and a port from 1 to 65535, such as "
            f"10.0.0.1:1234, not {shown(text)}"
        )
