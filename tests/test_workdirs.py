"""A run's folder runs no code that only it names, and belongs to one program, one run and one data set."""

import json
import shutil
import sys

import numpy as np
import pytest

from experiments import _workdirs
from experiments._errors import StorageError, UsageError
from experiments.training import session
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation.checkpoint import evaluate_checkpoint
from experiments.training.storage.workdir import only_one
from tests import rig

OWN = {"dataset": "tests.own:dataset", "model": "tests.own:model"}


def train(workdir, **changes):
    options = {**OWN, "batch_size": 16, "steps": 8, "warmup_epochs": 0, "num_devices": 2, **changes}
    return session.train(TrainConfig(**options, workdir=str(workdir)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("workdirs") / "run"
    train(workdir)
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


@pytest.mark.parametrize("flag", ["model", "dataset"])
def test_code_that_a_checkpoint_names_is_not_run(copy, monkeypatch, flag):
    """Puts a module that records its own import on the search path, and names it in the checkpoint."""
    (copy.parent / "theirs.py").write_text("import sys\nsys.theirs_was_run = True\ndef function(**_): return None\n")
    monkeypatch.chdir(copy.parent)
    path = copy / "config.json"
    stored = json.loads(path.read_text())
    stored["config"][flag] = "theirs:function"
    path.write_text(json.dumps(stored))
    given = {name: value for name, value in OWN.items() if name != flag}
    with pytest.raises(UsageError, match=rf"the function theirs:function.* give --{flag}=theirs:function"):
        evaluate_checkpoint(copy, num_devices=2, **given)
    assert not hasattr(sys, "theirs_was_run") and "theirs" not in sys.modules
    # A function that the command line names is run.
    _, rows = evaluate_checkpoint(copy, num_devices=2, **OWN)
    assert rows[0].before.examples == 16


def test_a_checkpoint_of_another_run_is_refused(copy, tmp_path):
    train(tmp_path / "other", seed=1)
    shutil.rmtree(copy / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", copy / "checkpoints")
    with pytest.raises(UsageError, match="belongs to another run"):
        evaluate_checkpoint(copy, num_devices=2, **OWN)
    (copy / "summary.json").unlink()
    with pytest.raises(UsageError, match="belongs to another run"):
        train(copy)
    assert sorted(p.name for p in (copy / "checkpoints").iterdir() if p.name.isdigit())


def test_a_run_with_changed_labels_is_refused(copy, monkeypatch):
    """The labels are as many and the images the same, and the run is complete."""
    made = rig.tiny()
    test = made.test["test"]
    changed = made._replace(test={"test": test._replace(labels=np.roll(test.labels, 1))})
    monkeypatch.setattr("tests.own.dataset", lambda: changed)
    with pytest.raises(UsageError, match="holds a run on other data: its contents differ"):
        train(copy)


def test_a_run_of_an_earlier_version_resumes(copy):
    """Earlier versions wrote neither digests of the data nor a name of the run."""
    path = copy / "config.json"
    stored = json.loads(path.read_text())
    del stored["run"], stored["data"]["contents"]
    path.write_text(json.dumps(stored))
    (copy / "summary.json").unlink()
    assert train(copy).updates == 8


def test_a_workdir_that_is_removed_during_a_run_is_reported(tmp_path, monkeypatch):
    save = session.Fit._save

    def removed(self, state, step):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        save(self, state, step)

    monkeypatch.setattr(session.Fit, "_save", removed)
    with pytest.raises(StorageError, match="was removed during the run"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_lock_does_not_follow_a_symbolic_link(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(StorageError, match="is a symbolic link"), only_one(tmp_path / "run"):
        raise AssertionError("it was taken")
    assert (tmp_path / "theirs").read_text() == "theirs"


@pytest.mark.parametrize("made", _workdirs.RESULTS_OF)
@pytest.mark.parametrize("asked", [*_workdirs.RESULTS_OF, "benchmark"])
def test_a_folder_belongs_to_one_program(tmp_path, made, asked):
    _workdirs.claim(tmp_path / "folder", made)
    if asked == made:
        _workdirs.claim(tmp_path / "folder", asked)
    else:
        with pytest.raises(UsageError, match=f"holds {_workdirs.RESULTS_OF[made]}.*give another --workdir"):
            _workdirs.claim(tmp_path / "folder", asked)


@pytest.mark.parametrize(
    ("file", "content", "program"),
    [
        ("config.json", "{}", _workdirs.RUN),
        ("study.json", "{}", _workdirs.STUDY),
        ("recommendation.json", "{}", _workdirs.RECOMMENDATION),
        ("results.jsonl", '{"key": "grid-classification-local-p1-seed0"}', _workdirs.NORM_STUDY),
        ("results.jsonl", '{"key": "short-b64-r0.01"}', _workdirs.RECOMMENDATION),
        ("results.jsonl", '{"key": "time-b64-round0"}', _workdirs.STUDY),
        ("other.txt", "", None),
    ],
)
def test_folders_of_earlier_versions_are_recognised_by_their_files(tmp_path, file, content, program):
    (tmp_path / file).write_text(content)
    assert _workdirs.program_of(tmp_path) == program
