"""Files are written atomically, never through a symbolic link, and without absolute paths of this machine."""

import dataclasses
import errno
import json
import os
import re
import resource
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import _files, reporting
from experiments._errors import StorageError, UsageError
from experiments.benchmarking import result
from experiments.data import arrays
from experiments.records.runs import TrainRow
from experiments.reporting import document
from experiments.studies import batch_size, jobs, settings
from experiments.studies.recommending import run as recommending
from experiments.studies.recommending.findings import Findings
from experiments.training.storage import metrics, workdir
from tests import readers, test_reporting

ROOT = Path(__file__).parent.parent
# Code that writes a file in place, which only `experiments._files` may contain.
DIRECT = re.compile(
    r"\.write_text\(|\.write_bytes\(|\.touch\(|\.to_csv\(|np\.save|NamedTemporaryFile|\bopen\([^)]*[\"'][wax]|os\.open\(|"
    r"json\.dump\(|\.savefig\("
)
ALLOWED = {
    # The null device, twice; a write to a file that `_files.writing` opened, a write to memory, and a lock that names
    # its holder, and leaves any other content unchanged.
    ("_flags.py", "os.dup2(os.open(os.devnull"),
    ("data/arrays.py", "np.savez(file, allow_pickle=False"),
    ("reporting/document.py", 'drawing.savefig(text, format="svg"'),
    ("_locks.py", "descriptor = os.open(path, os.O_RDWR | os.O_CREAT"),
    ("_locks.py", "descriptor = os.open(path, os.O_RDWR | getattr"),
    ("benchmarking/driver_suite.py", 'with Path(os.devnull).open("w")'),
}


def test_no_code_writes_a_file_in_place():
    found = set()
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        name = str(path.relative_to(ROOT / "experiments"))
        if name == "_files.py":
            continue
        lines = [line.strip() for line in path.read_text().splitlines()]
        found |= {(name, line) for line in lines if DIRECT.search(line)}
    left = {(name, line) for name, line in found if not any(name == n and line.startswith(t) for n, t in ALLOWED)}
    assert left == set() and len(found) == len(ALLOWED)


def _tree(folder):
    made = {"study": readers._copies(readers.STUDY), "run": test_reporting.write_run, "norm": readers._norm_rows}
    made["recommendation"] = readers._copies(readers.DOCS / "recommend" / "digits" / "recommendation")
    for name, make in made.items():
        (folder / name).mkdir()
        make(folder / name)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a folder of result folders, one of each kind, without pages."""
    return _tree(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the figures out of pages, because drawing takes most of the time."""
    monkeypatch.setattr(document, "_svg", lambda *_, **__: "<svg></svg>")


@pytest.fixture
def folders(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "all")
    return tmp_path / "all"


def _log(folder):
    with metrics.MetricsLog(folder / "run", 6) as log:
        log.write(TrainRow(kind="train", step=7, loss=1.0, accuracy=0.5, learning_rate=0.1))


def _lock(folder):
    with workdir.only_one(folder / "run"):
        pass


def _recommend(folder):
    with mock.patch.multiple(
        recommending,
        with_held_out=lambda options, goal: settings.Data(options, 60, 0),
        Runner=mock.MagicMock(),
        measure=lambda _, problem: Findings(not_measured=["x" * 9_000]).evidence(problem),
        advise=lambda _: None,
    ):
        runner: mock.MagicMock = recommending.Runner  # pyright: ignore[reportAssignmentType]
        runner.return_value.__enter__.return_value.ask.return_value = {"count": 1, "kind": "cpu"}
        recommending.recommend({"dataset": "digits"}, target=None, minutes=1, folder=folder / "recommendation")


def _claim(folder):
    path = folder / "study/study.json"
    options = json.loads(path.read_text()) if path.exists() else {"dataset": "digits"}
    batch_size._claim(path.parent, dataclasses.replace(settings.PRESETS["quick"], options=options))


def _cached(folder):
    """Uses the cache; a cache that cannot be written is reported in a warning, and the data are used all the same."""
    warn = mock.Mock()
    place = mock.patch.dict(os.environ, {arrays.CACHE_VARIABLE: str(folder / "run")})
    with place, mock.patch.object(arrays.logging, "warning", warn):
        assert arrays.cached("key", lambda: {"a": np.arange(9_000)})["a"].sum() == 40_495_500
    said = [call.args[0] % call.args[1:] for call in warn.call_args_list]
    for line in said:
        if "cannot be kept" in line:
            raise StorageError(line)


# Functions that write each file.
WRITERS = {
    "run/report.html": lambda folder: reporting.write_page(folder / "run"),
    "norm/report.html": lambda folder: reporting.write_norm_study_page(folder / "norm"),
    "recommendation/report.html": lambda folder: reporting.write_recommendation_page(folder / "recommendation"),
    "study/report.html": lambda folder: reporting.write_study_page(folder / "study"),
    "study/command.txt": lambda folder: batch_size.note_command(folder / "study", "python new"),
    "run/curves.svg": lambda folder: reporting.write_svg(Figure(), folder / "run/curves.svg"),
    "run/norm.json": lambda folder: result.write([], folder / "run/norm.json", []),
    "run/metrics.jsonl": _log,
    "run/.lock": _lock,
    "run/tensorboard": _log,
    "recommendation/recommendation.json": _recommend,
    "study/study.json": _claim,
    "run/key.npz": _cached,
    "study/results.jsonl": lambda folder: _files.add_row(folder / "study" / jobs.FILE, {"key": "a"}),
}
# Files that are opened in place or appended to, so that a symbolic link in their place is refused.
REFUSED = {"run/.lock", "run/tensorboard", "study/results.jsonl"}


@pytest.mark.parametrize("file", WRITERS)
def test_no_write_follows_a_symbolic_link(folders, undrawn, tmp_path, file):
    theirs, path = tmp_path / "theirs", folders / file
    if file.endswith("tensorboard"):
        theirs.mkdir()
    else:
        theirs.write_bytes(path.read_bytes() if path.exists() else b"theirs")
        path.unlink(missing_ok=True)
    before = theirs.read_bytes() if theirs.is_file() else []
    path.symlink_to(theirs)
    if file in REFUSED:
        with pytest.raises(StorageError, match="is a symbolic link"):
            WRITERS[file](folders)
    else:
        WRITERS[file](folders)
        assert not path.is_symlink() and path.is_file()
    assert (theirs.read_bytes() if theirs.is_file() else list(theirs.iterdir())) == before


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "(?i)no space left on"), (errno.EROFS, "cannot be (written|kept)")]
)
@pytest.mark.parametrize("file", [f for f in WRITERS if f not in ("study/report.html", "run/tensorboard")])
def test_a_failed_write_is_one_sentence_and_leaves_the_file_unchanged(
    folders, undrawn, monkeypatch, file, number, said
):
    path = folders / file
    before = path.read_bytes() if path.exists() else None
    opened = os.open

    def full(path, flags, *arguments, **named):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(folders)):
            raise OSError(number, os.strerror(number))
        return opened(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises((StorageError, UsageError), match=said) as raised:
        WRITERS[file](folders)
    monkeypatch.undo()
    assert "\n" not in str(raised.value)
    assert (path.read_bytes() if path.exists() else None) == before
    assert not list(folders.rglob("*.tmp"))


# Files that are appended to, or too short to be truncated.
LITTLE = {"run/.lock", "run/tensorboard"}


@pytest.mark.parametrize("file", [f for f in WRITERS if f not in LITTLE])
def test_a_write_that_stops_in_the_middle_is_one_sentence_and_leaves_the_file_unchanged(folders, undrawn, file):
    """Limits the size of files, so that the system ends a write in the middle, as on a full disk."""
    path = folders / file
    before = path.read_bytes() if path.exists() else None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = len(before or b"") + 10 if file in REFUSED else 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises((StorageError, UsageError), match="File too large") as raised:
            WRITERS[file](folders)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    after = path.read_bytes() if path.exists() else None
    assert after == before if most == 10 else after is not None and after.startswith(before or b"")
    assert not list(folders.rglob("*.tmp"))


def test_pages_hold_no_path_of_this_machine(folders, undrawn):
    """Writes every kind of page from files whose commands, options and errors hold such paths."""
    here = str(folders)
    run = folders / "run"
    for name in ("config.json", "summary.json"):
        stored = json.loads((run / name).read_text())
        if name == "config.json":
            stored["config"] |= {"workdir": f"{here}/run", "data_dir": f"{here}/data"}
        else:
            stored["command"] = f"python -m experiments.train --workdir={here}/run '--data_dir={here}/a b'"
        (run / name).write_text(json.dumps(stored))
    for place in ("study", "norm"):
        rows = [json.loads(line) for line in (folders / place / "results.jsonl").read_text().splitlines()]
        for row in rows:
            row["command"] = f"python -m experiments.train --workdir={here}/x --data_dir={here}"
            row["options"]["data_dir"] = here
        failed = {"key": "fixed-none", "options": {"data_dir": here}, "error": f"see {here}/worker.log: no"}
        lines = [json.dumps(row) for row in [*rows, failed]]
        # A damaged line is added, which the page reports.
        (folders / place / "results.jsonl").write_text("".join(f"{line}\n" for line in [*lines, "{"]))
    (folders / "study/command.txt").write_text(f"python -m experiments.batch_size_study --workdir={here}/s\n")
    (folders / "study/smoothness.json").write_text("{")
    for file in WRITERS:
        if file.endswith(".html"):
            page = WRITERS[file](folders).read_text()
            assert here not in page and str(folders.parent) not in page, file
    study = (folders / "study/report.html").read_text()
    assert "smoothness.json cannot be read" in study and "1 lines of results.jsonl are not whole rows" in study
    assert "--workdir=x" in (folders / "norm/report.html").read_text()


def test_a_dollar_sign_in_a_label_does_not_start_a_formula(tmp_path):
    """Matplotlib would refuse to draw an invalid formula; the powers of ten of its own ticks remain formulas."""
    for kind in ("test", "$x_{$", "a $\\frac$ b"):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, "step": 1, "loss": 0.5, "accuracy": 0.9}) + "\n")
    figure = reporting.training_curves(tmp_path)
    figure.axes[0].set_title("$x_{$")
    text = reporting.write_svg(figure, tmp_path / "curves.svg").read_text()
    assert "<!-- $x_{$ -->" in text and "<!-- $x_{$: 0.5000 -->" in text
    # All places where a figure shows text; the names of categories are those of ticks, and appear with the bars.
    figure = Figure(layout="constrained")
    hostile = "$x_{$"
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"{hostile}0")
    for number, axes in enumerate((left, right)):
        bars = axes.bar([f"{hostile}1{number}", f"{hostile}2{number}"], [1, 2], label=f"{hostile}3{number}")
        axes.bar_label(bars, [f"{hostile}4{number}", f"{hostile}5{number}"])
        axes.set(xlabel=f"{hostile}6{number}", ylabel=f"{hostile}7{number}", title=f"{hostile}8{number}")
        axes.legend(title=f"{hostile}9{number}")
        axes.annotate(f"{hostile}a{number}", (0, 1))
        axes.set_yticks([0, 1, 3], labels=[f"{hostile}{c}{number}" for c in "cde"])
    right.set_yscale("log")
    right.set_yticks([1, 2], labels=[f"{hostile}f", f"{hostile}g"])
    right.set_yticks([1.5], labels=[f"{hostile}h"], minor=True)
    left.twinx().yaxis.set_major_formatter(lambda value, _: f"{hostile}i")
    figure.legend(title=f"{hostile}j")
    text = reporting.write_svg(figure, tmp_path / "all.svg").read_text()
    wanted = {"0", *(f"{kind}{n}" for kind in "123456789a" for n in (0, 1)), "c0", "d0", "e0", *"fghij"}
    assert {shown.removeprefix(hostile) for shown in re.findall(r"<!-- (.*?) -->", text) if hostile in shown} >= wanted
    figure = Figure()
    figure.subplots().loglog([1, 1e6], [1, 1e6])
    assert "<!-- $\\mathdefault{10^{6}}$ -->" in reporting.write_svg(figure, tmp_path / "powers.svg").read_text()


def test_a_cache_file_that_holds_other_arrays_is_made_again(tmp_path, monkeypatch, caplog):
    """Puts a file of other arrays in its place, without a table of contents or with that of other arrays."""
    monkeypatch.setenv(arrays.CACHE_VARIABLE, str(tmp_path))
    right, other = {"a": np.arange(3)}, {"a": np.arange(4)}
    for held in ({}, {arrays.CONTENTS: np.frombuffer(arrays._contents(right), np.uint8)}):
        np.savez(tmp_path / "key.npz", allow_pickle=False, **other, **held)
        caplog.clear()
        assert arrays.cached("key", lambda: right)["a"].tolist() == [0, 1, 2]
        assert "description" in caplog.text
        assert arrays.cached("key", dict) == {"a": pytest.approx(right["a"])}
