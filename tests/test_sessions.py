"""Contributors, the workflows and CI run the sessions of noxfile.py, on the Pythons that pyproject.toml declares."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NOXFILE = (ROOT / "noxfile.py").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}


def pythons_of_sessions():
    """Returns for each session the Pythons that it names; nox itself is not needed."""
    found = {}
    for node in ast.parse(NOXFILE).body:
        for decorator in getattr(node, "decorator_list", []):
            if ast.unparse(decorator).startswith("nox.session"):
                keywords = {k.arg: ast.literal_eval(k.value) for k in getattr(decorator, "keywords", [])}
                python = keywords.get("python", [])
                found[node.name] = [python] if isinstance(python, str) else python
    return found


SESSIONS = pythons_of_sessions()


def jobs_of_tests():
    """Returns the entries of the matrices in tests.yml."""
    for job in WORKFLOWS["tests"]["jobs"].values():
        matrix = job["strategy"]["matrix"]
        yield from matrix.get("include", [])
        yield from ({"session": name} for name in matrix.get("session", []))


def test_contributing_names_every_session():
    assert set(re.findall(r"nox -s (\w+)", (ROOT / "CONTRIBUTING.md").read_text())) == set(SESSIONS)


def test_each_session_says_what_it_does():
    for node in ast.parse(NOXFILE).body:
        if isinstance(node, ast.FunctionDef):
            assert re.match(r"[A-Z][a-z]+s\b.*\.$", ast.get_docstring(node) or ""), node.name


def test_the_workflows_run_every_session():
    named = [entry["session"] for entry in jobs_of_tests()]
    others = [
        name
        for workflow in ("docs", "release")
        for job in WORKFLOWS[workflow]["jobs"].values()
        for step in job["steps"]
        for name in re.findall(r"nox --sessions (\w+)", step.get("run", ""))
    ]
    assert {name.split("-")[0] for name in [*named, *others]} == set(SESSIONS)
    assert len(named + others) == len({*named, *others})


def test_ci_forgets_no_session():
    """The whole suite runs there by the README's command."""
    ci = re.sub(r"^(#|step).*$", "", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
    assert set(SESSIONS) - {"pinned", "newest"} <= set(re.findall(r"\w+", ci))


def test_the_pythons_are_those_of_the_classifiers():
    """A Python that may fail is not declared yet."""
    declared = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    entries = [entry for entry in jobs_of_tests() if "python" in entry]
    assert {entry["python"] for entry in entries if not entry.get("may-fail")} == declared
    assert PROJECT["requires-python"] == f">={min(declared, key=lambda version: int(version.split('.')[1]))}"
    for entry in entries:
        name, _, python = entry["session"].partition("-")
        assert entry["python"] in SESSIONS[name] and python in ("", entry["python"])
    assert {e["python"] for e in entries if e["session"].startswith("newest")} == set(SESSIONS["newest"])


def test_the_extras_of_the_sessions_exist():
    named = {name for group in re.findall(r"\.\[([\w,-]+)\]", NOXFILE) for name in group.split(",")}
    assert named and named <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("name", ["OLDEST", "PINNED"])
def test_the_constraints_of_the_sessions_exist(name):
    assert (ROOT / re.search(rf'\b{name}\b.*"(\.ci/\w+\.txt)"', NOXFILE)[1]).exists()


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_a_workflow_may_write_only_what_it_must(name):
    """Each reads the repository; a job that deploys or publishes says so itself, and every job ends."""
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    granted = {job: spec["permissions"] for job, spec in workflow["jobs"].items() if "permissions" in spec}
    assert (
        granted
        == {
            "tests": {},
            "docs": {"deploy": {"pages": "write", "id-token": "write"}},
            "release": {"publish": {"id-token": "write"}},
        }[name]
    )
    assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())
