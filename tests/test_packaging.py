"""The layers of the code, and the wheel."""

import ast
import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import batchnorm_jax
import experiments

ROOT = Path(__file__).parent.parent

# A user's own data and model, which know the installed package.
MINE = """
import numpy as np
from flax import linen as nn

from batchnorm_jax_experiments.data import Dataset, Examples


def dataset():
    images = np.arange(64 * 4, dtype=np.uint8).reshape(64, 2, 2, 1)
    examples = Examples(images, (np.arange(64) % 2).astype(np.int32))
    return Dataset("mine", examples, {"test": examples}, 2)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(2)(images.reshape(len(images), -1))


def model(num_classes):
    return Dense()
"""

# A module may import those of its own row and of the rows above it.
LIBRARY = [
    {"typing"},
    {"_compat", "_extras"},
    {"_arrays", "_activations", "_collectives", "_flow", "_peers", "_platforms", "_synchronize", "_warnings"},
    {"_checks", "_pairs", "_reductions", "_saving"},
    {"_moments", "_operands"},
    {"_options", "_running"},
    {"_spans", "_statistics"},
    {"_core"},
    {"_remat"},
    {"_inference", "_batch_norm"},
    {"_folding", "_renorm", "_recalibrate"},
    {"_layer"},
    {"batch_size", "linen", "nnx", "torch_interop", "__init__"},
]
EXPERIMENTS = [
    {"_errors", "_commands", "_quiet", "_register"},
    {"_limits", "_variants"},
    {"records"},
    {"_files"},
    {"_locks"},
    {"_workdirs"},
    {"_users", "compiled"},
    {"data", "models", "problems"},
    {"training"},
    {"benchmarking", "studies"},
    {"_flags", "_help"},
    {"train", "evaluate", "batch_size_study", "branch", "recommend", "norm_study", "benchmark", "report"},
]
# The rooms of `experiments.training`, and what stands beside them.
TRAINING = [
    {"state", "clock", "terminal"},
    {"machine", "storage", "recipe"},
    {"config"},
    {"step"},
    {"evaluation", "noise", "trainee", "problem_state"},
    {"progress"},
    {"loop"},
    {"extending"},
    {"of_images", "of_problem", "as_problem", "estimate"},
    {"session", "dry_run"},
]
# Reads result files only.
STANDALONE = {"reporting": {"_errors", "_commands", "_register", "_files", "_workdirs", "records", "reporting"}}


def imports(path):
    """The dotted names that a file imports, relative ones in full."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def component(name, package):
    """The part of `package` that a dotted name leads to; None if it leads elsewhere."""
    inside = name.removeprefix(f"{package}.")
    return inside.split(".")[0] if inside != name else None


@pytest.mark.parametrize(
    ("package", "layers"),
    [("batchnorm_jax", LIBRARY), ("experiments", EXPERIMENTS), ("experiments.training", TRAINING)],
)
def test_imports_go_downward(package, layers):
    rank = {name: i for i, layer in enumerate(layers) for name in layer}
    folder = ROOT / package.replace(".", "/")
    for path in folder.rglob("*.py"):
        here = path.relative_to(folder).parts[0].removesuffix(".py")
        if path == folder / "__init__.py" and package != "batchnorm_jax":
            continue
        for name in imports(path):
            there = component(name, package)
            if there is None:
                continue
            if here in STANDALONE:
                assert there in STANDALONE[here], f"{path} imports {name}"
            elif there not in STANDALONE:
                assert rank[there] <= rank[here], f"{path} imports {name}"
                same_layer_library = package == "batchnorm_jax" and rank[there] == rank[here] and there != here
                assert not same_layer_library, f"{path} imports {name}"


def test_the_core_imports_neither_flax_nor_the_experiments():
    for path in (ROOT / "batchnorm_jax").rglob("*.py"):
        allowed = {"linen": {"flax"}, "nnx": {"flax"}, "batch_size": {"optax", "scipy"}}.get(path.parent.name, set())
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots & {"flax", "experiments", "optax", "scipy", "torch"} <= allowed, path


def test_experiments_import_themselves_by_relative_names():
    """The wheel holds them under another name."""
    for path in (ROOT / "experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module)
            assert not any(name.split(".")[0] == "experiments" for name in names), f"{path}:{node.lineno}"


def test_experiments_use_the_public_library_and_only_entry_points_use_flags():
    for path in (ROOT / "experiments").rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            assert not (parts[0] == "batchnorm_jax" and any(p.startswith("_") for p in parts[1:])), f"{path}: {name}"
            assert name != "absl.flags" or path.parent == ROOT / "experiments", path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (made,) = folder.glob("*.whl")
    return made


def listed(*arguments):
    """The paths that git lists."""
    command = ["git", "ls-files", "-z", *arguments]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return [path for path in said.split("\0") if path]


def test_the_wheel_holds_both_packages_whole_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {"batchnorm_jax": "batchnorm_jax", "experiments": "batchnorm_jax_experiments"}
    # A checkout may hold what no commit does; a copy of its files may have no commit at all.
    tracked = listed(*folders) or listed("--others", "--exclude-standard", *folders)
    assert len(tracked) > 100
    for path in tracked:
        folder, _, rest = path.partition("/")
        if (ROOT / path).exists():
            assert f"{folders[folder]}/{rest}" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(folders.values())


def test_the_library_works_from_the_wheel_alone(wheel):
    code = "import batchnorm_jax; from batchnorm_jax import batch_size, linen, nnx; print(batchnorm_jax.__file__)"
    said = run_from(wheel, ["-c", code]).stdout
    assert str(wheel) in said


def run_from(wheel, arguments, **options):
    """Runs Python in the wheel's folder, away from the checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=wheel.parent,
        env={"PYTHONPATH": str(wheel), "JAX_PLATFORMS": "cpu", "NPROC": "16"},
        **options,
    )


def scripts():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def test_every_program_is_a_console_script():
    programs = {path.stem for path in (ROOT / "experiments").glob("*.py") if "\ndef run() -> None:" in path.read_text()}
    assert programs == EXPERIMENTS[-1]
    assert scripts() == {
        f"batchnorm-{name.replace('_', '-')}": f"batchnorm_jax_experiments.{name}:run" for name in programs
    }


def test_the_programs_work_from_the_wheel_alone(wheel, tmp_path):
    """They run without a checkout, name themselves as commands, and the worker of a study finds them."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)

    def command(name, *arguments):
        module, function = scripts()[name].split(":")
        code = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; sys.exit({function}())"
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"JAX_PLATFORMS": "cpu", "NPROC": "16"},
        )
        assert "experiments." not in ended.stdout.replace("batchnorm_jax_experiments.", "")
        return ended

    (tmp_path / "mine.py").write_text(MINE)
    own = ["--dataset=mine:dataset", "--model=mine:model", "--num_devices=1"]
    trained = command("batchnorm-train", *own, "--batch_size=16", "--steps=2", "--warmup_epochs=0", "--workdir=run")
    assert trained.returncode == 0, trained.stderr
    assert "evaluate  batchnorm-evaluate --checkpoint=run" in trained.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["command"].startswith("batchnorm-train --data")
    studied = command("batchnorm-recommend", *own, "--budget_minutes=0.02", "--workdir=found")
    assert studied.returncode == 0, studied.stderr
    assert (tmp_path / "found" / "recommendation.json").exists()
    assert "batchnorm_jax_experiments.studies.beginning" in (tmp_path / "found" / "worker.log").read_text()
    helped = command("batchnorm-evaluate", "--help")
    assert "batchnorm-evaluate runs/NAME" in helped.stdout and "--checkpoint" in helped.stdout


def test_one_version_and_one_set_of_facts():
    """The citation and the changelog know the version of the package, and no extra asks for what is not declared."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: {re.escape(batchnorm_jax.__version__)}$", citation, re.MULTILINE)
    assert re.search(rf"^license: {project['license']}$", citation, re.MULTILINE)
    assert f"\n## {batchnorm_jax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    extras = project["optional-dependencies"]
    own = {
        name
        for wanted in itertools.chain(*extras.values())
        for group in re.findall(r"^batchnorm_jax\[(.*)\]$", wanted)
        for name in group.split(",")
    }
    assert own and own <= set(extras)
    # The wheel tells other spellings as these, and the pip of Python 3.11 finds none but what the wheel tells.
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in extras)


def test_a_program_looks_for_what_its_extra_installs():
    """Checks that each module that a program needs at once belongs to a package that its extra declares."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = {re.match(r"[\w.-]+", wanted)[0].lower() for wanted in extras["experiments"] + extras["flax"]}
    owners = importlib.metadata.packages_distributions()
    for name in experiments._NEEDED:
        assert {owner.lower() for owner in owners[name]} & declared, name
