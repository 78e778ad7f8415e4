"""Rules of the house: small files, one definition of a name, plain names."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "triptych"
MOST_LINES = 450
LONGER = frozenset(  # to be split
    ("tests/parity/test_blip2_transformers.py",)
)

# Names that more than one file may define, each for a reason.
SHARED = {
    "LOG": "the logger of a module",
    "main": "the entry point of a program: the command line, and the drawings' own",
    "find": "what a format of data sets is recognised by (data/formats), and the command that searches a library",
    "read": "reads a data set (data/formats): the formats have the same functions",
    "is_certain": "whether a file surely has a format (data/formats/annotations)",
    "matches": "whether a file may have a format (data/formats/annotations)",
    "photos": "the photos of a file of annotations (data/formats)",
    "load": "a model (tasks), and a part of one from a table of keys",
    "translated": "tensors under our names, by a table of keys, and by the table of a language model",
}
MOST_SHARED = 10

# Words that name no thing of the field: see CONTRIBUTING.md, Habits. `look` is a field of checkpoints' config.json and stays.
DIALECT = {
    "told",
    "seen",
    "begun",
    "held",
    "stated",
    "alike",
    "shown",
    "asked",
    "found",
    "away",
    "nobody",
    "unseen",
}


def python_files() -> Iterator[Path]:
    for folder in ("src", "tests", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def top_level_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes and constants that other modules may import; commands and routes (decorated) are reached by path."""
    for node in tree.body:
        names = []
        if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and not node.decorator_list):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_") and len(name) > 1)  # one letter: a type variable


def defined_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(name, line) of everything that a file names: functions, classes, arguments, variables, attributes of self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", python_files(), ids=relative)
def test_no_file_is_long(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES or relative(path) in LONGER, f"{lines} lines: split it by what its parts do"


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports each as a module of its name."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert not [name for name, files in names.items() if files > 1], "give one of them another name"


def test_few_names_are_defined_twice() -> None:
    """A name leads to one place."""
    places = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        for name in top_level_names(ast.parse(path.read_text(encoding="utf-8"))):
            places[name].add(relative(path))
    twice = {name: sorted(files) for name, files in places.items() if len(files) > 1}
    assert not {name: files for name, files in twice.items() if name not in SHARED}, "give one of each another name"
    assert set(SHARED) <= set(twice), "remove from SHARED what one file alone defines"
    assert len(SHARED) <= MOST_SHARED


def test_names_are_plain() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
    dialect = [
        f"{relative(path)}:{line}: {name}"
        for path, tree in trees.items()
        for name, line in defined_names(tree)
        if name.strip("_").lower() in DIALECT
    ]
    assert not dialect, "name the thing"
