"""A question of the batch-size study is three modules of one name, and nothing else is edited to add one."""

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from experiments import _files, _register, _workdirs
from experiments.records import questions as records
from experiments.records.studies import Analysis, StudyRow
from experiments.reporting.questions import REPORTS
from experiments.studies import settings
from experiments.studies.questions import QUESTIONS
from tests import made

ROOT = Path(__file__).parent.parent
# What runs, what is recorded and what is reported of a question.
THIRDS = {
    "studies": '''
"""Whether one run is enough."""

from experiments.records.studies import Analysis
from experiments.studies.jobs import Job
from experiments.studies.question import Question, Setting, keys_of


class One(Setting):
    """No choice."""


def planned(asked):
    return [Job("enough-seed0", {**asked.study.options, "batch_size": 8, "steps": 2})]


def run(asked):
    return Analysis(keys=keys_of(asked.runner.run_all(planned(asked))))


QUESTION = Question(
    order=15, help="a single short run", setting=One, planned=planned, run=run, presets={"quick": One()}
)
''',
    "records": '''
"""Records of the question whether one run is enough."""

from experiments.records.studies import StudyRow


class EnoughRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A single run."""

    NEEDED = ("batch_size",)


ROWS = {"enough": EnoughRow}
''',
    "reporting": '''
"""Whether one run is enough, from the study's files alone."""

from experiments.reporting.question import Report
from experiments.reporting.section import Section


def sections(study):
    rows = study.rows_of("enough")
    return [Section(10, "Is one run enough?", f"{len(rows)} run says so.", [])] if rows else []


REPORT = Report(order=95, sections=(sections,))
''',
}


def test_every_question_is_run_recorded_and_reported():
    """Rows of other programs are recorded beside those of questions."""
    assert QUESTIONS.keys() == REPORTS.keys()
    assert QUESTIONS.keys() <= records.MODULES.keys()
    for name, asked in QUESTIONS.items():
        assert asked.help and set(asked.presets) <= set(settings.PRESETS), name
        assert issubclass(records.analysis_type(name), Analysis), name
        assert all(type(setting) is asked.setting for setting in asked.presets.values()), name
        # Where no preset has a setting, another question does, or it has one of its own.
        assert any(asked.setting in study.settings for study in settings.PRESETS.values()), name
        assert not (asked.on_request and asked.presets), name


def test_no_two_questions_share_a_place_a_picture_or_a_kind_of_row():
    for places in ([asked.order for asked in QUESTIONS.values()], [report.order for report in REPORTS.values()]):
        assert len(set(places)) == len(places)
    pictures = [name for report in REPORTS.values() for name in report.pictures]
    assert len(set(pictures)) == len(pictures)
    kinds = [kind for module in records.MODULES.values() for kind in module.ROWS]
    assert len(set(kinds)) == len(kinds) and set(kinds) == records.ROWS.keys()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the experiments with one question more."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    for third, text in THIRDS.items():
        (folder / "experiments" / third / "questions" / "enough.py").write_text(text)
    return folder


def program(tree: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *args],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": f"{tree}:{ROOT}", "COLUMNS": "10000"},
        text=True,
        capture_output=True,
        check=False,
    )


def answered(folder: Path) -> Path:
    """A study in which the question has been answered, by a run that is made up."""
    folder.mkdir()
    row = StudyRow(key="enough-seed0", options={"dataset": "digits", "batch_size": 8}, summary=made.summary())
    (folder / "results.jsonl").write_bytes(_files.line(row))
    _files.write_json(folder / "enough.json", Analysis(keys=[row.key]))
    _workdirs.claim(folder, _workdirs.STUDY)
    return folder


def test_a_question_that_is_added_is_in_the_help_the_presets_the_plan_and_the_page(tree, tmp_path):
    shown = program(tree, "experiments.batch_size_study", "--help")
    assert "time, short runs at many sizes; enough, a single short run; smoothness, " in shown.stdout, shown.stderr
    listed = program(tree, "experiments.batch_size_study", "--list_presets").stdout
    assert "quick       digits: time, enough, smoothness" in listed and listed.count("enough") == 1
    plan = program(tree, "experiments.batch_size_study", "--parts=enough", "--dry_run", f"--workdir={tmp_path}/none")
    assert "--batch_size=8 --steps=2" in plan.stdout and "part      enough: 1 runs" in plan.stdout, plan.stderr
    folder = answered(tmp_path / "study")
    written = program(tree, "experiments.report", f"--workdir={folder}")
    assert written.returncode == 0, written.stderr
    assert "10. Is one run enough?" in (folder / "report.html").read_text()


@pytest.mark.parametrize("third", THIRDS)
def test_a_third_that_is_missing_is_named(tree, tmp_path, third):
    module = tree / "experiments" / third / "questions" / "enough.py"
    text = module.read_text()
    module.unlink()
    try:
        asked = program(tree, "experiments.batch_size_study", "--parts=enough", "--dry_run")
        folder = answered(tmp_path / "study")
        written = program(tree, "experiments.report", f"--workdir={folder}")
    finally:
        module.write_text(text)
    page = folder / "report.html"
    if third == "studies":
        assert asked.returncode == 2 and "unknown part 'enough'" in asked.stderr
    if third == "records":
        needs = "each question needs a module of the same name in experiments.records.questions; add enough"
        assert needs in asked.stderr and needs in written.stderr and not page.exists()
    if third == "reporting":
        assert "A part is left out: the report has no section of enough." in page.read_text()


def test_a_module_without_its_declaration_is_named(tmp_path, monkeypatch):
    (tmp_path / "places").mkdir()
    (tmp_path / "places" / "__init__.py").touch()
    (tmp_path / "places" / "nowhere.py").write_text("ENTRY = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert _register.entries_of("places", [str(tmp_path / "places")], "ENTRY", int) == {"nowhere": 3}
    with pytest.raises(TypeError, match=r"places.nowhere must declare ENTRY of type str, not int"):
        _register.entries_of("places", [str(tmp_path / "places")], "ENTRY", str)
    with pytest.raises(TypeError, match="must declare OTHER of type str, not nothing"):
        _register.entries_of("places", [str(tmp_path / "places")], "OTHER", str)


def test_two_modules_cannot_declare_one_kind_of_rows():
    other = types.SimpleNamespace(ROWS={"swing": records.ROWS["swing"]})
    with pytest.raises(ValueError, match="other: another module declares the kind swing already"):
        records._rows({**records.MODULES, "other": other})
