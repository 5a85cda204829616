"""Each page of docs/ is a program that runs, and no link of a document points to nowhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
