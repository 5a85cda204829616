"""Each page of docs/ is a program that runs, and no link of a document points to nowhere."""

import html
import re
from pathlib import Path

import pytest

from experiments.benchmarking import recommend_suite, recommend_table
from experiments.reporting import study_sections

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "docs" / "batch_size_mnist"
GRIDS = ROOT / "docs" / "recommend"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def needs_torch(block: str) -> bool:
    return block.startswith("import torch")


def run(page: Path, chosen: list[str]):
    names = {"__name__": page.name}
    for block in chosen:
        exec(compile(block, page.name, "exec"), names)


def of_pages(keep):
    return pytest.mark.parametrize("page", [p for p in PAGES if keep(p)], ids=lambda page: page.name)


@of_pages(lambda page: not all(map(needs_torch, blocks(page))))
def test_the_python_of_a_page_runs(page):
    run(page, [block for block in blocks(page) if not needs_torch(block)])


@of_pages(lambda page: any(map(needs_torch, blocks(page))))
def test_so_it_does_with_torch(page):
    pytest.importorskip("torch", reason=f"the block of {page.name} that compares with PyTorch")
    run(page, blocks(page))


@pytest.mark.parametrize("document", [ROOT / "README.md", *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in links:
        target, _, heading = link.partition("#")
        if ":" in target:
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{document.name} links to {link}"
        assert path.is_relative_to(ROOT), f"{document.name} links out of the repository: {link}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{document.name} links to {link}"


def test_the_readme_says_what_the_committed_study_found():
    """Sentences, and the table of runs to the target, as the report makes them from the rows beside it."""
    readme = " ".join((ROOT / "README.md").read_text().split())
    sections = study_sections(STUDY)
    assert [section.number for section in sections] == list(range(1, 10))
    page = html.unescape((STUDY / "report.html").read_text())
    for section in sections:
        assert section.answer in readme and section.answer in page, section.answer
    (target,) = (section for section in sections if section.number == 3)
    cells = re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", "".join(target.parts))
    assert len(cells) >= 5
    for first, rest in cells:
        row = " | ".join(html.unescape(cell) for cell in (first, *re.findall(r"<td class=\"n\">(.*?)</td>", rest)))
        assert f"| {row} |" in readme, row


def test_the_readme_has_the_table_of_the_committed_recommendations():
    readme = (ROOT / "README.md").read_text()
    done = [name for name in recommend_suite.PARTS if (GRIDS / name / recommend_suite.AGAIN).exists()]
    assert done
    rows = [
        {"problem": name, **recommend_suite.tabulate(recommend_suite.PROBLEMS[name], GRIDS / name)} for name in done
    ]
    for line in recommend_table.table(rows):
        assert line in readme, line


def test_the_committed_study_speaks_of_itself_alone():
    """No folder of whoever made it, and not much of it."""
    files = [*STUDY.iterdir(), *(path for path in GRIDS.rglob("*") if path.is_file())]
    assert {"report.html", "results.jsonl", "convergence.json"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 1.5e6
    for path in files:
        assert not re.search(r"--data_dir|data_dir\"|/(home|root|work|tmp|Users)/", path.read_text()), path.name
