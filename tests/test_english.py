"""The first lines of docstrings can be understood alone."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Beginnings of half a sentence, which leans on its neighbours.
LEANING = re.compile(r"(Of|What|Which|Likewise|As there|The same)\b")
# An argument or a field that is described by what comes before it.
LEANING_ENTRY = re.compile(r"^ +\w+: (of|whose|what|which|likewise|as there|the same)\b.*", re.MULTILINE)


def docstrings(folders=("batchnorm_jax", "experiments")):
    """Yields the place, the node and the text of every docstring in some folders."""
    for package in folders:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node, clean=False)
                    if text:
                        yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", node, text


def is_property(node):
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_functions_say_what_they_do_with_a_verb():
    """In the third person: "Returns", "Checks". Properties are described as values."""
    found = [
        f"{place}: {text.splitlines()[0]}"
        for place, node, text in docstrings()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not is_property(node)
        and not re.match(r"[A-Z][a-z]+s\b", text)
    ]
    assert not found, "\n".join(found)


def test_no_docstring_leans_on_its_neighbours():
    everywhere = docstrings(("batchnorm_jax", "experiments", "tests"))
    found = [f"{place}: {text.splitlines()[0]}" for place, _, text in everywhere if LEANING.match(text)]
    assert not found, "\n".join(found)


def test_no_argument_leans_on_its_neighbours():
    found = [
        f"{place}: {match[0].strip()}" for place, _, text in docstrings() for match in LEANING_ENTRY.finditer(text)
    ]
    assert not found, "\n".join(found)
