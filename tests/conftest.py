"""Gives every test eight CPU devices, and forbids rank promotion. (Warnings are errors: see pyproject.toml.)"""

import os

DEVICES = 8
# XLA's CPU client runs devices and their matrix products on pools of NPROC threads. A device that waits in a
# collective holds a thread, so with no more threads than devices they can deadlock.
os.environ["NPROC"] = str(2 * DEVICES)

# The slowest test files. They are started first, so that in the end no process runs one of them alone.
SLOWEST_FILES = (
    "recovery",
    "training",
    "processes",
    "updates",
    "parity",
    "recommend_command",
    "models",
    "batch_size_study",
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionstart(session):
    if len(jax.devices()) != DEVICES:
        raise pytest.UsageError(
            f"the tests need {DEVICES} CPU devices, not {len(jax.devices())}; import no module that uses JAX before "
            "tests/conftest.py"
        )


def pytest_configure(config):
    # Otherwise `--dist=loadfile` starts with the files that have most tests, and ends with the few, slow tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    first = [f"test_{name}.py" for name in SLOWEST_FILES]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Frees what a file's tests compiled, or the test processes grow to several gigabytes and slow down."""
    yield
    jax.clear_caches()
