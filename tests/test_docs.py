"""The Python of each page of docs/ is a program that runs, no link leads nowhere, and numbers are those of the rows."""

import html
import json
import re
from pathlib import Path

import pytest

from experiments import _files
from experiments.benchmarking import critical_suite, recommend_suite, recommend_table
from experiments.benchmarking.norm import speed
from experiments.records.benchmarks.critical import CriticalFile
from experiments.records.benchmarks.driver import DriverFile
from experiments.records.benchmarks.noise import NoiseCostFile
from experiments.records.benchmarks.norm import NormFile
from experiments.records.branching import Branching
from experiments.records.runs import Summary
from experiments.reporting import study_sections
from experiments.studies import branching
from experiments.training.recipe.optimizers import OPTIMIZERS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
STUDY = RESULTS / "batch_size_mnist"
GRIDS = RESULTS / "recommend"
SEARCHES = RESULTS / "large_batch"
DIGITS = RESULTS / "digits_8192"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "colabs/README.md")), *PAGES]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def needs_torch(block: str) -> bool:
    return block.startswith("import torch")


def run(page: Path, chosen: list[str]):
    names = {"__name__": page.name}
    for block in chosen:
        exec(compile(block, page.name, "exec"), names)


def of_pages(keep):
    return pytest.mark.parametrize("page", [p for p in PAGES if keep(p)], ids=lambda page: page.stem)


@of_pages(lambda page: not all(map(needs_torch, blocks(page))))
def test_the_python_of_a_page_runs(page):
    run(page, [block for block in blocks(page) if not needs_torch(block)])


@of_pages(lambda page: any(map(needs_torch, blocks(page))))
def test_so_it_does_with_torch(page):
    pytest.importorskip("torch", reason=f"the block of {page.name} that compares with PyTorch")
    run(page, blocks(page))


def test_contributing_names_files_that_exist():
    named = re.findall(r"`([\w./]+\.(?:py|md|toml|yml|txt))`", (ROOT / "CONTRIBUTING.md").read_text())
    # In the table of folders a file is named without its folder, and NAME stands for any name.
    tracked = [
        str(path.relative_to(ROOT))
        for folder in ("batchnorm_jax", "experiments", "tests", "docs", ".ci", ".github")
        for path in (ROOT / folder).rglob("*.*")
    ] + [path.name for path in ROOT.iterdir()]
    missing = [
        name for name in named if "NAME" not in name and not any(t == name or t.endswith(f"/{name}") for t in tracked)
    ]
    assert len(named) > 40 and not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in links:
        target, _, heading = link.partition("#")
        if ":" in target:
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{document.name} links to {link}"
        # The site holds the pages alone: the rest of the repository is named there, not linked.
        within = DOCS if document in PAGES else ROOT
        assert path.is_relative_to(within), f"{document.name} links out of {within.name}: {link}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{document.name} links to {link}"


@pytest.mark.parametrize("notebook", sorted((ROOT / "colabs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(notebook):
    for link in re.findall(r"\]\((\.\./[^)#\s]+)", notebook.read_text()):
        assert (notebook.parent / link).exists(), f"{notebook.name} links to {link}"


@pytest.mark.parametrize(
    ("page", "study", "answered", "tables"),
    [
        ("batch_size.md", STUDY, [*range(1, 11), 12], {3: 5, 10: 15, 12: 5}),
        ("large_batch.md", SEARCHES / "mnist", [11], {11: 125}),
        ("large_batch.md", SEARCHES / "cifar10", [11], {11: 20}),
    ],
)
def test_a_page_says_what_a_committed_study_found(page, study, answered, tables):
    """Answers, and tables with at least so many rows, as the report makes them from the rows beside it."""
    said = " ".join((RESULTS / page).read_text().split())
    sections = study_sections(study)
    assert [section.number for section in sections] == answered
    report = html.unescape((study / "report.html").read_text())
    for section in sections:
        assert section.answer in said and section.answer in report, section.answer
        rows = re.findall(r"<tr>(<td.*?)</tr>", "".join(section.parts))
        if section.number not in tables:
            continue
        assert len(rows) >= tables[section.number]
        for row in rows:
            cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
            assert " ".join(f"| {html.unescape(' | '.join(cells))} |".split()) in said, cells


def test_a_page_lists_every_optimizer_with_its_rate_and_its_rule():
    page = (DOCS / "experiments" / "recipe.md").read_text()
    rules = {"linear": "linear", "sqrt": "square root", "none": "none"}
    for optimizer in OPTIMIZERS:
        (row,) = re.findall(rf"^\|[^|]*`{optimizer.name}`[^|]*\|.*", page, flags=re.MULTILINE)
        _, _, _, rate, rule, refused, *_ = (cell.strip() for cell in row.split("|"))
        if optimizer.full_batch:
            assert (rate, rule) == ("none", "none")
        else:
            assert (float(rate), rule) == (optimizer.base_rate, rules[optimizer.scaling]), optimizer.name
        assert not optimizer.averages or "same" in refused or "schedules other than" in refused


def test_a_page_has_the_table_of_the_committed_recommendations():
    said = (RESULTS / "recommendations.md").read_text()
    done = [name for name in recommend_suite.PARTS if (GRIDS / name / recommend_suite.AGAIN).exists()]
    assert done
    rows = [recommend_suite.tabulate(recommend_suite.PROBLEMS[name], GRIDS / name) for name in done]
    for line in recommend_table.table(rows):
        assert line in said, line


def test_a_page_has_the_table_of_the_three_ways_to_find_the_critical_batch_size():
    """As it follows from the committed branches and grids, without any training."""
    said = (RESULTS / "critical.md").read_text()
    kept = _files.read_json(GRIDS / "critical.json", CriticalFile).rows
    made = []
    for name in critical_suite.PARTS:
        measured = critical_suite.grid_of(recommend_suite.PROBLEMS[name], GRIDS / name)
        answer = _files.read_json(GRIDS / name / critical_suite.BRANCHES / branching.RESULT, Branching)
        assert tuple(point.point for point in answer.points) == critical_suite.points_of(measured), name
        made += critical_suite.compare(measured, answer)
    assert [(row.problem, row.method) for row in made] == [(row.problem, row.method) for row in kept]
    for line in critical_suite.table(made):
        assert line in said, line


def test_a_page_has_what_the_driver_of_a_study_costs():
    said = (RESULTS.parent / "experiments" / "many_machines.md").read_text()
    for row in _files.read_json(RESULTS / "driver.json", DriverFile).rows:
        assert f"| {row.jobs:,} | {row.seconds:.2f} | {row.megabytes:.0f} MB |" in said, row.part


def test_a_page_has_the_times_of_the_norm_that_were_measured_on_a_gpu():
    gpu = _files.read_json(RESULTS / "norm_gpu.json", NormFile).rows.gpu
    page = (RESULTS / "norm.md").read_text()
    peers = ("torch", "flax", "flax_stable", "equinox", "haiku")
    for row in gpu.rows:
        cells = [row.case, f"{row.milliseconds['batchnorm_jax'].median:.3f}", *(str(row.ratio[peer]) for peer in peers)]
        assert f"| {' | '.join(cells)} | {row.of_floor['batchnorm_jax'].median:.2f} |" in page
    means = speed.geometric_means(gpu.rows)
    assert means == pytest.approx(gpu.geometric_mean_of_ratios)
    assert f"| geometric mean | | {' | '.join(f'{means[peer]:.2f}' for peer in peers)} | |" in page


def test_a_page_has_the_cost_of_the_noise_that_was_measured_on_a_gpu():
    (row,) = _files.read_json(RESULTS / "noise_gpu.json", NoiseCostFile).rows
    having, without = (row.milliseconds[name].median for name in ("with noise", "without"))
    page = (DOCS / "guide/noise.md").read_text()
    assert f"{having:.1f} ms a step with the estimate and {without:.1f}\nwithout, {row.ratio.median:.2f} times" in page
    assert f"({row.ratio.low:.2f} to {row.ratio.high:.2f} in seven rounds" in page


def test_a_page_has_the_cost_of_the_noise_that_was_measured_on_a_cpu():
    page = (DOCS / "guide/noise.md").read_text()
    for row in _files.read_json(RESULTS / "noise_cpu.json", NoiseCostFile).rows:
        assert row.sparing is not None
        ratios = (f"{r.median:.3f} ({r.low:.2f} to {r.high:.2f})" for r in (row.ratio, row.sparing))
        assert f"| {' | '.join([row.model, f'{row.parameters:,}', row.way, *ratios])} |" in page


@pytest.mark.parametrize("name", ["e20", "e30"])
def test_a_page_has_the_accuracies_that_were_measured_on_a_gpu(name):
    summary = _files.read_json(RESULTS / "cifar10_h200" / name / "summary.json", Summary)
    seconds = summary.seconds["compute"] + summary.seconds["evaluate"]
    cells = f"{summary.epochs:.0f} | {summary.results['test'].accuracy:.2%} | {seconds:.1f}"
    assert f"(cifar10_h200/{name}/metrics.jsonl)) | {cells} |" in (RESULTS / "training.md").read_text()


def test_the_run_on_digits_reached_what_is_said_of_it():
    results = json.loads((DIGITS / "summary.json").read_text())["results"]
    views, originals = (f"{results[split]['accuracy']:.2%}" for split in ("test", "originals"))
    page = (RESULTS / "training.md").read_text()
    assert f"[{views}](docs/results/training.md)" in (ROOT / "README.md").read_text()
    assert f"{views} on 10,000 views" in page and f"{originals} on the 360 held-out digits" in page
    assert f"seed 0: {views[:-1]} on views, {originals[:-1]} on the originals" in page
    assert f"test: {views[:-1]}" in (DIGITS / "curves.svg").read_text()


def test_the_other_domains_have_the_accuracies_that_were_printed():
    printed = re.findall(
        r"^(.*?) +test +10,000 +([\d.]+%) +[\d.]+ +([\d.]+%)", (DIGITS / "domains.txt").read_text(), re.MULTILINE
    )
    table = re.findall(r"^\| ([a-z ]+)[^|]*\| ([\d.]+%) \| ([\d.]+%) \|", (RESULTS / "training.md").read_text(), re.M)
    assert len(printed) == 6
    assert sorted((name.split(" by ")[0].strip(), *numbers) for name, *numbers in table) == sorted(printed)
    page = (DOCS / "guide" / "existing_models.md").read_text()
    for name in ("coloured", "blurred"):
        ((before, after),) = (numbers for domain, *numbers in printed if domain == name)
        assert re.search(rf"{before} (back )?to {after}", page), name


def test_the_committed_studies_speak_of_themselves_alone():
    """No folder of whoever made them, and not much of it."""
    folders = [STUDY, DIGITS, GRIDS, SEARCHES]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"report.html", "results.jsonl", "convergence.json", "search.json"} <= {path.name for path in files}
    # A study of eleven questions, two searches, and six grids with their branches.
    assert sum(path.stat().st_size for path in files) < 4e6
    for path in files:
        assert not re.search(r"--data_dir|data_dir\"|/(home|root|work|tmp|Users)/", path.read_text()), path.name
