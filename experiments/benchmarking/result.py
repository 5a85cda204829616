"""Writes the file of a suite: its rows, and the command and the versions that made them."""

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from .. import _commands, _files
from ..records.benchmarks.result import ResultFile

PACKAGES = ("jax", "jaxlib", "flax", "torch", "dm-haiku", "equinox", "libtpu", "jax-cuda12-plugin")


def write(rows: object, path: Path, arguments: Sequence[str]) -> Path:
    """Writes rows, and the command and the versions that made them.

    Args:
      rows: the rows of the suite.
      path: the path of the file, whose folder is made if it does not exist.
      arguments: the arguments of `experiments.benchmark`.

    Returns:
      The path.
    """
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    made_by = {
        "command": _commands.shareable_command([*_commands.start("benchmark"), *arguments]),
        "python": platform.python_version(),
        **{name: installed[name] for name in PACKAGES if name in installed},
    }
    _files.make_folder(path.parent)
    _files.write_json(path, ResultFile(made_by=made_by, rows=rows))
    return path
