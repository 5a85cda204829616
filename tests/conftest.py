"""Eight CPU devices for every test, rank promotion refused. (Warnings are errors: see pyproject.toml.)"""

import os

DEVICES = 8
# XLA's CPU client runs devices and their matrix products on pools of NPROC threads. A device that waits in a
# collective holds a thread, so with as many threads as devices they can wait for each other for ever.
os.environ["NPROC"] = str(2 * DEVICES)

# The files that take longest. They are started first, so that no process is left with one of them at the end.
LONGEST = ("recovery", "training", "processes", "updates", "parity", "recommend_command", "models", "batch_size_study")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionstart(session):
    if len(jax.devices()) != DEVICES:
        raise pytest.UsageError(
            f"the tests need {DEVICES} CPU devices, and JAX made {len(jax.devices())}: was it in use before conftest?"
        )


def pytest_configure(config):
    # Otherwise `--dist=loadfile` starts with the files of most tests, and ends with those of few that take minutes.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    first = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
