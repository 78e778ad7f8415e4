"""The direction of imports, the public surface, and a start without heavy modules."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import triptych

SOURCE = Path(triptych.__file__).parent

PAGE = SOURCE.parents[1] / "docs" / "architecture.md"

# The table of docs/architecture.md: each floor imports only from floors above it, and from itself only inside a package.
FLOORS = [
    re.findall(r"`(\w+)`", row.split("|")[1])
    for row in PAGE.read_text(encoding="utf-8").splitlines()
    if row[:3] == "| `"
]


@cache
def modules() -> dict[Path, str]:
    """Every source file -> the floor's name it belongs to (its first part below ``triptych``)."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts != ("__init__",):
            found[path] = parts[0]
    return found


def imports(path: Path) -> set[str]:
    """The ``triptych`` modules that a file imports anywhere, also inside functions and for types alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            if node.module == "triptych":
                names |= {
                    alias.name
                    for alias in node.names
                    if (SOURCE / f"{alias.name}.py").exists() or (SOURCE / alias.name).is_dir()
                }
            elif node.module and node.module.startswith("triptych."):
                names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("triptych.")}
    return names


def test_every_module_has_a_floor() -> None:
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    assert set(modules().values()) == set(floor)


@pytest.mark.parametrize("path", sorted(modules()), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_upwards(path: Path) -> None:
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    own = modules()[path]
    wrong = {name for name in imports(path) - {own} if floor[name] >= floor[own]}
    assert not wrong, f"{own} must not import {sorted(wrong)}"


def test_public_surface() -> None:
    assert triptych.__all__ == sorted(triptych.__all__)
    for name in triptych.__all__:
        assert getattr(triptych, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        triptych.nothing_of_this_name  # noqa: B018


def test_help_does_not_load_torch() -> None:
    probe = "import sys, triptych.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
