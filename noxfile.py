"""The project's checks: `nox -l` lists them, `nox -s NAME` runs one, and arguments after `--` go to pytest.

Each session makes its environment in `.nox`. `.ci/run` runs them in its own, with `--no-venv --no-install`.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "doctests", "docs"]

OLDEST = ".ci/oldest.txt"
PINNED = ".ci/constraints.txt"
PYTEST = ("python", "-m", "pytest", "-n", "2")


def install(session: nox.Session, *wanted: str, constraints: str | None = PINNED) -> None:
    """Installs packages; without `constraints`, their newest releases."""
    limits = ("--constraint", constraints) if constraints else ()
    # An outer constraint would be one more.
    session.install(*wanted, *limits, env={"PIP_CONSTRAINT": "", "UV_CONSTRAINT": ""})


def run_tests(session: nox.Session, folder: str) -> None:
    """Runs the tests of a folder, or only those that the command line names."""
    named = any(Path(argument.split("::")[0]).exists() for argument in session.posargs)
    session.run(*PYTEST, "--dist=loadfile", *([] if named else [folder]), *session.posargs)


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """Runs the library's tests with the oldest JAX and Flax that it supports."""
    install(session, "--editable", ".[test-library]", constraints=OLDEST)
    run_tests(session, "tests/library")


@nox.session(python="3.11")
def pinned(session: nox.Session) -> None:
    """Runs all tests with the versions that CI pins."""
    install(session, "--editable", ".[test]")
    run_tests(session, "tests")


# A Python that is not installed is left out with a warning; with CI=true that is an error.
@nox.session(python=["3.14", "3.13", "3.12"])
def newest(session: nox.Session) -> None:
    """Runs all tests with the newest releases, on each newer Python that is installed."""
    install(session, "--editable", ".[test]", constraints=None)
    run_tests(session, "tests")


@nox.session
def lint(session: nox.Session) -> None:
    """Checks the style and format of the code, and the workflows' schema."""
    install(session, "ruff", "check-jsonschema")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    workflows = map(str, sorted(Path(".github/workflows").glob("*.yml")))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)


@nox.session
def types(session: nox.Session) -> None:
    """Checks the types."""
    install(session, "--editable", ".[experiments]", "pyright")
    session.run("pyright")


@nox.session
def doctests(session: nox.Session) -> None:
    """Runs the examples in docstrings."""
    install(session, "--editable", ".[test]")
    session.run(*PYTEST, "--quiet", "--doctest-modules", "batchnorm_jax", "experiments", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the documentation into `site`, offline, with every broken link or missing name as an error."""
    install(session, "--editable", ".[docs,flax]", "ruff")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("python", ".ci/check_reference.py", "site")


@nox.session
def training(session: nox.Session) -> None:
    """Trains shortly on the default data, evaluates the run and checks its report."""
    install(session, "--editable", ".[experiments]")
    sizes = ("--batch_size=2048", "--epochs=3", "--warmup_epochs=1")
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        session.run("python", "-m", "experiments.train", *sizes, f"--workdir={run}")
        session.run("python", "-m", "experiments.evaluate", f"--checkpoint={run}")
        session.run("python", ".ci/check_training.py", run)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Executes the notebooks at small size."""
    install(session, "--editable", ".[notebooks]")
    execute = ("jupyter-nbconvert", "--to", "notebook", "--execute")
    # Two at a time: much of each is compilation, on one core.
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(session.run, *execute, "--output-dir", folder, str(path), env={"SMALL": "1"})
            for path in sorted(Path("colabs").glob("*.ipynb"))
        ]
        for run in runs:
            run.result()


@nox.session
def topology(session: nox.Session) -> None:
    """Compiles a layer for TPUs and GPUs that are not here."""
    install(session, "--editable", ".[test,topology]")
    command = ("python", "-m", "pytest", "--quiet", "tests/test_topology.py", "tests/test_dry_run.py")
    session.run(*command, *session.posargs, env={"JAX_PLATFORMS": "cpu"})
