"""Finds where a program asks which variant it has by comparing its name, in the source, without running it."""

import ast
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Comparison(NamedTuple):
    """A place where a variant's name is compared.

    Attributes:
      file: relative to the folder that was searched.
      line: counted from 1.
      text: the source of the comparison.
    """

    file: str
    line: int
    text: str


def comparisons(folder: Path, names: Iterable[str], own: Iterable[str] = ()) -> list[Comparison]:
    """Returns the comparisons (`==`, `in` and the like, and `case`) one side of which is or lists a variant's name.

    A side that is a constant, such as `FULL_BATCH` or `norms.PER_DEVICE`, counts as the texts that it was assigned in
    any file of the folder.

    Args:
      folder: all Python files in it are searched.
      names: of the variants.
      own: files and folders, relative to `folder`, which may compare: those that declare the variants.
    """
    known, own, trees = set(names), tuple(own), _trees(folder)
    constants: dict[str, set[str]] = {}
    for tree in trees.values():
        for node in tree.body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            for target in getattr(node, "targets", []):
                if isinstance(target, ast.Name) and target.id.isupper() and value is not None:
                    constants.setdefault(target.id, set()).update(_texts(value, {}))
    return [
        Comparison(file, node.lineno, ast.unparse(node))
        for file, tree in trees.items()
        if not file.startswith(own)
        for node in ast.walk(tree)
        if any(known & _texts(side, constants) for side in _sides(node))
    ]


@functools.cache
def _trees(folder: Path) -> dict[str, ast.Module]:
    """Returns the parsed files of a folder by their relative path."""
    return {path.relative_to(folder).as_posix(): ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}


def _sides(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    return [node.value] if isinstance(node, ast.MatchValue) else []


def _texts(node: ast.expr, constants: Mapping[str, set[str]]) -> set[str]:
    """The texts that an expression is or lists, as far as its source shows them."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return {text for element in node.elts for text in _texts(element, constants)}
    if isinstance(node, ast.Starred):
        return _texts(node.value, constants)
    if isinstance(node, ast.Name):
        return constants.get(node.id, set())
    return constants.get(node.attr, set()) if isinstance(node, ast.Attribute) else set()
