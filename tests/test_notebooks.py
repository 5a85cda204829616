"""The notebooks install what they need, and are kept with outputs that can be read anywhere."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COLABS = ROOT / "colabs"
NAMES = sorted(path.stem for path in COLABS.glob("*.ipynb"))
OURS = {"batchnorm_jax", "batchnorm_jax_experiments"}
# Larger files are slow to open on a code host, which shows no outputs then.
MAX_BYTES = 400_000
URL = "https://github.com/someone/batchnorm_jax"
COLAB = "https://colab.research.google.com/github/someone/batchnorm_jax/blob/main/colabs/{}.ipynb"
# Beginnings of paths that are those of one machine, and the names of its users.
PLACES = r"(?<![\w.<])/(?:home|root|tmp|usr|opt|work|var|Users|content|private)\b|~/|[A-Z]:\\"

of_notebooks = pytest.mark.parametrize("name", NAMES)


def read(name):
    return json.loads((COLABS / f"{name}.ipynb").read_text())


def code_cells(name):
    return [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def tree(cell):
    """The syntax of a cell, without the commands of IPython."""
    return ast.parse(re.sub(r"^( *)%.*$", r"\1pass", source(cell), flags=re.MULTILINE))


def texts(output):
    """Everything of an output that can be read; of pictures those that are text."""
    yield "".join(output.get("text", ""))
    for kind, value in output.get("data", {}).items():
        if kind != "image/png":
            yield "".join(value)


def hook():
    spec = importlib.util.spec_from_file_location("notebooks_hook", ROOT / "docs" / "notebooks_hook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_notebooks():
    assert len(NAMES) >= 5


@of_notebooks
def test_the_first_cell_installs_and_the_last_says_where(name):
    """Both are the same text in all notebooks."""
    first, last = code_cells(name)[0], code_cells(name)[-1]
    assert '%pip install --quiet "{source}[experiments]"' in source(first)
    assert len(first["source"]) <= 12
    assert source(first) == source(code_cells(NAMES[0])[0])
    assert source(last) == source(code_cells(NAMES[0])[-1])
    (output,) = last["outputs"]
    assert re.search(r"Python 3[\d.]+, JAX [\d.]+, Flax [\d.]+, on .* cores", "".join(output["text"]))


@pytest.mark.parametrize(
    ("installed", "in_checkout", "after", "command"),
    [
        (True, True, True, None),
        (False, True, True, '"..[experiments]"'),
        (False, False, True, '"batchnorm_jax[experiments]"'),
        (False, False, False, '"batchnorm_jax[experiments]"'),
    ],
)
def test_what_the_first_cell_installs(installed, in_checkout, after, command, tmp_path, monkeypatch):
    """From where it is, and what it says if that fails."""
    folder = tmp_path / "colabs"
    folder.mkdir()
    if in_checkout:
        (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    monkeypatch.chdir(folder)
    ran = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: (after if ran else installed) or None)
    program = re.sub(r"%pip install --quiet (.*)", r"ran.append(f\1)", source(code_cells(NAMES[0])[0]))
    if after:
        exec(program, {"ran": ran})
    else:
        with pytest.raises(
            ModuleNotFoundError, match=r"open the notebook in a checkout, or run: %pip install .* @ git"
        ):
            exec(program, {"ran": ran})
    assert ran == ([] if command is None else [command.strip('"')])


@of_notebooks
def test_notebooks_import_what_is_installed(name):
    """The project's two installed packages, and nothing found by changing where Python looks."""
    imported = set()
    for cell in code_cells(name):
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
        assert not re.search(r"sys\.path|PYTHONPATH", source(cell))
    own = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} | OURS
    assert imported & OURS
    assert imported & own <= OURS


@of_notebooks
def test_outputs_are_kept(name):
    """Every cell ran, in order and without errors, and those that print or draw have outputs."""
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        body = tree(cell).body
        shows = isinstance(body[-1], ast.Expr) or any(
            isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "plt.show")
            for node in ast.walk(tree(cell))
        )
        assert bool(cell["outputs"]) or not shows, source(cell)
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr", output
            if output.get("data", {}).get("text/plain", [""])[0].startswith("<Figure"):
                assert {"image/svg+xml", "image/png"} & set(output["data"])
    assert (COLABS / f"{name}.ipynb").stat().st_size < MAX_BYTES


@of_notebooks
def test_outputs_are_those_of_any_machine(name):
    """No paths or names of one machine, no redrawn lines and no warnings."""
    for cell in code_cells(name):
        for text in (text for output in cell["outputs"] for text in texts(output)):
            found = re.search(rf"{PLACES}|\w@\w|\r|\x1b|Warning\b", text)
            assert not found, text[max(0, found.start() - 60) : found.end() + 60]


@pytest.mark.parametrize("text", ["workdir   /tmp/tmp8k2", "at /home/me/x", "~/runs", "C:\\Users", "'/content/runs'"])
def test_a_path_of_a_machine_is_seen(text):
    assert re.search(PLACES, text)


def test_each_notebook_has_its_row_and_its_place_on_the_site():
    assert sorted(name for name, *_ in hook().rows()) == NAMES
    nav = (ROOT / "mkdocs.yml").read_text()
    assert all(f": notebooks/{name}.md\n" in nav for name in NAMES)
    assert hook().MARK in (ROOT / "docs" / "notebooks.md").read_text()


@of_notebooks
def test_a_page_shows_the_cells_the_outputs_and_a_link(name):
    page = hook().render(name, URL)
    assert page.markdown.startswith("# ") and f"[Open in Colab]({COLAB.format(name)})" in page.markdown
    assert f"[Open in Colab]({COLAB.format(name)})" in hook().table(URL)
    for cell in code_cells(name):
        assert source(cell) in page.markdown
        for output in cell["outputs"]:
            assert "".join(output.get("text", "")).rstrip() in page.markdown
    assert set(re.findall(r"\((\S+\.(?:svg|png))\)", page.markdown)) == set(page.pictures)
    assert all(page.pictures.values())


@pytest.mark.parametrize("url", [None, "", "https://example.org/someone/batchnorm_jax"])
def test_without_a_repository_that_colab_can_read_there_is_no_link(url):
    written = hook().table(url) + "".join(hook().render(name, url).markdown for name in NAMES)
    assert "colab.research" not in written and "Open in Colab" not in written
    assert written.count("in a checkout.") >= len(NAMES)


@pytest.mark.parametrize("url", [URL, f"{URL}/", f"{URL}.git"])
def test_the_address_of_a_repository_may_be_written_in_three_ways(url):
    assert hook().colab_link(url, "first_steps") == COLAB.format("first_steps")


@pytest.mark.parametrize("url", ["", URL])
def test_the_site_has_them(url, tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` builds the site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "REPOSITORY_URL": url, "NO_MKDOCS_2_WARNING": "1"},
    )
    listed = (tmp_path / "notebooks.html").read_text()
    for name in NAMES:
        page = (tmp_path / "notebooks" / f"{name}.html").read_text()
        assert f'href="notebooks/{name}.html"' in listed
        assert all((f'href="{COLAB.format(name)}"' in text) == bool(url) for text in (listed, page))
        assert {path.name for path in (tmp_path / "notebooks").glob(f"{name}-*")} == set(
            hook().render(name, url).pictures
        )
