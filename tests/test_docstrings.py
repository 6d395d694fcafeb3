"""Every public name says what it is, and those that take or give arrays say of which shape."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "twotower"

# Arrays of NumPy and torch by the names that annotations give them; Arrow's have one dimension.
ARRAYS = re.compile(r"(?<!pa\.)\b(Tensor|ndarray|NDArray|Array|FloatArray|IntArray|Integers)\b")
# (B, D), (C,), (..., width), (U + 1,), (n,), or in words.
SHAPES = re.compile(
    r"\((?:\.\.\.|[A-Z]\w{0,2}\b|[a-z]\b|\d+\b|[a-z_]+,)[^()]*\)"
    r"|[Ss]calar|[Ss]ee `|same shape|any shape"
)
# What takes a batch by Lightning's rules; the batch is described where it is made.
OF_LIGHTNING = ("training_step", "on_train_batch_end")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Public classes, functions and methods of a file, with their names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", inner) for name, inner in public(node))


def takes_or_gives_arrays(node: ast.AST) -> bool:
    """Whether an annotation of a function names an array."""
    if not isinstance(node, Function) or node.name in OF_LIGHTNING:
        return False
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [argument.annotation for argument in given] + [node.returns]
    return any(ARRAYS.search(ast.unparse(a)) for a in annotations if a is not None)


def problems_of(path: str, source: str) -> list[str]:
    """Public names of a file without a docstring, or without the shapes of their arrays."""
    problems = []
    for name, node in public(ast.parse(source)):
        text = ast.get_docstring(node) or ""
        if not text:
            problems.append(f"{path}:{node.lineno}: `{name}` has no docstring")
        elif takes_or_gives_arrays(node) and not SHAPES.search(text):
            problems.append(f"{path}:{node.lineno}: `{name}` does not say which shapes")
    return problems


def test_every_public_name_is_documented_with_its_shapes():
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 100
    problems = [
        problem
        for path in paths
        for problem in problems_of(str(path.relative_to(PACKAGE)), path.read_text())
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(): ...", "`f` has no docstring"),
        ("class A: ...", "`A` has no docstring"),
        ('class A:\n    """A."""\n    def f(self): ...', "`A.f` has no docstring"),
        ('def f(x: Tensor):\n    """Twice x."""', "`f` does not say which shapes"),
        ('def f() -> npt.NDArray[Any]:\n    """Numbers (of a kind)."""', "which shapes"),
        ('async def f(x: Mapping[str, Array]):\n    """Columns."""', "which shapes"),
    ],
)
def test_planted_omission_is_found(source, expected):
    [problem] = problems_of("x.py", source)
    assert expected in problem


@pytest.mark.parametrize(
    "source",
    [
        "def _f(): ...",
        'def f(x: int):\n    """Twice x."""',
        'def f(ids: pa.Array):\n    """Ids in order."""',
        'def f(x: Tensor):\n    """Twice x.\n\n    Args:\n        x: ``(..., D)``.\n    """',
        'def f(x: Array) -> Array:\n    """Twice x (U + 1,)."""',
        'def f(x: Tensor):\n    """A scalar."""',
        'class A:\n    """A."""\n    def _f(self, x: Tensor): ...',
    ],
)
def test_what_is_documented_is_not_reported(source):
    assert problems_of("x.py", source) == []
