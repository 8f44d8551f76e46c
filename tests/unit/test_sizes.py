"""How large files and functions may be: when one outgrows this, an idea is missing in it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

import rowsignal

ROOT = Path(__file__).parents[2]
SOURCE = Path(rowsignal.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
SCRIPTS = sorted(
    file
    for folder in (SOURCE, ROOT / "clients")
    for file in folder.rglob("*.[jt]s*")
    if file.suffix in {".js", ".jsx", ".ts", ".tsx"} and "node_modules" not in file.parts
)

FILE_LINES, FUNCTION_LINES, MEDIAN_LINES, NESTING, PARAMETERS = 400, 50, 6, 3, 9

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def functions(file: Path) -> Iterator[Function]:
    """Yield the functions of a module, those inside others too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, Function):
            yield node


def name_of(file: Path, function: Function) -> str:
    return f"{file.relative_to(SOURCE).as_posix()}:{function.name}"


def lines_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def depth_of(node: ast.AST) -> int:
    """Return how deep blocks lie in each other; an elif is no deeper than its if."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*Function.__args__, ast.ClassDef)):
            continue  # measured by itself
        is_elif = isinstance(node, ast.If) and child in node.orelse and isinstance(child, ast.If)
        is_block = isinstance(child, BLOCKS) and not is_elif
        deepest = max(deepest, depth_of(child) + is_block)
    return deepest


def parameters_of(function: Function) -> int:
    """Return how many values a call can give, besides the object itself."""
    given = function.args
    names = [it.arg for it in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("file", [*MODULES, *SCRIPTS], ids=lambda file: file.name)
def test_a_file_is_not_too_long(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= FILE_LINES


def every() -> Iterator[tuple[str, Function]]:
    """Yield every function of the library with its name."""
    for file in MODULES:
        for function in functions(file):
            yield name_of(file, function), function


def test_functions_are_short() -> None:
    lengths = {name: lines_of(function) for name, function in every()}
    assert {name: it for name, it in lengths.items() if it > FUNCTION_LINES} == {}
    assert median(lengths.values()) <= MEDIAN_LINES


def test_blocks_are_not_nested_deep() -> None:
    depths = {name: depth_of(function) for name, function in every()}
    assert {name: it for name, it in depths.items() if it > NESTING} == {}


def test_functions_have_few_parameters() -> None:
    counts = {name: parameters_of(function) for name, function in every()}
    assert {name: it for name, it in counts.items() if it > PARAMETERS} == {}
