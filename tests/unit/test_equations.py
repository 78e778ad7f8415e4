"""Every tagged equation of the source is listed in ``docs/equations.md``, and the other way round."""

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "triptych"
TAG = re.compile(r"(?:SAT|Flamingo|BLIP-2) (?:eq\.|section) \d.*")
ROW = re.compile(
    r"^\| `(?P<tag>[^`]+)` \| (?P<formula>.+) "
    r"\| \[`(?P<file>[^`]+)`\]\(\.\./src/triptych/(?P<path>[^)]+)\) "
    r"\| \[`(?P<symbol>[^`]+)`\]\(api/\w+\.md#(?P<anchor>[^)]+)\) \|$"
)


def source_tags() -> list[tuple[str, str, int]]:
    """(tag, file, line) of every comment that is a tag."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            text = token.string.lstrip("# ")
            if token.type == tokenize.COMMENT and TAG.match(text):
                found.append((text, path.relative_to(PACKAGE).as_posix(), token.start[0]))
    return found


def listed() -> list[re.Match[str]]:
    lines = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    matches = [match for line in rows if (match := ROW.match(line))]
    assert len(matches) == len(rows), "a row of docs/equations.md has not four columns"
    return matches


def symbols_at(path: Path, line: int) -> str:
    """The dotted name of the innermost function or class around a line."""
    names: list[str] = []
    node: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    while True:
        inner = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.lineno <= line <= (child.end_lineno or 0)
        ]
        if not inner:
            return ".".join(names)
        node = inner[0]
        names.append(inner[0].name)


def test_source_and_list_hold_the_same_tags_once() -> None:
    assert Counter(tag for tag, _, _ in source_tags()) == Counter(row["tag"] for row in listed())
    assert max(Counter(row["tag"] for row in listed()).values()) == 1


def test_tags_stand_where_the_list_says() -> None:
    places = {tag: (file, symbols_at(PACKAGE / file, line)) for tag, file, line in source_tags()}
    assert places == {row["tag"]: (row["file"], row["symbol"]) for row in listed()}


def test_every_row_links_to_its_file_and_symbol() -> None:
    for row in listed():
        module = row["file"].removesuffix(".py").replace("/", ".")
        assert row["path"] == row["file"] and row["anchor"] == f"triptych.{module}.{row['symbol']}"


def test_all_numbered_equations_of_show_attend_and_tell_are_there() -> None:
    tags = [tag.partition(":")[0] for tag, _, _ in source_tags() if tag.startswith("SAT eq.")]
    numbers = sorted(int(n) for tag in tags for n in re.findall(r"\d+", tag))
    assert numbers == [n for n in range(1, 15) if n != 11]  # the exact gradient is enumerated in a test only
