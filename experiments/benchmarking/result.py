"""The file of a suite: its rows, and what made them."""

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "torch", "dm-haiku", "equinox", "libtpu", "jax-cuda12-plugin")


def write(rows: Any, path: Path, arguments: Sequence[str]) -> Path:
    """Writes rows and the command and versions that made them.

    Args:
      rows: anything that JSON can hold.
      path: of the file; its folder is made if need be.
      arguments: of `experiments.benchmark`.

    Returns:
      The path.
    """
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    made_by = {
        "command": "python -m experiments.benchmark " + " ".join(arguments),
        "python": platform.python_version(),
        **{name: installed[name] for name in PACKAGES if name in installed},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made_by": made_by, "rows": rows}, indent=2) + "\n")
    return path
