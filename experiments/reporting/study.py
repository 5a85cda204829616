"""The report of the batch-size study, from its files alone."""

import html
import shlex
from pathlib import Path

from absl import logging

from experiments import _commands, _files
from experiments._errors import UsageError
from experiments.reporting.convergence import convergence_sections, epochs_figure
from experiments.reporting.critical import convergence_figure, critical_sections
from experiments.reporting.curves import read_study, rows_left_out
from experiments.reporting.document import commands, document, made_on, table, write_svg
from experiments.reporting.generalisation import generalisation_sections
from experiments.reporting.large_batch import large_batch_sections
from experiments.reporting.ramp import ramp_figure, ramp_sections
from experiments.reporting.section import Section, fitting, moments_of
from experiments.reporting.smoothness import smoothness_sections
from experiments.reporting.step_time import time_sections

_SECTIONS = (
    time_sections,
    smoothness_sections,
    convergence_sections,
    critical_sections,
    large_batch_sections,
    generalisation_sections,
    ramp_sections,
)


# Pictures of their own, for a document; they are made again where they are.
PICTURES = {"updates.svg": convergence_figure, "epochs.svg": epochs_figure, "ramp.svg": ramp_figure}


def study_sections(folder: str | Path) -> list[Section]:
    """The questions that a study has answered so far, in their order.

    Raises:
      UsageError: the folder holds no rows.
    """
    read_study(folder)
    return _sections(folder)[0]


def _sections(folder: str | Path) -> tuple[list[Section], list[str]]:
    """The sections in their order, and why others are left out."""
    sections, left_out = [], []
    for make in _SECTIONS:
        try:
            with fitting(folder):
                sections += make(folder)
        except UsageError as error:
            logging.warning("A part of the report is left out: %s", error)
            left_out.append(f"A part is left out: {_commands.without_paths(str(error))}")
    return sorted(sections, key=lambda section: section.number), left_out


def write_study_page(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a study: a section for each question that has been answered.

    Pictures of their own that are there already, of `PICTURES`, are made again.

    Raises:
      UsageError: the folder holds no rows.
    """
    rows = read_study(folder)
    sections, left_out = _sections(folder)
    parts = [made_on(moments_of(rows.values())), *_left_out(folder, left_out)]
    parts += ["<ol>"] if sections else ["<p>No question has been answered yet.</p>"]
    parts += [f'<li value="{s.number}"><a href="#q{s.number}">{html.escape(s.title)}</a></li>' for s in sections]
    parts += ["</ol>"] if sections else []
    for section in sections:
        parts.append(f'<h2 id="q{section.number}">{section.number}. {html.escape(section.title)}</h2>')
        parts.append(f"<p><strong>{html.escape(section.answer)}</strong></p>")
        parts += section.parts
    made_by = _files.read_lines(Path(folder) / "command.txt")
    parts += _made_by(rows, "".join(f"{_commands.shareable_text(line)}\n" for line in made_by))
    path = Path(folder) / "report.html"
    studied = " and ".join(f"{model} on {dataset}" for dataset, model in _studied(rows))
    for name, draw in PICTURES.items():
        if (Path(folder) / name).exists():
            try:
                with fitting(folder):
                    drawing = draw(folder)
            except UsageError as error:
                logging.warning("The picture %s is not made again: %s", name, error)
                continue
            write_svg(drawing, Path(folder) / name)
    _files.write(path, document("What the batch size does" + (f": {studied}" if studied else ""), parts))
    return path


def _left_out(folder: str | Path, reasons: list[str]) -> list[str]:
    if lines := rows_left_out(folder):
        reasons = [f"{lines} lines of results.jsonl are no whole rows and are left out.", *reasons]
    return [f"<p>{html.escape(reason)}</p>" for reason in dict.fromkeys(reasons)]


def _studied(rows: dict) -> list[tuple[str, str]]:
    """Data set and model of the runs that ended."""
    options = (row["options"] for row in rows.values() if "summary" in row)
    return sorted({(str(of.get("dataset")), str(of.get("model", "simple_cnn"))) for of in options})


def _made_by(rows: dict, command: str) -> list[str]:
    ended = [row for row in rows.values() if "summary" in row]
    failed = [(row["key"], _commands.without_paths(row["error"])) for row in rows.values() if "error" in row]
    facts = _studied(rows)
    parts = ["<h2>Made by</h2>"]
    if command:
        parts.append(commands(command))
    parts.append(
        f"<p>{len(ended)} training runs, "
        + "; ".join(f"{html.escape(model)} on {html.escape(dataset)}" for dataset, model in facts)
        + ". "
        + html.escape("; ".join(sorted({_machine(row["summary"]) for row in ended if "versions" in row["summary"]})))
        + ". One of them:</p>"
    )
    if ended:
        # The folders of whoever made it are of no use to anyone else.
        given = {k: v for k, v in ended[0]["options"].items() if k not in ("workdir", "data_dir") and v is not None}
        shown = shlex.join(
            ["python", "-m", "experiments.train", *(f"--{name}={value}" for name, value in given.items())]
        )
        parts.append(commands(shown))
    if failed:
        parts += [
            "<p>Runs without a result:</p>",
            table(("run", "error"), failed),
        ]
    return parts


def _machine(summary: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f"{summary['devices']}, {versions}"
