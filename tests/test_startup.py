"""Programs answer at once, and show no warnings but those that the user can act on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import _quiet
from tests.programs import PROGRAMS

ROOT = Path(__file__).parent.parent
# What takes long to import, and nothing needs that only lists flags.
SLOW = {
    "PIL", "array_record", "equinox", "haiku", "matplotlib", "orbax", "pandas", "scipy.linalg", "scipy.ndimage",
    "scipy.optimize", "scipy.special", "scipy.stats", "sklearn", "tensorboardX", "tensorflow", "tensorflow_datasets",
    "tensorstore", "torch",
}  # fmt: skip
# It makes pages of result files, and computes nothing.
SLOW_FOR = {"report": {"flax", "jax", "optax"}}


def python(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_imports_nothing_slow(name):
    done = python("-X", "importtime", "-m", f"experiments.{name}", "--help")
    assert done.returncode == 0 and "--helpfull" in done.stdout, done.stderr
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert {"absl.flags", "experiments._flags"} <= imported
    assert not imported & (SLOW | SLOW_FOR.get(name, set()))


DEPENDENCY = """
import logging
import warnings

from batchnorm_jax import NormWarning


def act():
    warnings.warn("the dependency warns")
    warnings.warn("the dependency is deprecated", DeprecationWarning)
    warnings.warn("the user passes what is deprecated", DeprecationWarning, stacklevel=2)
    warnings.warn("the norm warns", NormWarning)
    logging.getLogger("dependency").warning("the dependency logs a warning")
    logging.getLogger("dependency").error("the dependency logs an error")
"""
MINE = """
import logging
import warnings

import dependency

warnings.warn("my module warns")


def data():
    dependency.act()
    logging.getLogger("mine").warning("my module logs")
    raise ValueError("that is all")
"""


@pytest.fixture
def installed(tmp_path):
    """Returns a folder of installed packages, which is searched first if it is in PYTHONPATH."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("place", [".", "site-packages"])
def test_users_see_their_own_warnings_and_those_of_the_norm(installed, tmp_path, place):
    """The user's module is a file in the working directory, or an installed one that a flag names."""
    (installed / "dependency.py").write_text(DEPENDENCY)
    (tmp_path / place / "mine.py").write_text(MINE)
    path = os.pathsep.join([str(ROOT), str(installed)])
    arguments = ("-W", "default", "-m", "experiments.train", "--dataset=mine:data", "--workdir=run", "--num_devices=1")
    done = python(*arguments, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2 and "that is all" in done.stderr, done.stderr
    shown = ("my module warns", "my module logs", "the norm warns", "logs an error", "the user passes")
    assert [text for text in shown if text not in done.stderr] == []
    # A warning about a file is shown with a line of it.
    messages = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    hidden = ("the dependency warns", "the dependency is deprecated", "the dependency logs a warning")
    assert [line for line in messages if any(text in line for text in hidden)] == []


# It takes the place of a package that every program imports, warns, and is that package from then on.
AS_MSGSPEC = """
import logging
import sys
import warnings

warnings.warn("msgspec warns")
logging.getLogger("msgspec").warning("msgspec logs")
sys.path.remove(__file__.rpartition("/")[0])
del sys.modules["msgspec"]
import msgspec
"""


@pytest.mark.parametrize("module", ["train", "report", "studies.worker"])
def test_warnings_while_a_program_is_imported_are_hidden(installed, module):
    (installed / "msgspec.py").write_text(AS_MSGSPEC)
    path = os.pathsep.join([str(installed), str(ROOT)])
    assert "msgspec warns" in python("-c", "import msgspec", PYTHONPATH=path).stderr
    arguments = ["--help"] if module in PROGRAMS else []
    done = python("-W", "default", "-m", f"experiments.{module}", *arguments, PYTHONPATH=path)
    assert done.returncode == 0 and done.stderr == ""


def test_an_import_leaves_the_warnings_of_a_notebook_alone():
    done = python("-c", "import warnings; before = warnings.showwarning; import experiments.train; "
                  "print(warnings.showwarning is before)")  # fmt: skip
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("/home/me/mine.py", True),
        ("mine.py", True),
        ("/env/lib/python3.11/site-packages/batchnorm_jax/_warnings.py", True),
        ("/env/lib/python3.11/site-packages/flax/linen/module.py", False),
        ("/env/lib/python3.11/site-packages/six.py", False),
        ("/usr/lib/python3/dist-packages/numpy/__init__.py", False),
        (os.__file__, False),
        ("<frozen importlib._bootstrap>", False),
        ("sys", False),
    ],
)
def test_a_file_is_told_from_those_of_libraries(file, shown):
    assert _quiet.is_shown(file) == shown
