"""Registers that find their entries: each module of a package declares one."""

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def modules_of(package: str, path: Iterable[str]) -> dict[str, ModuleType]:
    """Imports every module of a package and returns them by their names, in alphabetical order.

    Args:
      package: the dotted name of the package.
      path: its `__path__`.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(path))
    return {name: importlib.import_module(f"{package}.{name}") for name in names}


def entries_of(package: str, path: Iterable[str], attribute: str, kind: type[T]) -> dict[str, T]:
    """Returns what every module of a package declares, by the name of the module.

    Args:
      package: the dotted name of the package.
      path: its `__path__`.
      attribute: the name of the declaration in each module.
      kind: the type of a declaration.

    Raises:
      TypeError: a module has no such declaration.
    """
    entries = {}
    for name, module in modules_of(package, path).items():
        entry = getattr(module, attribute, None)
        if not isinstance(entry, kind):
            found = "nothing" if entry is None else type(entry).__name__
            raise TypeError(f"{package}.{name} must declare {attribute} of type {kind.__name__}, not {found}")
        entries[name] = entry
    return entries
