"""The register of all readers of files, and their outcomes when a file is damaged.

`python -m tests.readers DAMAGES [NAME ...]` tries that many damages of each file and counts the outcomes.
"""

import collections
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest

from experiments import _flags, data, evaluate, reporting
from experiments._errors import StorageError, UsageError
from experiments.data import arrays
from experiments.problems import mlp
from experiments.records.norm_study import CLASSIFICATION
from experiments.records.questions.norm import Shift
from experiments.records.runs import TrainRow
from experiments.reporting import document
from experiments.reporting.questions import REPORTS
from experiments.reporting.section import fitting
from experiments.reporting.study_files import StudyFiles
from experiments.studies import branching, driver, jobs, norm, status
from experiments.training import session
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation.checkpoint import restore
from experiments.training.storage import metrics, workdir
from tests import damages, programs, test_data, test_figures, test_norm_study, test_reporting

DOCS = Path(__file__).parent.parent / "docs" / "results"
STUDY = DOCS / "batch_size_mnist"
OWN = {"dataset": "tests.own:dataset", "model": "tests.own:model"}


class Reader(NamedTuple):
    """A function that reads files.

    Attributes:
      make: writes undamaged files into a folder.
      files: the paths in the folder of the files to damage.
      read: reads the files, and returns the text of a page or another value.
      exact: whether the result must equal that of the undamaged files. If not, numbers may differ, but a page must not
        show a missing number such as "nan".
    """

    make: Callable[[Path], Any]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    exact: bool = False


def _copies(source: Path) -> Callable[[Path], Any]:
    def make(folder):
        for path in source.iterdir():
            if path.is_file() and path.suffix in (".json", ".jsonl", ".txt"):
                shutil.copy(path, folder / path.name)

    return make


def _norm_rows(folder: Path) -> None:
    size = test_norm_study.SIZE
    made = [test_norm_study.made_up(job) for job in norm.grid_jobs(size, [CLASSIFICATION], 8)]
    shift = Shift(mean=0.25, std=1.5)
    rates = [test_norm_study.row(job, 0.8, shift=shift) for job in norm.rate_jobs(size, 8)]
    test_norm_study.write(folder, [*made, *rates])


def _train(folder: Path) -> Any:
    options = {**OWN, "batch_size": 16, "steps": 4, "warmup_epochs": 0, "num_devices": 2, "checkpoint_every": 2}
    with contextlib.redirect_stdout(io.StringIO()):
        return session.train(TrainConfig(**options, workdir=str(folder))).results


def _stopped(folder: Path) -> None:
    """Makes the folder of a run that was stopped after its first checkpoint."""
    _train(folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    (folder / "summary.json").unlink()


def _evaluate_program(folder: Path) -> str:
    """Returns the output of `experiments.evaluate`, or an empty text where it fell back to an older checkpoint."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        programs.use_own_flags(evaluate, patch)
        own = [f"--{name}={value}" for name, value in OWN.items()]
        _flags.parse(["evaluate", str(folder), "--num_devices=2", *own], "checkpoint")
        evaluate.main()
    return printed.getvalue() if printed.getvalue().startswith("step 4\n") else ""


def _evaluate(folder: Path) -> Any:
    state = restore(folder, num_devices=2, **OWN).state
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)] if int(state.step) == 4 else ""


def _log(folder: Path) -> None:
    with metrics.MetricsLog(folder, 6) as log:
        log.evaluations(4)
        log.noise(4)
        log.write(TrainRow(kind="train", step=7, loss=1.0, accuracy=0.5, learning_rate=0.1))


def _lock(folder: Path) -> None:
    with workdir.only_one(folder):
        pass


def _rows(folder: Path) -> None:
    with driver.Runner(folder) as runner:
        for row in runner.rows():
            runner.is_done(jobs.Job(row.key, row.options))


def _branches(folder: Path) -> None:
    branching.Study(branching.Request(workdir=str(folder)), mlp.problem())


def _progress(folder: Path) -> str:
    with driver.Runner(folder):
        pass
    return "\n".join(status.lines(folder))


def _cache(folder: Path) -> Any:
    os.environ[arrays.CACHE_VARIABLE] = str(folder)
    r = np.random.default_rng(0)
    made = {"images": r.integers(0, 256, (40, 4, 4, 1), dtype=np.uint8), "labels": np.arange(40, dtype=np.int32)}
    got = arrays.cached("key", lambda: made)
    return sorted((name, array.dtype.str, array.shape, array.tobytes()) for name, array in got.items())


def _tfds(folder: Path) -> Any:
    os.environ[arrays.CACHE_VARIABLE] = str(folder / "cache")
    dataset = data.load("tiny", str(folder))
    splits = (dataset.train, *dataset.test.values())
    got = [(split.read(np.arange(split.size)), split.size) for split in splits]
    return [(size, e.images.tobytes(), e.labels.tobytes()) for e, size in got], dataset.num_classes


def _question(name: str, *files: str) -> Reader:
    def read(folder):
        study = StudyFiles(folder)
        with fitting(folder):
            sections = [section for make in REPORTS[name].sections for section in make(study)]
        return "".join(text for section in sections for text in (section.answer, *section.parts))

    return Reader(_copies(STUDY), (f"{name}.json", *files), read)


def _text(write: Callable[[Path], Path]) -> Callable[[Path], str]:
    return lambda folder: write(folder).read_text()


def _undrawn(write: Callable[[Path], Path]) -> Callable[[Path], str]:
    """Returns a reader of a page without figures, which take most of the time and which other readers draw."""

    def read(folder):
        with mock.patch.object(document, "_svg", return_value="<svg></svg>"):
            return write(folder).read_text()

    return read


def _figure(draw: Callable[[Path], Any], file: str) -> Callable[[Path], str]:
    return lambda folder: reporting.write_svg(draw(folder / file), folder / "figure.svg").read_text()


_TINY = "tiny/1.0.0"
READERS = {
    "run page": Reader(
        test_reporting.write_run, ("config.json", "summary.json", "metrics.jsonl"), _text(reporting.write_page)
    ),
    **{name: _question(name) for name in REPORTS if (STUDY / f"{name}.json").exists()},
    "convergence": _question("convergence", "results.jsonl"),
    "study page": Reader(
        _copies(STUDY), ("command.txt", "time.json", "results.jsonl"), _undrawn(reporting.write_study_page)
    ),
    "norm study page": Reader(_norm_rows, ("results.jsonl",), _text(reporting.write_norm_study_page)),
    "recommendation page": Reader(
        _copies(DOCS / "recommend" / "digits" / "recommendation"),
        ("recommendation.json", "results.jsonl"),
        _text(reporting.write_recommendation_page),
    ),
    "norm picture": Reader(test_figures.of_the_norm, ("norm.json",), _figure(reporting.norm_figure, "norm.json")),
    "topology picture": Reader(
        _copies(DOCS / "topology"), ("norm-v6e-2x2.json",), _figure(reporting.topology_figure, "norm-v6e-2x2.json")
    ),
    "study": Reader(_copies(STUDY), ("results.jsonl",), _rows),
    "branches": Reader(_copies(DOCS / "recommend" / "mlp" / "branches"), ("branches.jsonl",), _branches),
    "status": Reader(_progress, ("progress.json", ".driver"), lambda folder: "\n".join(status.lines(folder))),
    "lock": Reader(_lock, (".lock", ".program"), _lock),
    "metrics": Reader(test_reporting.write_run, ("metrics.jsonl",), _log),
    "train": Reader(_train, ("config.json", "summary.json", "metrics.jsonl", ".lock", ".program"), _train),
    "evaluate": Reader(_train, ("config.json", "checkpoints"), _evaluate, exact=True),
    "evaluate program": Reader(_train, ("config.json", "checkpoints"), _evaluate_program, exact=True),
    "resume": Reader(_stopped, ("config.json", "metrics.jsonl", "checkpoints"), _train, exact=True),
    "cache": Reader(_cache, ("key.npz",), _cache, exact=True),
    "TFDS": Reader(
        lambda folder: test_data.make_tfds(folder, "tiny"),
        tuple(f"{_TINY}/{name}" for name in ("dataset_info.json", "features.json"))
        + tuple(f"{_TINY}/tiny-{split}.array_record-00000-of-00001" for split in ("train", "test")),
        _tfds,
        exact=True,
    ),
}


def outcome(reader: Reader, folder: Path, whole: Any) -> str:
    """Reads a damaged folder, and returns "read", "refused", "wrong", or the traceback of another error."""
    try:
        # NumPy's warnings about overflows would otherwise be printed.
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            got = reader.read(folder)
    except (UsageError, StorageError) as error:
        said = str(error)
        return "refused" if said and "\n" not in said and len(said) < 1000 else f"no sentence: {said[:300]}"
    except Exception:
        return traceback.format_exc()
    if reader.exact:
        return "read" if got in (whole, "") else "wrong"
    if isinstance(got, str):
        return (
            "read"
            if _missing_numbers(got) <= _missing_numbers(whole)
            else f"wrong: {_missing_numbers(got) - _missing_numbers(whole)}"
        )
    return "read"


def _missing_numbers(page: str) -> set[str]:
    """Returns the words for a missing number that a page shows, except where it says what is wrong with a file."""
    shown = re.sub(r"<p>A part is left out.*?</p>|<svg.*?</svg>|<[^>]*>", " ", page, flags=re.DOTALL)
    return set(re.findall(r"\b(?:nan|inf|None|NaN|Infinity)\b", shown))


def sweep(name: str, most: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Damages every file of a reader, its contents in at most `most` ways; yields each damage with its outcome."""
    reader, r = READERS[name], np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as made:
        original, folder = Path(made) / "original", Path(made) / "damaged"
        original.mkdir()
        reader.make(original)
        shutil.copytree(original, folder, symlinks=True)
        whole = reader.read(folder)
        files = [
            p for f in reader.files for p in ([original / f] if not (original / f).is_dir() else _inside(original / f))
        ]
        for file in files:
            place = file.relative_to(original)
            content = file.read_bytes()

            def fresh(place=place):
                shutil.rmtree(folder)
                shutil.copytree(original, folder, symlinks=True)
                return folder / place

            for what, damaged in damages.versions_of(content, r, most):
                fresh().write_bytes(damaged)
                yield f"{name}: {place}: {what}", outcome(reader, folder, whole)
            path = fresh()
            path.unlink()
            yield f"{name}: {place}: gone", outcome(reader, folder, whole)
            path = fresh()
            path.unlink()
            path.mkdir()
            yield f"{name}: {place}: a folder", outcome(reader, folder, whole)
            path = fresh()
            path.unlink()
            path.symlink_to(path.name)
            yield f"{name}: {place}: a link to itself", outcome(reader, folder, whole)


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def main(most: int, names: list[str]) -> None:
    """Prints the numbers of outcomes for each reader, and their totals."""
    total: collections.Counter[str] = collections.Counter()
    for name in names or READERS:
        counts: collections.Counter[str] = collections.Counter()
        for what, came in sweep(name, most):
            kind = came if came in ("read", "refused") else "wrong" if came.startswith("wrong") else "error"
            counts[kind] += 1
            if kind in ("wrong", "error"):
                print(what, came if kind == "wrong" else "\n  ".join(came.strip().splitlines()[-3:]), flush=True)
        print(name, dict(counts), flush=True)
        total += counts
    print("total", total.total(), dict(total))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
