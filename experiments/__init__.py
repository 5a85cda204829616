"""Trains models, and measures and chooses batch sizes: `python -m experiments.NAME` in a checkout.

Installed by `pip install 'batchnorm_jax[experiments]'`, this package is `batchnorm_jax_experiments`, and its programs
are the commands `batchnorm-NAME`.
"""

import importlib.util
import sys
from pathlib import Path

from . import _quiet

# What the extra `experiments` installs, by the names of import.
_NEEDED = (
    "absl",
    "flax",
    "matplotlib",
    "msgspec",
    "optax",
    "orbax",
    "scipy",
    "sklearn",
    "tensorboardX",
    "tensorflow_datasets",
)


def _say_interrupted(kind, error, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped by Ctrl-C", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, traceback)


# While Python looks up the module to run, a program or a worker process, `sys.argv[0]` is "-m". The imports take a
# second or more. Neither Ctrl-C during them nor a package that is not installed should print a traceback, and
# libraries should not warn.
if sys.argv[:1] == ["-m"] or Path(sys.argv[0]).name.startswith("batchnorm-"):
    sys.excepthook = _say_interrupted
    if _missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        sys.exit(f"error: not installed: {', '.join(_missing)}; pip install 'batchnorm_jax[experiments]'")
    _quiet.hide_warnings_of_libraries()
