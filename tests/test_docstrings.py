"""Every docstring begins with a plain summary: a reader who sees one line of it knows what it is about."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: ``:param x:``, ``:return:`` and the like, and no role such as ``:class:`SET```.
FIELD = re.compile(r":\w+( [^:]*)?:(?!`)")
FILES = [file for package in ("sb3_sparse", "sb3_sparse_runtime") for file in sorted((ROOT / package).rglob("*.py"))]


def documented(node, prefix=""):
    """Everything in a module that has a docstring: where it is, its name, and the docstring."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            text = ast.get_docstring(child)
            if text is not None:
                yield child.lineno, prefix + child.name, text
            yield from documented(child, f"{prefix}{child.name}.")


def without_summary(source):
    tree = ast.parse(source)
    module = ast.get_docstring(tree)
    found = [(1, "the module", module)] if module is not None else []
    return [f"line {line}: {name}" for line, name, text in [*found, *documented(tree)] if not text or FIELD.match(text)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_begin_with_a_summary(file):
    assert without_summary(file.read_text()) == []


def test_what_the_test_finds():
    source = '""":class:`A`: of a module."""\n\ndef f(x):\n    """\n    :param x: A number.\n    """\n'
    source += '\nclass A:\n    """:return: Nothing."""\n\n    def g(self):\n        """"""\n'
    assert without_summary(source) == ["line 3: f", "line 8: A", "line 11: A.g"]
    assert without_summary('def f():\n    """Do it."""\n') == []
