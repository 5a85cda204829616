"""The report of the batch-size study, from its files alone."""

import html
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import logging

from .. import _commands, _files
from .._errors import UsageError
from ..records import questions
from ..records.runs import Summary
from ..records.studies import StudyRow
from .claims import claims_sections
from .document import commands, document, made_on, table, write_svg
from .questions import REPORTS
from .section import Section, fitting, moments_of
from .study_files import StudyFiles

HERE = "the machine of the study, alone"
# A table of more rows is not read.
MOST_LISTED = 1_000
# The folders of the user that made a study are of no use to anyone else.
_PRIVATE = ("workdir", "data_dir")


def study_sections(folder: str | Path) -> list[Section]:
    """Returns the questions that a study has answered so far, in their order.

    Raises:
      UsageError: the folder holds no rows.
    """
    study = StudyFiles(folder)
    # A folder that holds no rows is refused, whatever else it holds.
    study.read()
    return _sections(study)[0]


def _sections(study: StudyFiles) -> tuple[list[Section], list[str]]:
    """Returns the sections in their order, and why others are left out."""
    sections, left_out = [], []
    for make in (*(make for report in REPORTS.values() for make in report.sections), claims_sections):
        try:
            with fitting(study.folder):
                sections += make(study)
        except UsageError as error:
            logging.warning("A part of the report is left out: %s", error)
            left_out.append(f"A part is left out: {_commands.without_paths(str(error))}")
    for name in sorted(questions.MODULES.keys() - REPORTS.keys()):
        if (study.folder / f"{name}.json").exists():
            left_out.append(f"A part is left out: the report has no section of {name}.")
    return _joined(sections), left_out


def _joined(sections: Iterable[Section]) -> list[Section]:
    """Returns sections by their numbers; of those with one number the first has the title and the answer."""
    joined: dict[int, Section] = {}
    for section in sections:
        first = joined.setdefault(section.number, section)
        if first is not section:
            joined[section.number] = first._replace(parts=[*first.parts, *section.parts])
    return [joined[number] for number in sorted(joined)]


def write_study_page(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a study: a section for each question that has been answered.

    Pictures for documents that are there already are made again.

    Raises:
      UsageError: the folder holds no rows.
    """
    study = StudyFiles(folder)
    rows, _ = study.read()
    sections, left_out = _sections(study)
    parts = [made_on(moments_of(rows.values())), *_left_out(study, left_out)]
    parts += ["<ol>"] if sections else ["<p>No question has been answered yet.</p>"]
    parts += [f'<li value="{s.number}"><a href="#q{s.number}">{html.escape(s.title)}</a></li>' for s in sections]
    parts += ["</ol>"] if sections else []
    for section in sections:
        parts.append(f'<h2 id="q{section.number}">{section.number}. {html.escape(section.title)}</h2>')
        parts.append(f"<p><strong>{html.escape(section.answer)}</strong></p>")
        parts += section.parts
    made_by = _files.read_lines(study.folder / "command.txt")
    parts += _made_by(rows, "".join(f"{_commands.shareable_text(line)}\n" for line in made_by))
    path = study.folder / "report.html"
    studied = " and ".join(_studied(rows))
    _draw_again(study)
    _files.write(path, document("What the batch size does" + (f": {studied}" if studied else ""), parts))
    return path


def _draw_again(study: StudyFiles) -> None:
    """Draws the pictures for documents that are in the folder of a study."""
    pictures = {name: draw for report in REPORTS.values() for name, draw in report.pictures.items()}
    for name, draw in pictures.items():
        if (study.folder / name).exists():
            try:
                with fitting(study.folder):
                    drawing = draw(study)
            except UsageError as error:
                logging.warning("The picture %s is not made again: %s", name, error)
                continue
            write_svg(drawing, study.folder / name)


def _left_out(study: StudyFiles, reasons: list[str]) -> list[str]:
    if lines := study.lines_left_out:
        reasons = [f"{lines} lines of results.jsonl are not whole rows and are left out.", *reasons]
    return [f"<p>{html.escape(reason)}</p>" for reason in dict.fromkeys(reasons)]


def _studied(rows: Mapping[str, StudyRow]) -> list[str]:
    """Returns what the runs that ended have trained: a model on a data set, or a problem."""
    options = (row.options for row in rows.values() if row.summary is not None)
    return sorted(
        {str(of.get("problem") or f"{of.get('model', 'simple_cnn')} on {of.get('dataset')}") for of in options}
    )


def _made_by(rows: Mapping[str, StudyRow], command: str) -> list[str]:
    ended = [row for row in rows.values() if row.summary is not None]
    failed = [(row.key, _commands.without_paths(row.error)) for row in rows.values() if row.error is not None]
    facts = _studied(rows)
    parts = ["<h2>Made by</h2>"]
    if command:
        parts.append(commands(command))
    parts.append(
        f"<p>{len(ended)} training runs, "
        + html.escape("; ".join(facts))
        + ". "
        + html.escape("; ".join(sorted({_machine(row.ended) for row in ended})))
        + ". One of them:</p>"
    )
    if ended:
        given = {k: v for k, v in ended[0].options.items() if k not in _PRIVATE and v is not None}
        shown = shlex.join([*_commands.start("train"), *(f"--{name}={value}" for name, value in given.items())])
        parts.append(commands(shown))
    if failed:
        parts += [
            "<p>Runs without a result:</p>",
            table(("run", "error"), failed),
        ]
    return parts + _where(ended)


def _where(ended: Sequence[StudyRow]) -> list[str]:
    """Returns where the runs ran, in a sentence and a table that is folded; nothing if all ran one after another."""
    if not any(row.ran_on for row in ended):
        return []
    # A job of a cluster by its machine alone.
    places = Counter(re.sub(r"^job \S+ of", "jobs of", row.ran_on) or HERE for row in ended)
    said = "; ".join(f"{place}: {count:,}" for place, count in sorted(places.items()))
    listed = [(row.key, row.ran_on or HERE) for row in ended[:MOST_LISTED]]
    more = len(ended) - len(listed)
    return [
        f"<p>Where they ran: {html.escape(said)}.</p>",
        "<details><summary>Where each of them ran</summary>",
        table(("run", "where"), listed),
        *([f"<p>And {more:,} more, which results.jsonl lists.</p>"] if more else []),
        "</details>",
    ]


def _machine(summary: Summary) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    return f"{summary.devices}, {versions}"
